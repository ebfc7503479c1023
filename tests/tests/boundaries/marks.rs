// SPDX-License-Identifier: MIT OR Apache-2.0
//! Marks: a process of the host that sets ours gets nothing by it, and others' bits are others'.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::{Packet, Peer, Scene, eventually, serve};
use nix::sys::socket::{setsockopt, sockopt};

/// How long a packet may take.
const SOON: Duration = Duration::from_secs(5);
/// Bytes of a datagram that the sender cuts.
const LONG: usize = 3000;

/// Every value of our bits, alone and with others', and what once meant "let through".
fn marks() -> Vec<u32> {
    let kinds = (0..16_u32).flat_map(|kind| [kind << 28, kind << 28 | 0x0fff_ffff]);
    kinds.chain([0xb7ff_fffd, 0xb7ff_ffff]).collect()
}

#[test]
fn forged_mark_enters_no_isolated_network() -> Result<()> {
    let scene = Scene::new("forged-marks")?;
    let isolated = "com.docker.network.bridge.gateway_mode_ipv4=isolated";
    let create = ["network", "create", "--internal", "-o", isolated, "alone"];
    scene.host.docker(&create)?;
    let inner = scene.run("inner", &["--network", "alone"], &Peer::serve(80))?;
    let open = scene.run("open", &[], &Peer::serve(80))?;
    let at_inner = inner.space()?.capture("eth0")?;
    let at_open = open.space()?.capture("eth0")?;
    let (inner, open) = (inner.ip()?, open.ip()?);
    scene.host.enter(|| {
        for mark in marks() {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            setsockopt(&socket, sockopt::Mark, &mark)?;
            let word = mark.to_be_bytes();
            // The kernel may say that it dropped one.
            let _ = socket.send_to(&word, (inner, 80));
            let _ = socket.send_to(&word, (open, 80));
        }
        anyhow::Ok(())
    })??;
    let words = |capture: &harness::Capture| -> Result<Vec<Vec<u8>>> {
        let packets = capture.packets(false)?;
        let datagrams = packets.iter().filter(|packet| packet.protocol() == 17);
        Ok(datagrams.map(|udp| udp.transport()[8..].to_vec()).collect())
    };
    // To an ordinary container all of them come, whatever they are marked with.
    eventually(SOON, || {
        let came = words(&at_open)?;
        for mark in marks() {
            let word = mark.to_be_bytes().to_vec();
            ensure!(came.contains(&word), "{mark:#x} does not arrive");
        }
        Ok(())
    })?;
    let entered = words(&at_inner)?;
    ensure!(entered.is_empty(), "these marks entered: {entered:x?}");
    Ok(())
}

/// Everybody but us may route by the bits that are not ours, as Tailscale and the kubelet do: what the
/// kernel forwards for us has none of them.
#[test]
fn kernel_path_has_no_mark_of_others() -> Result<()> {
    let scene = Scene::new("others-marks")?;
    let _server = serve(scene.lan(), 7)?;
    let ports = ["-p", "8080:80", "-p", "8080:80/udp"];
    let web = scene.run("web", &ports, &Peer::serve(80))?;
    for bit in 0..28 {
        let mark = 1_u32 << bit;
        scene
            .host
            .ip(&format!("rule add fwmark {mark:#x}/{mark:#x} prohibit"))?;
    }
    let long = "x".repeat(LONG);
    web.peer(&["udp", "198.18.1.2:7", &long])?;
    scene.lan().peer(&["udp", "198.18.1.1:8080", &long])?;
    web.peer(&["udp", "198.18.1.1:8080", &long])?;
    ensure!(scene.count("reassembled")? > 0, "nothing was in pieces");
    Ok(())
}

/// A mark that others have set stays on what the kernel forwards for us, and leads it where they want.
#[test]
fn others_marks_stay() -> Result<()> {
    let scene = Scene::new("kept-marks")?;
    let web = scene.run("web", &[], &Peer::idle())?;
    let host = &scene.host;
    let rule = |words: &str| {
        let argv: Vec<_> = words.split(' ').collect();
        host.cmd(&argv)
    };
    // Marked between our hooks, and asked for behind them.
    rule("iptables -t mangle -A FORWARD -p udp -j MARK --set-xmark 0xff4000/0xff4000")?;
    rule("tc qdisc add dev up0 root handle 1: htb default 1")?;
    rule("tc class add dev up0 parent 1: classid 1:1 htb rate 1gbit")?;
    rule("tc class add dev up0 parent 1: classid 1:2 htb rate 1gbit")?;
    rule(
        "tc filter add dev up0 parent 1: protocol ip u32 match mark 0xff4000 0xffffffff flowid 1:2",
    )?;
    let (from, to) = (web.ip()?, scene.host.gateway());
    let std::net::IpAddr::V4(from) = from else {
        anyhow::bail!("{from} is no IPv4 address")
    };
    let sent = Packet::udp(
        std::net::SocketAddrV4::new(from, 5000),
        std::net::SocketAddrV4::new(to, 9),
        b"marked",
    )
    .options(&[1; 4]);
    let out = scene.lan().capture(&scene.host.lan_device())?;
    let space = web.space()?;
    let frame = sent.frame(scene.host.mac("docker0")?, space.mac("eth0")?);
    space.send_frame("eth0", &frame)?;
    eventually(SOON, || {
        let came = out.packets(false)?;
        let ours = came.iter().find(|packet| packet.destination() == to);
        let ours = ours.context("nothing has left")?;
        ensure!(ours.source() == scene.host.address(), "{:?}", ours.ends());
        Ok(())
    })?;
    let classes = rule("tc -s class show dev up0 classid 1:2")?;
    ensure!(
        !classes.contains("Sent 0 bytes"),
        "the mark is lost: {classes}"
    );
    Ok(())
}
