// SPDX-License-Identifier: MIT OR Apache-2.0
//! Packets that the fast path passes to the kernel, on top of Docker's rules: fragments, the last
//! hop, a smaller MTU on the way. The stock host answers the same.

use anyhow::{Context as _, Result, ensure};
use harness::{Far, Space, serve};

use crate::{PUBLISHED, Stock};

/// The MTU of the link behind the LAN.
const NARROW: &str = "1000";
const BYTES: &str = "3000000";

/// What each question is answered, or why it is not.
fn answers(stock: &Stock, far: &Far) -> Result<Vec<String>> {
    let lan: &Space = stock.lab.lan();
    let inside = stock.inside.space()?;
    let away = format!("{}:7000", far.address());
    let large = "x".repeat(3000);
    let questions: [(&str, &Space, Vec<&str>); 8] = [
        ("fragments in", lan, vec!["udp", PUBLISHED, &large]),
        (
            "fragments out",
            &inside,
            vec!["udp", crate::OUTSIDE, &large],
        ),
        ("fragments from afar", far, vec!["udp", PUBLISHED, &large]),
        ("last hop in", lan, vec!["get", PUBLISHED, "--ttl=1"]),
        (
            "last hop out",
            &inside,
            vec!["get", crate::OUTSIDE, "--ttl=1"],
        ),
        ("too far out", &inside, vec!["get", &away, "--ttl=2"]),
        ("narrow in", far, vec!["fetch", PUBLISHED, BYTES]),
        ("narrow out", &inside, vec!["fetch", &away, BYTES]),
    ];
    let ask = |(name, space, words): &(&str, &Space, Vec<&str>)| {
        let words = [words.as_slice(), &["--timeout=1500"]].concat();
        let answer = match space.peer(&words) {
            Ok(text) => {
                let last = text.lines().last().unwrap_or_default();
                let from = last.split(':').next().unwrap_or_default();
                format!("{from}, {}", last.contains(&large))
            }
            Err(error) => {
                let text = format!("{error:#}");
                text.rsplit("peer: ").next().unwrap_or_default().to_owned()
            }
        };
        format!("{name}: {answer}")
    };
    Ok(questions.iter().map(ask).collect())
}

#[test]
fn kernel_path_answers_as_stock() -> Result<()> {
    let stock = Stock::new("packets")?;
    let far = stock.lab.far()?;
    let _server = serve(&far, 7000)?;
    far.ip(&format!("link set eth0 mtu {NARROW}"))?;
    let lan = stock.lab.lan();
    lan.ip(&format!("link set far1 mtu {NARROW}"))?;
    let before = answers(&stock, &far)?;
    forget_routes(&stock)?;
    let _agent = stock.host.agent().start()?;
    let after = answers(&stock, &far)?;
    let differ: Vec<_> = before.iter().zip(&after).filter(|(a, b)| a != b).collect();
    ensure!(differ.is_empty(), "stock and adopted differ: {differ:#?}");
    Ok(())
}

/// Forgets the MTUs that hosts have learned.
fn forget_routes(stock: &Stock) -> Result<()> {
    let inside = stock.inside.space()?;
    for space in [&inside, &stock.host.container("web").space()?] {
        space
            .ip("route flush cache")
            .context("cannot forget MTUs")?;
    }
    Ok(())
}
