// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is reached, and from where.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::{Peer, Scene, eventually, serve};

use crate::{SOON, WEB, connects, reaches, reaches_only, refused};

const GATEWAY: &str = "172.17.0.1";

/// A process of the host reaches a published port at every address of the host.
#[test]
fn host_process_reaches_port_at_all_addresses() -> Result<()> {
    let scene = Scene::new("own-addresses")?;
    scene.host.docker(&["network", "create", "second"])?;
    let second = ["network", "inspect", "second", "--format"];
    let gateway = "{{(index .IPAM.Config 0).Gateway}}";
    let second = scene.host.docker(&[&second[..], &[gateway]].concat())?;
    scene.run("web", &WEB, &Peer::serve(80))?;
    let client = |words: &[&str]| scene.host.peer(words);
    for address in ["127.0.0.1", "127.200.3.4", "198.18.1.1", GATEWAY, &second] {
        reaches(&client, &format!("{address}:8080"), GATEWAY).context(address.to_owned())?;
    }
    // Whoever connects to nowhere means this host.
    assert!(client(&["get", "0.0.0.0:8080"])?.starts_with(GATEWAY));

    scene.host.ip("address add 198.18.1.77/24 dev up0")?;
    eventually(SOON, || reaches(&client, "198.18.1.77:8080", GATEWAY))?;
    // The LAN is not this host, and its loopback is not either.
    assert!(client(&["get", "198.18.1.2:8080"]).is_err());
    refused(&|words| scene.lan().peer(words), "127.0.0.1:8080")?;
    // What is not published stays the host's own.
    let _server = serve(&scene.host, 7)?;
    assert!(client(&["get", "127.0.0.1:7"])?.starts_with("127.0.0.1:"));
    assert!(client(&["get", "[::1]:7"])?.starts_with("[::1]:"));
    refused(&client, "127.0.0.1:80")
}

/// An IPv6 socket reaches an IPv4 port by mapped addresses and by the IPv6 loopback address.
#[test]
fn ipv6_socket_reaches_an_ipv4_port() -> Result<()> {
    let scene = Scene::new("dual-stack")?;
    scene.run("web", &WEB, &Peer::serve(80))?;
    let client = |words: &[&str]| scene.host.peer(words);
    for to in ["[::ffff:127.0.0.1]:8080", "[::ffff:198.18.1.1]:8080"] {
        reaches(&client, to, GATEWAY).context(to)?;
    }
    connects(&client, "[::1]:8080", GATEWAY)?;
    // A single datagram to ::1 the kernel does not let change its family: it goes its old way.
    let unanswered = client(&["sendto", "[::1]:8080", "x", "--timeout", "300"]);
    let error = format!("{:#}", unanswered.err().context("answered")?);
    assert!(error.contains("no answer"), "{error}");
    assert!(client(&["get", "[::]:8080"])?.starts_with(GATEWAY));
    Ok(())
}

#[test]
fn ipv6_only_socket_keeps_its_loopback() -> Result<()> {
    let scene = Scene::new("v6-only")?;
    scene.run("web", &["-p", "0.0.0.0:8080:80"], &Peer::serve(80))?;
    let own = scene.host.enter(|| TcpListener::bind("[::1]:8080"))??;
    own.set_nonblocking(true)?;
    let connect = ["name", "tcp", "[::1]:8080"];
    scene.host.peer(&connect)?;
    assert!(own.accept().is_err(), "the container has it");
    scene
        .host
        .peer(&[&connect[..], &["--v6only", "true"]].concat())?;
    own.accept().context("not the host's own server")?;
    Ok(())
}

/// A container on the host's network reaches what the host reaches.
#[test]
fn host_network_container_reaches_what_host_does() -> Result<()> {
    let scene = Scene::new("host-mode")?;
    scene.run("web", &WEB, &Peer::serve(80))?;
    let inside = scene
        .host
        .run("inside", &["--network", "host"], &Peer::idle())?;
    for address in ["127.0.0.1", "198.18.1.1", GATEWAY] {
        let to = format!("{address}:8080");
        reaches(&|words| inside.peer(words), &to, GATEWAY).context(to.clone())?;
    }
    Ok(())
}

/// A container's own loopback and Docker's resolver stay its own.
#[test]
fn container_keeps_its_loopback_and_resolver() -> Result<()> {
    let scene = Scene::new("own-loopback")?;
    scene.host.docker(&["network", "create", "named"])?;
    let everything = [&WEB[..], &["-p", "53:80", "-p", "53:80/udp"]].concat();
    scene.run("web", &everything, &Peer::serve(80))?;
    let own = scene.run("own", &["--network", "named"], &Peer::serve(8080))?;
    for to in ["127.0.0.1:8080", "[::ffff:127.0.0.1]:8080"] {
        let seen = own.peer(&["get", to])?;
        assert!(seen.starts_with("127.0.0.1:"), "{to}: {seen}");
        let seen = own.peer(&["udp", to, "x"])?;
        assert!(seen.starts_with("127.0.0.1:"), "{to}: {seen}");
    }
    // A question that Docker's resolver answers itself: the container's own name.
    let question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03own\x00\x00\x01\x00\x01";
    let answer = own.space()?.enter(|| -> Result<Vec<u8>> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(SOON))?;
        socket.send_to(question, "127.0.0.11:53")?;
        let mut answer = [0; 512];
        let (length, from) = socket.recv_from(&mut answer)?;
        ensure!(from.to_string() == "127.0.0.11:53", "an answer from {from}");
        Ok(answer[..length].to_vec())
    })??;
    let address = own.ip()?.to_string().parse::<Ipv4Addr>()?.octets();
    assert!(answer.ends_with(&address), "{answer:?}");
    Ok(())
}

