// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs as filters of clsact qdiscs, as on kernels without tcx: the same traffic, taken over in
//! place, and nothing of other people's is touched.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::{Docker, Host, Lab, Peer, eventually};

const SOON: Duration = Duration::from_secs(5);
const PUBLISHED: &str = "198.18.1.1:8080";

/// A host with a server published as 8080 and a client, a server in the LAN.
fn site(label: &str) -> Result<(Lab, Host, harness::Process)> {
    let lab = Lab::new(label)?;
    let host = lab.host(Docker::replace())?;
    host.run(
        "web",
        &["-p", "8080:80", "-p", "8080:80/udp"],
        &Peer::serve(80),
    )?;
    host.run("inside", &[], &Peer::idle())?;
    let mut outside = lab.lan().spawn_peer(&["serve", "7000"])?;
    outside.line("serving", SOON)?;
    Ok((lab, host, outside))
}

fn traffic_works(lab: &Lab, host: &Host) -> Result<()> {
    let from = "--bind=198.18.1.2:40000";
    assert_eq!(
        lab.lan().peer(&["get", PUBLISHED, from])?,
        "198.18.1.2:40000"
    );
    assert_eq!(
        lab.lan().peer(&["udp", PUBLISHED, "x", from])?,
        "198.18.1.2:40000 x"
    );
    let inside = host.container("inside");
    for verb in [
        &["get", "198.18.1.2:7000"][..],
        &["udp", "198.18.1.2:7000", "x"],
    ] {
        let seen = inside.peer(verb)?;
        ensure!(seen.starts_with("198.18.1.1:"), "the LAN sees {seen}");
    }
    let hairpin = inside.peer(&["get", PUBLISHED])?;
    ensure!(
        hairpin.starts_with("172.17.0.1:"),
        "the hairpin shows {hairpin}"
    );
    inside.peer(&["ping", "198.18.1.2"]).map(drop)
}

/// A filter that is not ours, for ARP.
fn their_filter(host: &Host, device: &str) -> Result<()> {
    let rest = "ingress protocol arp prio 7 u32 match u32 0 0 classid 1:1";
    let words = ["tc", "filter", "add", "dev", device];
    let words: Vec<_> = words.into_iter().chain(rest.split(' ')).collect();
    host.cmd(&words).map(drop)
}

/// The filters on a device, as tc shows them, one line each.
fn filters(host: &Host, device: &str, direction: &str) -> Result<Vec<String>> {
    let text = host.cmd(&["tc", "filter", "show", "dev", device, direction])?;
    let ours = text.lines().filter(|line| line.contains("handle"));
    Ok(ours.map(str::to_owned).collect())
}

/// The number behind a word of a line.
fn after(line: &str, word: &str) -> Result<u64> {
    let mut words = line.split_whitespace().skip_while(|other| *other != word);
    let number = words
        .nth(1)
        .with_context(|| format!("no {word} in {line}"))?;
    Ok(number.parse()?)
}

/// Traffic goes through the clsact filters, and the next agent replaces them in place.
#[test]
fn next_agent_replaces_filters_in_place() -> Result<()> {
    let (lab, host, _outside) = site("clsact")?;
    let mut agent = host.agent().arg("--attach=clsact").start()?;
    traffic_works(&lab, &host)?;
    assert!(host.pinned()?.links.is_empty(), "no links");
    let hooks = host.json("status")?["hooks"]["up0"].clone();
    assert_eq!(hooks.as_array().map(Vec::len), Some(2), "{hooks}");
    let mut held = lab.lan().spawn_peer(&["hold", "20", PUBLISHED])?;
    held.line("open 20", SOON)?;
    let maps = host.pinned()?.maps;
    let first = [
        filters(&host, "up0", "ingress")?,
        filters(&host, "up0", "egress")?,
    ];
    agent.kill()?;
    traffic_works(&lab, &host).context("with the agent killed")?;

    // Without their messages the programs are others.
    let next = host.agent().arg("--log=info,programs=off");
    let mut agent = next.env("FORWARDER_ATTACH", "clsact").start()?;
    let second = [
        filters(&host, "up0", "ingress")?,
        filters(&host, "up0", "egress")?,
    ];
    for (before, now) in first.iter().flatten().zip(second.iter().flatten()) {
        assert_ne!(
            after(before, "id")?,
            after(now, "id")?,
            "{now}: the old program"
        );
        let place = |line: &str| line.split(" id ").next().map(str::to_owned);
        assert_eq!(place(before), place(now));
    }
    assert_eq!(second.map(|filters| filters.len()), [1, 1]);
    assert_eq!(host.pinned()?.maps, maps);
    held.tell("")?;
    assert_eq!(held.line("alive", SOON)?, "alive 20");
    traffic_works(&lab, &host)?;

    // A container of later has its filters too.
    host.run("late", &["-p", "8081:80"], &Peer::serve(80))?;
    eventually(SOON, || {
        lab.lan().peer(&["get", "198.18.1.1:8081", "--timeout=500"])
    })?;
    let late = host.json("endpoints")?;
    let late = late
        .as_array()
        .and_then(|all| all.iter().find(|row| row["container"] == "late"));
    let veth = late
        .and_then(|row| row["veth"].as_str())
        .context("late has no veth")?;
    assert_eq!(filters(&host, veth, "ingress")?.len(), 1);
    agent.kill()
}

/// Cleanup removes our filters and qdiscs and nobody else's.
#[test]
fn cleanup_removes_only_our_filters_and_qdiscs() -> Result<()> {
    let (lab, host, _outside) = site("clsact-clean")?;
    // Somebody's own qdisc with a filter on the uplink, before us.
    host.cmd(&["tc", "qdisc", "add", "dev", "up0", "clsact"])?;
    their_filter(&host, "up0")?;
    let before = host.state(&[])?;
    for how in ["SIGTERM", "SIGKILL", "taken over"] {
        let mut agent = host.agent().arg("--attach=clsact").start()?;
        traffic_works(&lab, &host)?;
        assert_eq!(filters(&host, "up0", "egress")?.len(), 1);
        match how {
            "SIGTERM" => _ = agent.stop()?,
            "SIGKILL" => agent.kill()?,
            _ => {
                agent.kill()?;
                host.agent().arg("--attach=clsact").start()?.kill()?;
            }
        }
        host.cli(&["cleanup"])?;
        let after = host.state(&[])?;
        assert!(
            before == after,
            "{how}:\n{}",
            harness::difference(&before, &after)
        );
    }
    assert!(
        host.forwarder(&["status"])?.stdout.is_empty(),
        "something is pinned"
    );

    // Somebody's filter on a qdisc of ours, after us.
    host.agent().arg("--attach=clsact").start()?.kill()?;
    their_filter(&host, "docker0")?;
    host.cli(&["cleanup"])?;
    for device in ["up0", "docker0"] {
        let left = host.cmd(&["tc", "filter", "show", "dev", device, "ingress"])?;
        ensure!(
            left.contains("u32") && !left.contains("bpf"),
            "{device}: {left}"
        );
    }
    Ok(())
}
