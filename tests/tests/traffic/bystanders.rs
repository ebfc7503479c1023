// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is none of our business stays as it was.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::{Packet, Peer, Scene, eventually, holds, serve, veth};

use crate::SOON;

/// Other people's filters on the same device still see what the kernel handles.
#[test]
fn foreign_filters_see_what_the_kernel_handles() -> Result<()> {
    let scene = Scene::new("filters")?;
    let host = &scene.host;
    // Port mirroring, both ways, by clsact filters: they run after all tcx programs.
    let mirror = scene.lab.netns("mirror")?;
    veth(
        (host, "tap", "198.18.203.1/24"),
        (&mirror, "eth0", "198.18.203.2/24"),
    )?;
    host.cmd(&["tc", "qdisc", "add", "dev", "up0", "clsact"])?;
    for hook in ["ingress", "egress"] {
        let filter = format!(
            "tc filter add dev up0 {hook} protocol ip u32 match u32 0 0 action mirred egress mirror dev tap"
        );
        host.cmd(&filter.split(' ').collect::<Vec<_>>())?;
    }
    let mirrored = mirror.capture("eth0")?;
    scene.lan().peer(&["ping", "198.18.1.1", "--count", "5"])?;
    for direction in ["src", "dst"] {
        let seen = mirrored.lines(&format!("icmp and {direction} host 198.18.1.1"))?;
        assert_eq!(seen.len(), 5, "{direction}");
    }
    Ok(())
}

/// Frames with a VLAN tag or for another station are left alone.
#[test]
fn vlan_and_foreign_frames_are_left_alone() -> Result<()> {
    let scene = Scene::new("frames")?;
    let (host, lan) = (&scene.host, scene.lan());
    let web = scene.run("web", &["-p", "8080:80/udp"], &Peer::serve(80))?;
    let (to, from) = (host.mac("up0")?, lan.mac("h1")?);
    let client = SocketAddrV4::new(Ipv4Addr::new(198, 18, 1, 2), 40_000);
    let packet = Packet::udp(client, SocketAddrV4::new(host.address(), 8080), b"hello");
    let in_container = web.space()?.capture("eth0")?;
    let came = || Ok::<usize, anyhow::Error>(in_container.lines("udp and dst port 80")?.len());

    let tagged = [
        &to[..],
        &from,
        &[0x81, 0, 0, 5],
        &packet.frame(to, from)[12..],
    ]
    .concat();
    let foreign = packet.frame([0x02, 0, 0, 0, 0, 0x99], from);
    let broadcast = packet.frame([0xff; 6], from);
    // With a flow of that very tuple, and without.
    for _ in 0..2 {
        let before = (scene.count("not-for-us")?, came()?);
        for frame in [&tagged, &foreign, &broadcast] {
            lan.send_frame("h1", frame)?;
        }
        eventually(SOON, || {
            ensure!(scene.count("not-for-us")? >= before.0 + 3, "not seen");
            Ok(())
        })?;
        holds(Duration::from_millis(50), || {
            ensure!(came()? == before.1, "it came to the container");
            Ok(())
        })?;
        lan.send_frame("h1", &packet.frame(to, from))?;
        eventually(SOON, || {
            ensure!(came()? == before.1 + 1, "the plain frame did not come");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn arp_and_ipv6_go_as_before() -> Result<()> {
    let scene = Scene::new("arp-ipv6")?;
    let (host, lan) = (&scene.host, scene.lan());
    host.ip("address add fd00:1::1/64 dev up0 nodad")?;
    lan.ip("address add fd00:1::2/64 dev h1 nodad")?;
    let _servers = [serve(host, 7)?, serve(lan, 7)?];
    for _ in 0..2 {
        assert!(
            lan.peer(&["get", "[fd00:1::1]:7"])?
                .starts_with("[fd00:1::2]:")
        );
        assert!(
            host.peer(&["udp", "[fd00:1::2]:7", "x"])?
                .starts_with("[fd00:1::1]:")
        );
        for (space, device) in [(&**host, "up0"), (lan, "h1")] {
            space.ip(&format!("neigh flush dev {device}"))?;
        }
        lan.peer(&["ping", "198.18.1.1"])?;
    }
    Ok(())
}

#[test]
fn host_forwards_for_others_as_before() -> Result<()> {
    let scene = Scene::new("foreign")?;
    let (one, two) = (scene.lab.netns("one")?, scene.lab.netns("two")?);
    let host = &scene.host;
    veth(
        (host, "one", "198.18.201.1/24"),
        (&one, "eth0", "198.18.201.2/24"),
    )?;
    veth(
        (host, "two", "172.31.0.1/24"),
        (&two, "eth0", "172.31.0.2/24"),
    )?;
    one.ip("route add default via 198.18.201.1")?;
    two.ip("route add default via 172.31.0.1")?;
    eventually(SOON, || {
        let hooks = &host.json("status")?["hooks"].to_string();
        ensure!(
            hooks.contains("\"one\"") && hooks.contains("\"two\""),
            "not hooked: {hooks}"
        );
        Ok(())
    })?;
    let _servers = [serve(&one, 7)?, serve(&two, 7)?, serve(scene.lan(), 7)?];
    // Addresses stay, also one from Docker's own pools, and bulk goes through.
    assert!(
        one.peer(&["get", "172.31.0.2:7"])?
            .starts_with("198.18.201.2:")
    );
    assert!(
        two.peer(&["udp", "198.18.201.2:7", "x"])?
            .starts_with("172.31.0.2:")
    );
    one.peer(&["fetch", "172.31.0.2:7", "3000000"])?;
    one.peer(&["ping", "172.31.0.2"])?;
    scene.lan().ip("route add 198.18.201.0/24 via 198.18.1.1")?;
    assert!(
        one.peer(&["get", "198.18.1.2:7"])?
            .starts_with("198.18.201.2:")
    );
    let short = format!(
        "{:#}",
        one.peer(&["ping", "172.31.0.2", "--ttl", "1"]).unwrap_err()
    );
    assert!(short.contains("time exceeded from 198.18.201.1"), "{short}");
    Ok(())
}

#[test]
fn hosts_own_traffic_goes_as_before() -> Result<()> {
    let scene = Scene::new("own")?;
    let (host, lan) = (&scene.host, scene.lan());
    let web = scene.run("web", &["-p", "8080:80"], &Peer::serve(80))?;
    let _servers = [serve(host, 7)?, serve(lan, 7)?];
    let (inside, container) = (web.space()?, format!("{}:80", web.ip()?));
    // A server on all addresses answers a datagram with the nearest of them: not with 198.18.1.1.
    for (space, to, datagrams) in [
        (&**host, "198.18.1.2:7", true),
        (lan, "198.18.1.1:7", true),
        (&**host, &container, true),
        (&inside, "172.17.0.1:7", true),
        (&inside, "198.18.1.1:7", false),
    ] {
        space.peer(&["get", to])?;
        space.peer(&["fetch", to, "1000000"])?;
        if datagrams {
            space.peer(&["udp", to, "x"])?;
        }
    }
    host.peer(&["ping", "198.18.1.2"])?;
    host.peer(&["ping", &web.ip()?.to_string()])?;
    web.peer(&["ping", "172.17.0.1"])?;
    web.peer(&["ping", "198.18.1.1"])?;
    assert_eq!(host.json("flows")?.as_array().context("a list")?.len(), 0);
    Ok(())
}
