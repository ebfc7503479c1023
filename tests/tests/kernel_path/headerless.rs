// SPDX-License-Identifier: MIT OR Apache-2.0
//! A device without Ethernet header: all by the kernel's path.

use std::path::Path;

use anyhow::{Result, ensure};
use harness::{Netns, Peer, Process, Scene, Space, eventually, serve};

use crate::SOON;

/// One end of a tunnel over a pair of Unix sockets: 198.18.78.N/30 on its `tun0`, still down.
fn tunnel(space: &Space, last: u8, from: &Path, to: &Path) -> Result<Process> {
    let device = format!("TUN:198.18.78.{last}/30,tun-name=tun0,tun-type=tun,iff-no-pi");
    let wire = format!("UNIX-SENDTO:{},bind={}", to.display(), from.display());
    let mut command = space.command("socat");
    let process = Process::spawn(
        "socat",
        command.args([device, wire]),
        &from.with_extension("log"),
    )?;
    eventually(SOON, || {
        ensure!(from.exists(), "socat has no socket yet");
        space.ip("link show dev tun0")
    })?;
    Ok(process)
}

/// A VPN from the host to a peer of its own, 198.18.78.2.
fn vpn(scene: &Scene) -> Result<(Netns, [Process; 2])> {
    let far = scene.lab.netns("vpn")?;
    let state = scene.host.state_dir();
    let (a, b) = (state.join("tun-a"), state.join("tun-b"));
    let ends = [tunnel(&scene.host, 1, &a, &b)?, tunnel(&far, 2, &b, &a)?];
    // An end that sends before the other listens would give up.
    for space in [&*scene.host, &*far] {
        space.ip("link set tun0 up")?;
    }
    eventually(SOON, || {
        let hooks = scene.host.json("status")?["hooks"].to_string();
        ensure!(hooks.contains("tun0"), "not hooked: {hooks}");
        Ok(())
    })?;
    Ok((far, ends))
}

/// Prints what comes in by the peer's `tun0`. A packet socket of ours cannot be bound there: the
/// device has no hardware address.
fn watch(far: &Space, folder: &Path) -> Result<Process> {
    let log = folder.join("tcpdump.log");
    let mut command = far.command("tcpdump");
    command.args(["-i", "tun0", "-Q", "in", "-ntlq", "--immediate-mode", "ip"]);
    let watcher = Process::spawn("tcpdump", &mut command, &log)?;
    eventually(SOON, || {
        ensure!(
            watcher.log().contains("listening"),
            "tcpdump does not listen"
        );
        Ok(())
    })?;
    Ok(watcher)
}

/// Through a device without an Ethernet header, containers reach out and are reached.
#[test]
fn headerless_uplink_works_both_ways() -> Result<()> {
    let scene = Scene::new("headerless")?;
    let (far, _ends) = vpn(&scene)?;
    let _server = serve(&far, 7)?;
    let ports = ["-p", "8080:80", "-p", "8080:80/udp"];
    let web = scene.run("web", &ports, &Peer::serve(80))?;
    let mut watcher = watch(&far, &scene.host.state_dir())?;
    far.ethtool("tun0", "tx off")
        .or_else(|_| scene.host.ethtool("tun0", "tx off"))?;

    assert!(
        web.peer(&["get", "198.18.78.2:7"])?
            .starts_with("198.18.78.1:")
    );
    assert!(
        web.peer(&["udp", "198.18.78.2:7", "x"])?
            .starts_with("198.18.78.1:")
    );
    web.peer(&["ping", "198.18.78.2", "--count", "2"])?;
    web.peer(&["fetch", "198.18.78.2:7", "1000000"])?;
    for (verb, transport) in [
        (&["get", "198.18.78.1:8080"][..], "tcp"),
        (&["udp", "198.18.78.1:8080", "x"], "udp"),
    ] {
        let seen = far.peer(verb)?;
        assert!(seen.starts_with("198.18.78.2:"), "{seen}");
        web.log_line(&format!("{transport} 198.18.78.2:"))?;
    }
    far.peer(&["fetch", "198.18.78.1:8080", "1000000"])?;
    let short = format!(
        "{:#}",
        web.peer(&["ping", "198.18.78.2", "--ttl", "1"])
            .unwrap_err()
    );
    assert!(short.contains("time exceeded from 172.17.0.1"), "{short}");
    let refused = format!(
        "{:#}",
        web.peer(&["udp", "198.18.78.2:99", "x"]).unwrap_err()
    );
    assert!(refused.contains("refused"), "{refused}");

    ensure!(scene.count("no-ethernet")? > 10 && scene.count("completed")? > 10);
    // What the peer sent last is seen last.
    far.peer(&[
        "udp",
        "198.18.78.1:8080",
        "last",
        "--bind",
        "198.18.78.2:4444",
    ])?;
    watcher.line("IP 198.18.78.1.8080 > 198.18.78.2.4444", SOON)?;
    let seen = watcher.lines();
    ensure!(seen.len() > 20, "nothing was captured");
    for line in seen {
        ensure!(line.starts_with("IP 198.18.78.1"), "this came out: {line}");
    }
    Ok(())
}
