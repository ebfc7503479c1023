// SPDX-License-Identifier: MIT OR Apache-2.0
//! Quotas that cannot be left behind: what attackers do together, or by ways of which each takes
//! little, leaves a neighbour what it needs.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::{Container, Docker, Host, Lab, Packet, Peer, Space, eventually};
use rustix::process::{Resource, getrlimit, setrlimit};

const SOON: Duration = Duration::from_secs(5);
/// The LAN's address.
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 2);
/// Connects of the neighbour, of which 999 in a thousand must succeed.
const CONNECTS: usize = 600;

/// A server in the LAN that keeps all connections open.
fn serve(lan: &Space) -> Result<()> {
    let listener = lan.enter(|| TcpListener::bind((SERVER, 7)))??;
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming().flatten() {
            let mut byte = [0];
            let mut both = &stream;
            // A client that is gone has no use for an answer.
            let _ = both
                .read_exact(&mut byte)
                .and_then(|()| both.write_all(&byte));
            open.push(stream);
        }
    });
    Ok(())
}

/// One connection with an echo.
fn connect() -> std::io::Result<TcpStream> {
    let to = SocketAddr::from((SERVER, 7));
    let mut stream = TcpStream::connect_timeout(&to, SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

/// Ensures that a container connects as if it were alone.
fn connects(victim: &Container) -> Result<()> {
    let done = victim.space()?.enter(|| {
        let attempts = (0..CONNECTS).map(|_| connect());
        attempts.filter(Result::is_ok).count()
    })?;
    ensure!(
        done * 1000 >= CONNECTS * 999,
        "{done} of {CONNECTS} connects"
    );
    Ok(())
}

fn run(host: &Host, name: &str, options: &[&str]) -> Result<Container> {
    let container = host.run(name, options, &Peer::idle())?;
    host.settle(name)?;
    Ok(container)
}

/// Frames of a container towards the LAN, from one port each.
fn frames(host: &Host, container: &Container, ports: std::ops::Range<u16>) -> Result<Vec<Vec<u8>>> {
    let address = match container.ip()? {
        std::net::IpAddr::V4(address) => address,
        other @ std::net::IpAddr::V6(_) => anyhow::bail!("{other}"),
    };
    let (gateway, own) = (host.mac("docker0")?, container.space()?.mac("eth0")?);
    let to = SocketAddrV4::new(SERVER, 9);
    let scan = |port| Packet::udp(SocketAddrV4::new(address, port), to, b"scan");
    Ok(ports.map(|port| scan(port).frame(gateway, own)).collect())
}

#[test]
fn greedy_containers_leave_a_third_its_flows() -> Result<()> {
    // Both ends of each connection are this process's: fewer flows than by default have room.
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    let lab = Lab::new("quotas-greedy")?;
    let host = lab.host(Docker::replace())?;
    let _agent = host.agent().arg("--flows=12288").start()?;
    serve(lab.lan())?;
    let mut open = Vec::new();
    for name in ["greedy1", "greedy2"] {
        let greedy = run(&host, name, &[])?;
        let refused = greedy.space()?.enter(|| {
            loop {
                match connect() {
                    // More than there are records.
                    Ok(stream) if open.len() < 13_000 => open.push(stream),
                    Ok(_) => break None,
                    Err(error) => break Some(error),
                }
            }
        })?;
        let refused = refused.context("it was never refused")?;
        ensure!(refused.kind() == ErrorKind::HostUnreachable, "{refused}");
    }
    ensure!(
        (6_144..9_216).contains(&open.len()),
        "{} are open",
        open.len()
    );
    connects(&run(&host, "victim", &[])?)
}

/// The flood of a sibling spares a conversation that rests.
#[test]
fn siblings_flood_spares_an_idle_connection() -> Result<()> {
    let lab = Lab::new("quotas-resting")?;
    let host = lab.host(Docker::replace())?;
    let _agent = host
        .agent()
        .arg("--flows=2048")
        .arg("--flow-rate=0")
        .start()?;
    let victim = run(&host, "victim", &[])?;
    let flooder = run(&host, "flooder", &[])?;
    let server = lab.lan().enter(|| UdpSocket::bind((SERVER, 53)))??;
    let client = victim
        .space()?
        .enter(|| UdpSocket::bind("0.0.0.0:4000"))??;
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(SOON))?;
    }
    client.send_to(b"query", (SERVER, 53))?;
    let (_, seen_as) = server.recv_from(&mut [0; 64])?;
    server.send_to(b"answer", seen_as)?;
    client.recv_from(&mut [0; 64])?;
    // Many turns of the ring.
    flooder
        .space()?
        .send_frames("eth0", &frames(&host, &flooder, 10_000..20_000)?)?;
    eventually(SOON, || {
        let reasons = host.json("status")?;
        let sent = reasons["reasons"]["forwarded"].as_u64().unwrap_or(0);
        ensure!(sent >= 10_000, "{sent} of the flood were forwarded");
        Ok(())
    })?;
    server.send_to(b"later", seen_as)?;
    client
        .recv_from(&mut [0; 64])
        .context("its conversation was evicted")?;
    Ok(())
}