/// One port at two loopback addresses is two ports.
#[test]
fn port_at_two_loopback_addresses_is_two_ports() -> Result<()> {
    let scene = Scene::new("two-loopbacks")?;
    let [two, three] = [2, 3].map(|last| format!("127.0.1.{last}:8080"));
    let run = |name, at: &str| {
        let ports = [format!("{at}:80"), format!("{at}:80/udp")];
        scene.run(name, &["-p", &ports[0], "-p", &ports[1]], &Peer::serve(80))
    };
    let (second, third) = (run("second", &two)?, run("third", &three)?);
    let client = |words: &[&str]| scene.host.peer(words);
    for (to, server, other) in [(&two, &second, &third), (&three, &third, &second)] {
        reaches(&client, to, GATEWAY)?;
        reaches_only(&scene.host, to, server, &[other])?;
    }
    for other in [
        "127.0.1.4:8080",
        "127.0.0.1:8080",
        "198.18.1.1:8080",
        "[::1]:8080",
    ] {
        refused(&client, other)?;
    }
    Ok(())
}

/// A port that is published on loopback is the host's alone.
#[test]
fn port_published_on_loopback_is_for_the_host() -> Result<()> {
    let scene = Scene::new("loopback-port")?;
    let ports = ["-p", "127.0.0.2:8080:80", "-p", "127.0.0.2:8080:80/udp"];
    scene.run("web", &ports, &Peer::serve(80))?;
    let client = |words: &[&str]| scene.host.peer(words);
    reaches(&client, "127.0.0.2:8080", GATEWAY)?;
    reaches(&client, "[::ffff:127.0.0.2]:8080", GATEWAY)?;
    refused(&client, "198.18.1.1:8080")?;
    refused(&|words| scene.lan().peer(words), "198.18.1.1:8080")?;
    Ok(())
}

/// A port that is published at an address of the host is not at loopback.
#[test]
fn port_at_a_host_address_is_not_at_loopback() -> Result<()> {
    let scene = Scene::new("own-port")?;
    let ports = ["-p", "198.18.1.1:8080:80", "-p", "198.18.1.1:8080:80/udp"];
    scene.run("web", &ports, &Peer::serve(80))?;
    let client = |words: &[&str]| scene.host.peer(words);
    reaches(&client, "198.18.1.1:8080", GATEWAY)?;
    for other in ["127.0.0.1:8080", "172.17.0.1:8080", "[::1]:8080"] {
        refused(&client, other)?;
    }
    Ok(())
}

#[test]
fn socket_bound_to_loopback_is_left_alone() -> Result<()> {
    let scene = Scene::new("bound")?;
    scene.run("web", &WEB, &Peer::serve(80))?;
    let client = |words: &[&str]| scene.host.peer(&[words, &["--timeout", "300"]].concat());
    for (to, bound) in [
        ("127.0.0.1:8080", "127.0.0.1:0"),
        ("[::ffff:127.0.0.1]:8080", "[::ffff:127.0.0.1]:0"),
        ("[::1]:8080", "[::1]:0"),
    ] {
        // A loopback address reaches no container: the kernel refuses to route it (EINVAL).
        let name = client(&["name", "udp", to, "--bind", bound])?;
        assert_eq!(name, to);
        let answer = client(&["sendto", to, "x", "--bind", bound]);
        let error = format!("{:#}", answer.err().context("served")?);
        assert!(!error.contains("Invalid"), "{error}");
    }
    // Bound to any other address of the host's it is served, and seen as that.
    let seen = client(&["get", "127.0.0.1:8080", "--bind", "198.18.1.1:0"])?;
    assert!(seen.starts_with("198.18.1.1:"), "{seen}");
    let seen = client(&["udp", "127.0.0.1:8080", "x", "--bind", "198.18.1.1:0"])?;
    assert!(seen.starts_with("198.18.1.1:"), "{seen}");
    Ok(())
}

#[test]
fn streams_are_whole() -> Result<()> {
    let scene = Scene::new("stream")?;
    scene.run("web", &WEB, &Peer::serve(80))?;
    let bytes = (20 << 20).to_string();
    for to in ["127.0.0.1:8080", "[::1]:8080"] {
        let done = scene.host.peer(&["fetch", to, &bytes])?;
        ensure!(done.ends_with(&format!("done {bytes}")), "{done}");
    }
    let mut held = scene.host.spawn_peer(&["hold", "50", "127.0.0.1:8080"])?;
    held.line("open 50", Duration::from_secs(20))?;
    held.tell("")?;
    held.line("alive 50", SOON).map(drop)
}
