// SPDX-License-Identifier: MIT OR Apache-2.0
//! What comes in: published ports, and the ways on which containers reach them.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context as _, Result, ensure};
use harness::{Container, Peer, Scene, Space, eventually, serve};

use crate::SOON;

const WEB: [&str; 4] = ["-p", "8080:80", "-p", "8080:80/udp"];

/// Both transports reach a published port, and the server sees this client.
fn sees_client(from: &Space, client: &str, to: &str, server: &Container) -> Result<()> {
    // One client socket cannot be seen as itself through two host ports or addresses at once.
    static PORTS: AtomicU16 = AtomicU16::new(40_000);
    let [tcp, udp] =
        [(); 2].map(|()| format!("{client}:{}", PORTS.fetch_add(1, Ordering::Relaxed)));
    let seen = from.peer(&["get", to, "--bind", &tcp])?;
    ensure!(seen == tcp, "the server sees {seen}, not {tcp}");
    let seen = from.peer(&["udp", to, "hello", "--bind", &udp])?;
    ensure!(
        seen == format!("{udp} hello"),
        "the server sees {seen}, not {udp}"
    );
    let logs = server.logs()?;
    for line in [format!("tcp {tcp}"), format!("udp {udp}")] {
        ensure!(
            logs.lines().any(|logged| logged == line),
            "no {line} in: {logs}"
        );
    }
    Ok(())
}

/// The server sees the client's own address at every address of the host.
#[test]
fn server_sees_the_clients_own_address() -> Result<()> {
    let scene = Scene::new("any-address")?;
    let web = scene.run("web", &WEB, &Peer::serve(80))?;
    let at_lan = scene.lan().capture(&scene.host.lan_device())?;
    sees_client(scene.lan(), "198.18.1.2", "198.18.1.1:8080", &web)?;
    let far = scene.lab.far()?;
    sees_client(&far, "198.19.1.2", "198.18.1.1:8080", &web)?;

    scene.host.ip("address add 198.18.1.77/24 dev up0")?;
    eventually(SOON, || {
        sees_client(scene.lan(), "198.18.1.2", "198.18.1.77:8080", &web)
    })?;
    // The gateway's address too, for who has a route to it.
    scene.lan().ip("route add 172.17.0.1/32 via 198.18.1.1")?;
    sees_client(scene.lan(), "198.18.1.2", "172.17.0.1:8080", &web)?;

    scene.host.ip("address del 198.18.1.77/24 dev up0")?;
    eventually(SOON, || {
        let late = ["get", "198.18.1.77:8080", "--timeout", "200"];
        ensure!(
            scene.lan().peer(&late).is_err(),
            "an address that is gone still works"
        );
        Ok(())
    })?;
    let private = "src net 172.16.0.0/12 and not src host 172.17.0.1";
    assert_eq!(at_lan.lines(private)?, Vec::<String>::new());
    Ok(())
}

/// A port that is published at one address is closed at the others.
#[test]
fn port_at_one_address_is_closed_at_others() -> Result<()> {
    let scene = Scene::new("one-address")?;
    scene.host.ip("address add 198.18.1.5/24 dev up0")?;
    let options = ["-p", "198.18.1.5:8080:80", "-p", "198.18.1.5:8080:80/udp"];
    let web = scene.run("web", &options, &Peer::serve(80))?;
    sees_client(scene.lan(), "198.18.1.2", "198.18.1.5:8080", &web)?;
    for verb in [
        &["get", "198.18.1.1:8080"][..],
        &["udp", "198.18.1.1:8080", "x"],
    ] {
        let refused = format!("{:#}", scene.lan().peer(verb).unwrap_err());
        assert!(refused.contains("refused"), "{refused}");
    }
    // Two containers share a port number at two addresses.
    let other = scene.run(
        "other",
        &["-p", "198.18.1.1:8080:80", "-p", "198.18.1.1:8080:80/udp"],
        &Peer::serve(80),
    )?;
    sees_client(scene.lan(), "198.18.1.2", "198.18.1.1:8080", &other)?;
    sees_client(scene.lan(), "198.18.1.2", "198.18.1.5:8080", &web)
}

