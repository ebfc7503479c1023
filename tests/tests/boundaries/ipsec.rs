// SPDX-License-Identifier: MIT OR Apache-2.0
//! IPsec policies: what they want protected or block does not leave in clear text. No security
//! association is made, so that nothing may leave at all.

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::{Container, Docker, Host, Lab, Packet, Peer, eventually, serve};

/// How long the agent may take to notice.
const SOON: Duration = Duration::from_secs(3);
const ASK: [&str; 5] = ["udp", "198.18.1.2:7", "clear", "--timeout", "300"];
const INWARD: [&str; 5] = ["udp", "198.18.1.1:8080", "clear", "--timeout", "300"];
const DEMAND: &str = "tmpl src 198.18.1.1 dst 198.18.1.2 proto esp mode tunnel";

/// Which way a policy is about: what must get no answer.
type Ask<'a> = &'a dyn Fn() -> Result<String>;

/// Each policy holds while it is there.
fn each_holds(lab: &Lab, host: &Host, web: &Container, ours: bool) -> Result<()> {
    let outward: Ask<'_> = &|| web.peer(&ASK);
    let inward: Ask<'_> = &|| lab.lan().peer(&INWARD);
    for (policy, asks) in [
        (
            format!("src 172.17.0.0/16 dst 198.18.1.2/32 dir out {DEMAND}"),
            [outward, inward],
        ),
        // By the address that containers are seen as.
        (
            format!("src 198.18.1.1/32 dst 198.18.1.2/32 dir out {DEMAND}"),
            [outward, inward],
        ),
        (
            "src 198.18.1.2/32 dst 0.0.0.0/0 dir fwd action block".to_owned(),
            [outward, inward],
        ),
    ] {
        outward()?;
        inward()?;
        host.ip(&format!("xfrm policy add {policy}"))?;
        if ours {
            eventually(SOON, || {
                let others = host.json("status")?["others"].to_string();
                ensure!(others.contains("IPsec policy"), "not told: {others}");
                Ok(())
            })?;
        }
        let wire = lab.lan().capture(&host.lan_device())?;
        for ask in asks {
            ensure!(ask().is_err(), "{policy}: passed by");
        }
        let clear = |packet: &&Packet| packet.transport().ends_with(b"clear");
        let leaks: Vec<_> = wire
            .packets(false)?
            .iter()
            .filter(clear)
            .map(Packet::ends)
            .collect();
        let blocked = policy.contains("block");
        ensure!(
            blocked || leaks.is_empty(),
            "{policy}: left in clear text: {leaks:?}"
        );
        let selector = policy.split(" tmpl").next().unwrap_or_default();
        host.ip(&format!(
            "xfrm policy delete {}",
            selector.trim_end_matches(" action block")
        ))?;
        if ours {
            eventually(SOON, || {
                let others = host.json("status")?["others"].to_string();
                ensure!(!others.contains("IPsec policy"), "still told: {others}");
                Ok(())
            })?;
        }
    }
    outward()?;
    inward().map(drop)
}

#[test]
fn ipsec_policies_hold() -> Result<()> {
    let lab = Lab::new("policies")?;
    let host = lab.host(Docker::replace())?;
    let _agent = host.agent().start()?;
    let _server = serve(lab.lan(), 7)?;
    let web = host.run("web", &["-p", "8080:80/udp"], &Peer::serve(80))?;
    host.settle("web")?;
    each_holds(&lab, &host, &web, true)
}

#[test]
fn stock_ipsec_policies_hold() -> Result<()> {
    let lab = Lab::new("stock-policies")?;
    let host = lab.host(Docker::stock())?;
    let _server = serve(lab.lan(), 7)?;
    let web = host.run("web", &["-p", "8080:80/udp"], &Peer::serve(80))?;
    each_holds(&lab, &host, &web, false)
}
