// SPDX-License-Identifier: MIT OR Apache-2.0
//! What leaves: which address and port the outside sees.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};

use anyhow::{Context as _, Result, ensure};
use harness::{Capture, Container, Peer, Scene, eventually, serve, veth};

use crate::SOON;

/// What the server of the LAN says who a datagram from this port of a container came from.
fn seen_udp(from: &Container, port: u16, to: &str) -> Result<SocketAddrV4> {
    let bind = format!("0.0.0.0:{port}");
    let answer = from.peer(&["udp", to, "x", "--bind", &bind])?;
    parse(answer.split(' ').next().context("an empty answer")?)
}

/// The same for a connection.
fn seen_tcp(from: &Container, port: u16, to: &str) -> Result<SocketAddrV4> {
    parse(&from.peer(&["get", to, "--bind", &format!("0.0.0.0:{port}")])?)
}

fn parse(address: &str) -> Result<SocketAddrV4> {
    address
        .parse()
        .with_context(|| format!("{address:?} is no address"))
}

/// A capture at the LAN's end of the uplink, whose frames have finished checksums.
fn watch(scene: &Scene) -> Result<Capture> {
    scene.host.ethtool(scene.host.uplink(), "tx off")?;
    scene.lan().capture(&scene.host.lan_device())
}

/// Every bridge network leaves by the host's address for TCP, UDP and echoes.
#[test]
fn every_bridge_network_is_masqueraded() -> Result<()> {
    let scene = Scene::new("networks")?;
    let far = scene.lab.far()?;
    let _server = serve(&far, 7)?;
    let at_lan = watch(&scene)?;
    scene.host.docker(&["network", "create", "second"])?;
    for network in ["bridge", "second"] {
        let inside = scene.run(
            &format!("in-{network}"),
            &["--network", network],
            &Peer::idle(),
        )?;
        for seen in [
            seen_tcp(&inside, 0, "198.19.1.2:7")?,
            seen_udp(&inside, 0, "198.19.1.2:7")?,
        ] {
            assert_eq!(*seen.ip(), scene.host.address(), "from {network}");
        }
        inside.peer(&["ping", "198.19.1.2", "--count", "3"])?;
        let [short, long] =
            ["--ttl=1", "--ttl=2"].map(|ttl| inside.peer(&["ping", "198.19.1.2", ttl]));
        let words = format!("{:#} {:#}", short.unwrap_err(), long.unwrap_err());
        assert!(words.contains("time exceeded from 172."), "{words}");
        assert!(words.contains("time exceeded from 198.18.1.2"), "{words}");
    }
    at_lan.audit(true)?;
    assert!(
        at_lan.count(|frame| !frame.outgoing)? > 20,
        "nothing was captured"
    );
    Ok(())
}

#[test]
fn source_keeps_its_port_while_it_is_free() -> Result<()> {
    let scene = Scene::new("own-port")?;
    let _server = serve(scene.lan(), 7)?;
    let inside = scene.run("inside", &[], &Peer::idle())?;
    for port in [40_000, 1000, 300] {
        let own = SocketAddrV4::new(scene.host.address(), port);
        assert_eq!(seen_udp(&inside, port, "198.18.1.2:7")?, own);
        assert_eq!(seen_tcp(&inside, port, "198.18.1.2:7")?, own);
        // Once more: the closed connection does not keep the port from its own source.
        assert_eq!(seen_tcp(&inside, port, "198.18.1.2:7")?, own);
    }
    Ok(())
}

/// Of two containers with one source port the second gets another port of the same class.
#[test]
fn second_user_of_a_port_gets_one_of_its_class() -> Result<()> {
    let scene = Scene::new("same-port")?;
    let _servers = [
        serve(scene.lan(), 7)?,
        serve(scene.lan(), 8)?,
        serve(scene.lan(), 9)?,
    ];
    let at_lan = watch(&scene)?;
    let first = scene.run("first", &[], &Peer::idle())?;
    let second = scene.run("second", &[], &Peer::idle())?;
    for (port, class) in [(40_000, 1024..=65_535), (1000, 600..=1023), (300, 1..=511)] {
        assert_eq!(seen_udp(&first, port, "198.18.1.2:7")?.port(), port);
        let other = seen_udp(&second, port, "198.18.1.2:7")?.port();
        assert!(
            other != port && class.contains(&other),
            "{other} instead of {port}"
        );
        // One source, one port, whomever it talks to; the first one's is its own everywhere too.
        for server in ["198.18.1.2:8", "198.18.1.2:9", "198.18.1.2:7"] {
            assert_eq!(
                seen_udp(&second, port, server)?.port(),
                other,
                "to {server}"
            );
            assert_eq!(seen_udp(&first, port, server)?.port(), port, "to {server}");
        }
    }
    // Connections at the same time, and each hears its own echo.
    let hold = ["hold", "1", "198.18.1.2:7", "--bind", "0.0.0.0:41000"];
    let mut held = [
        first.space()?.spawn_peer(&hold)?,
        second.space()?.spawn_peer(&hold)?,
    ];
    for connection in &mut held {
        connection.line("open 1", SOON)?;
    }
    for connection in &mut held {
        connection.tell("")?;
        connection.line("alive 1", SOON)?;
    }
    at_lan.audit(true)
}