/// One client socket reaches one container port by two host ports.
#[test]
fn client_socket_reaches_port_by_two_host_ports() -> Result<()> {
    let scene = Scene::new("two-ports")?;
    let options = [&WEB[..], &["-p", "8081:80", "-p", "8081:80/udp"]].concat();
    scene.run("web", &options, &Peer::serve(80))?;
    let ports = ["198.18.1.1:8080", "198.18.1.1:8081"];

    // The reply tuple is the first flow's: the second is seen with another port, and each answer
    // comes back from the port that was asked (the client's socket is connected).
    let udp = |to: &str| {
        let seen = scene
            .lan()
            .peer(&["udp", to, "x", "--bind", "198.18.1.2:40000"])?;
        let seen = seen.split(' ').next().context("an empty answer")?;
        Ok::<SocketAddrV4, anyhow::Error>(seen.parse()?)
    };
    let seen = [udp(ports[0])?, udp(ports[1])?];
    assert_eq!(seen[0].to_string(), "198.18.1.2:40000");
    assert_eq!(*seen[1].ip(), Ipv4Addr::new(198, 18, 1, 2));
    assert_ne!(seen[0], seen[1]);
    assert_eq!([udp(ports[0])?, udp(ports[1])?], seen);

    let mut held = Vec::new();
    for port in ports {
        let mut hold =
            scene
                .lan()
                .spawn_peer(&["hold", "1", port, "--bind", "198.18.1.2:41000"])?;
        hold.line("open 1", SOON)?;
        held.push(hold);
    }
    for hold in &mut held {
        hold.tell("")?;
        hold.line("alive 1", SOON)?;
    }
    Ok(())
}

/// Containers reach published ports by the host's address and by the gateway's.
#[test]
fn containers_reach_ports_by_host_and_gateway() -> Result<()> {
    let scene = Scene::new("hairpin")?;
    scene.host.docker(&["network", "create", "second"])?;
    let web = scene.run("web", &WEB, &Peer::serve(80))?;
    let sibling = scene.run("sibling", &[], &Peer::idle())?;
    let other = scene.run("other", &["--network", "second"], &Peer::idle())?;
    let gateway = other.inspect("{{.NetworkSettings.Networks.second.Gateway}}")?;
    let at_lan = scene.lan().capture(&scene.host.lan_device())?;
    for client in [&web, &sibling, &other] {
        for address in ["198.18.1.1", "172.17.0.1", &gateway] {
            let to = format!("{address}:8080");
            let what = format!("{} to {to}", client.name());
            let tcp = client.peer(&["get", &to]).context(what.clone())?;
            let udp = client.peer(&["udp", &to, "hello"]).context(what.clone())?;
            for seen in [&tcp, &udp] {
                assert!(seen.starts_with("172.17.0.1:"), "{what}: seen as {seen}");
            }
            let bytes = ["fetch", &to, "300000"];
            client.peer(&bytes).context(what)?;
        }
    }
    assert_eq!(at_lan.lines("ip")?, Vec::<String>::new());
    // Two clients with one source port at the same time.
    let hold = ["hold", "1", "198.18.1.1:8080", "--bind", "0.0.0.0:41000"];
    let mut held = [
        sibling.space()?.spawn_peer(&hold)?,
        other.space()?.spawn_peer(&hold)?,
    ];
    for connection in &mut held {
        connection.line("open 1", SOON)?;
    }
    for connection in &mut held {
        connection.tell("")?;
        connection.line("alive 1", SOON)?;
    }
    Ok(())
}

/// What is not published is answered by the host itself.
#[test]
fn unpublished_port_is_answered_by_the_host() -> Result<()> {
    let scene = Scene::new("unpublished")?;
    scene.run("web", &["-p", "8080:80"], &Peer::serve(80))?;
    // TCP 8080 does not open UDP 8080, and 80 is the container's own business.
    for verb in [
        &["udp", "198.18.1.1:8080", "x"][..],
        &["get", "198.18.1.1:80"],
    ] {
        let refused = format!("{:#}", scene.lan().peer(verb).unwrap_err());
        assert!(refused.contains("refused"), "{refused}");
    }
    // A server of the host's beside it is reached by everybody.
    let _server = serve(&scene.host, 7)?;
    let inside = scene.run("inside", &[], &Peer::idle())?;
    assert!(
        scene
            .lan()
            .peer(&["get", "198.18.1.1:7"])?
            .starts_with("198.18.1.2:")
    );
    for to in ["198.18.1.1:7", "172.17.0.1:7"] {
        assert!(inside.peer(&["get", to])?.starts_with("172.17.0.3:"));
    }
    Ok(())
}
