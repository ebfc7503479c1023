// SPDX-License-Identifier: MIT OR Apache-2.0
//! Local and next hop are what the kernel says, however unusual its routes are.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use harness::{Docker, Host, Lab, Peer, Scene, Space, eventually, serve};

const SOON: Duration = Duration::from_secs(5);

/// What the kernel routes to the host is the host's.
///
/// Ranges without an address of a device are the host's, too, as are more addresses than 4,096.
#[test]
fn locally_routed_addresses_are_the_hosts() -> Result<()> {
    let scene = Scene::new("local")?;
    serves_every_local(&scene.host, scene.lan())
}

/// Stock Docker serves published ports at what the kernel routes to the host.
#[test]
fn stock_serves_locally_routed_addresses() -> Result<()> {
    let lab = Lab::new("local-stock")?;
    serves_every_local(&lab.host(Docker::stock())?, lab.lan())
}

fn serves_every_local(host: &Host, lan: &Space) -> Result<()> {
    let web = host.run("web", &["-p", "8080:80"], &Peer::serve(80))?;
    let _server = serve(host, 7777)?;
    lan.ip("route add 203.0.113.0/24 via 198.18.1.1")?;
    lan.ip("route add 198.51.100.0/24 via 198.18.1.1")?;
    lan.ip("route add 10.200.0.0/16 via 198.18.1.1")?;
    host.ip("route add local 203.0.113.0/24 dev lo")?;
    host.ip("address add 198.51.100.1 peer 198.51.100.2/32 dev up0")?;
    let many: String = (0..5_000)
        .map(|n| {
            format!(
                "address add 10.200.{}.{}/32 dev up0\n",
                n / 250,
                n % 250 + 1
            )
        })
        .collect();
    let file = std::env::temp_dir().join(format!("addresses-{}", std::process::id()));
    fs::write(&file, many)?;
    let done = host.cmd(&["ip", "-batch", file.to_str().context("a path")?]);
    fs::remove_file(&file)?;
    done?;
    for local in ["203.0.113.9", "198.51.100.1", "10.200.19.250"] {
        for port in [7777, 8080] {
            let to = format!("{local}:{port}");
            let ask = ["get", &to, "--timeout=500"];
            eventually(SOON, || lan.peer(&ask)).with_context(|| format!("from outside: {to}"))?;
            eventually(SOON, || web.peer(&ask)).with_context(|| format!("from inside: {to}"))?;
        }
    }
    // What is routed elsewhere by now is the host's no more.
    host.ip("route del local 203.0.113.0/24 dev lo")?;
    eventually(SOON, || {
        let done = lan.peer(&["get", "203.0.113.9:8080", "--timeout=300"]);
        ensure!(done.is_err(), "it still works");
        Ok(())
    })
}

/// RFC 8950: an IPv4 route by an IPv6 next hop.
#[test]
fn ipv6_next_hop_is_left_to_the_kernel() -> Result<()> {
    let scene = Scene::new("nexthop6")?;
    let (host, lan) = (&scene.host, scene.lan());
    let web = scene.run("web", &["-p", "8080:80"], &Peer::serve(80))?;
    let far = scene.lab.far()?;
    let _server = serve(&far, 7000)?;
    let link_local = lan.ip("-6 -brief address show dev h1 scope link")?;
    let next_hop = link_local.split_whitespace().nth(2).context("no address")?;
    let next_hop = next_hop.split('/').next().unwrap_or_default();
    let on_wire = lan.capture("h1")?;
    host.ip(&format!(
        "route add 198.19.1.0/24 via inet6 {next_hop} dev up0"
    ))?;
    let seen = eventually(SOON, || {
        web.peer(&["get", "198.19.1.2:7000", "--timeout=500"])
    })?;
    ensure!(seen.starts_with("198.18.1.1:"), "seen as {seen}");
    far.peer(&["get", "198.18.1.1:8080"])?;
    for frame in on_wire.frames()? {
        let asks = frame.bytes.get(12..14) == Some(&[0x08, 0x06]);
        let target = frame.bytes.get(38..42).unwrap_or_default();
        ensure!(
            !asks || target.starts_with(&[198, 18]),
            "ARP for {target:?}"
        );
    }
    Ok(())
}

/// The way that fragments go round by is mended within a second, whatever became of it.
#[test]
fn defragmentation_loopback_is_repaired() -> Result<()> {
    let scene = Scene::new("mended")?;
    let (host, lan) = (&scene.host, scene.lan());
    scene.run("web", &["-p", "8080:80/udp"], &Peer::serve(80))?;
    let large = "x".repeat(4_000);
    let ask = ["udp", "198.18.1.1:8080", &large, "--timeout=300"];
    lan.peer(&ask).context("before")?;
    for harm in [
        "link set forwarder0 down",
        "route del 0.0.0.0/8 dev forwarder0",
        "link del forwarder0",
    ] {
        host.ip(harm)?;
        let begun = Instant::now();
        eventually(SOON, || lan.peer(&ask)).with_context(|| harm.to_owned())?;
        println!("{harm}: mended after {:?} (promised: 1s)", begun.elapsed());
    }
    ensure!(
        scene.agent.log().contains("creating it again"),
        "not a word"
    );
    Ok(())
}

/// CPU time that a process has taken, in clock ticks of 10 ms.
fn ticks(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = text.rsplit_once(')').context("no name")?.1;
    let field = |n: usize| {
        rest.split_whitespace()
            .nth(n)
            .unwrap_or_default()
            .parse::<u64>()
    };
    Ok(field(11)? + field(12)?)
}

/// Ten changes a second beside 20,000 routes: what the agent takes does not go by how many there are.
#[test]
fn route_changes_cost_no_full_read() -> Result<()> {
    const ROUTES: u32 = 20_000;
    let scene = Scene::new("many")?;
    let batch: String = (0..ROUTES)
        .map(|n| {
            let (a, b) = (n / 250, n % 250);
            format!(
                "route add 10.{}.{}.{b}/32 via 198.18.1.2\n",
                100 + a / 250,
                a % 250
            )
        })
        .collect();
    let file = std::env::temp_dir().join(format!("routes-{}", std::process::id()));
    fs::write(&file, batch)?;
    let done = scene
        .host
        .cmd(&["ip", "-batch", file.to_str().context("a path")?]);
    fs::remove_file(&file)?;
    done?;
    std::thread::sleep(Duration::from_secs(1));
    let before = ticks(scene.agent.pid())?;
    for n in 0..20 {
        let verb = if n % 2 == 0 { "add" } else { "del" };
        scene
            .host
            .ip(&format!("route {verb} 10.99.0.0/24 via 198.18.1.2"))?;
        std::thread::sleep(Duration::from_millis(90));
    }
    let took = ticks(scene.agent.pid())? - before;
    println!("CPU time for 20 changes beside {ROUTES} routes: {took}0 ms");
    ensure!(took < 30, "{took}0 ms for 20 changes");
    Ok(())
}