/// A tuple that a host socket holds is never taken.
#[test]
fn host_socket_tuple_is_never_taken() -> Result<()> {
    let scene = Scene::new("host-sockets")?;
    let _server = serve(scene.lan(), 7)?;
    scene.run(
        "web",
        &["-p", "40004:80", "-p", "40004:80/udp"],
        &Peer::serve(80),
    )?;
    let inside = scene.run("inside", &[], &Peer::idle())?;

    let bound = scene.host.enter(|| UdpSocket::bind("0.0.0.0:40001"))??;
    let connected = scene.host.enter(|| UdpSocket::bind("198.18.1.1:40002"))??;
    connected.connect("198.18.1.2:7")?;
    let _listening = scene.host.enter(|| TcpListener::bind("0.0.0.0:40003"))??;
    let mut open =
        scene
            .host
            .spawn_peer(&["hold", "1", "198.18.1.2:7", "--bind", "198.18.1.1:40005"])?;
    open.line("open 1", SOON)?;

    for port in [40_001, 40_002, 40_004] {
        let seen = seen_udp(&inside, port, "198.18.1.2:7")?;
        assert_ne!(seen.port(), port, "UDP {port} is the host's");
    }
    for port in [40_003, 40_004, 40_005] {
        let seen = seen_tcp(&inside, port, "198.18.1.2:7")?;
        assert_ne!(seen.port(), port, "TCP {port} is the host's");
    }
    // And the host's own are undisturbed.
    for socket in [&bound, &connected] {
        socket.set_read_timeout(Some(SOON))?;
        socket
            .send_to(b"y", "198.18.1.2:7")
            .or_else(|_| socket.send(b"y"))?;
        let mut answer = [0; 64];
        let length = socket.recv(&mut answer)?;
        assert!(answer[..length].ends_with(b" y"));
    }
    open.tell("")?;
    open.line("alive 1", SOON)?;
    Ok(())
}

/// The masquerade address is the device's primary one towards the next hop.
#[test]
fn source_is_primary_address_to_the_next_hop() -> Result<()> {
    let scene = Scene::new("addresses")?;
    let (lan, host) = (scene.lan(), &scene.host);
    let inside = scene.run("inside", &[], &Peer::idle())?;
    // A second address in the uplink's subnet is a secondary one; one of another subnet counts
    // for next hops in there; a second uplink has its own.
    host.ip("address add 198.18.1.9/24 dev up0")?;
    host.ip("address add 198.18.101.1/24 dev up0")?;
    lan.ip("address add 198.18.101.2/24 dev h1")?;
    veth(
        (host, "up1", "198.18.102.1/24"),
        (lan, "h1b", "198.18.102.2/24"),
    )?;
    let fars = [scene.lab.far()?, scene.lab.far()?, scene.lab.far()?];
    let _servers = fars
        .iter()
        .map(|far| serve(far, 7))
        .collect::<Result<Vec<_>>>()?;
    host.ip("route add 198.19.2.0/24 via 198.18.101.2")?;
    host.ip("route add 198.19.3.0/24 via 198.18.102.2")?;
    let at_second = lan.capture("h1b")?;

    let seen = |to: &str, expected: [u8; 4]| {
        eventually(SOON, || {
            let expected = Ipv4Addr::from(expected);
            for seen in [seen_udp(&inside, 0, to)?, seen_tcp(&inside, 0, to)?] {
                ensure!(*seen.ip() == expected, "{to} sees {seen}, not {expected}");
            }
            Ok(())
        })
    };
    seen("198.19.1.2:7", [198, 18, 1, 1])?;
    seen("198.19.2.2:7", [198, 18, 101, 1])?;
    seen("198.19.3.2:7", [198, 18, 102, 1])?;
    seen("198.18.102.2:7", [198, 18, 102, 1]).unwrap_err();
    at_second.audit(false)?;
    assert!(at_second.count(|frame| !frame.outgoing)? > 0);

    // The route moves: new flows leave by the other device, with its address.
    host.ip("route replace 198.19.1.0/24 via 198.18.102.2")?;
    seen("198.19.1.2:7", [198, 18, 102, 1])
}

/// The first packets of a new container on a new network never leak.
#[test]
fn new_networks_first_packets_never_leak() -> Result<()> {
    let scene = Scene::new("first-packet")?;
    let _server = serve(scene.lan(), 7)?;
    let at_lan = scene.lan().capture(&scene.host.lan_device())?;
    for n in 0..8 {
        let (network, name) = (format!("net{n}"), format!("eager{n}"));
        scene.host.docker(&["network", "create", &network])?;
        // Sends before anybody can have heard of it, again and again until it has an answer.
        let eager = "until /peer udp 198.18.1.2:7 first --timeout 100; do :; done; echo answered";
        let program = Peer::program(&["sh", "-c", eager]);
        let container = scene.host.run(&name, &["--network", &network], &program)?;
        container.log_line("answered")?;
        at_lan
            .audit(false)
            .with_context(|| format!("container {n}"))?;
        container.remove()?;
    }
    assert!(at_lan.lines("udp and dst port 7")?.len() >= 8);
    Ok(())
}
