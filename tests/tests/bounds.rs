// SPDX-License-Identifier: MIT OR Apache-2.0
//! One container that wants everything: it is stopped and told so, and its neighbour notices nothing.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use harness::{Container, Docker, Host, Lab, Packet, Peer, Space, eventually};
use rustix::process::{Resource, getrlimit, setrlimit};

const SOON: Duration = Duration::from_secs(5);
/// A container connects to it.
const SERVER: &str = "198.18.1.2:7";
/// Connects of the neighbour, of which 999 in a thousand must succeed.
const CONNECTS: usize = 1000;

/// A host with two containers that do nothing by themselves.
fn host(lab: &Lab) -> Result<(Host, Container, Container)> {
    let host = lab.host(Docker::replace())?;
    let greedy = host.run("greedy", &[], &Peer::idle())?;
    let modest = host.run("modest", &[], &Peer::idle())?;
    Ok((host, greedy, modest))
}

/// A server in the LAN that answers each connection's first byte, and keeps all of them open.
fn serve(lan: &Space) -> Result<()> {
    let listener = lan.enter(|| TcpListener::bind(SERVER))??;
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
    let to: SocketAddr = ([198, 18, 1, 2], 7).into();
    let mut stream = TcpStream::connect_timeout(&to, SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

fn reason(host: &Host, label: &str) -> Result<u64> {
    Ok(host.json("status")?["reasons"][label].as_u64().unwrap_or(0))
}

/// A container at its quota is told at once, and its neighbour connects.
#[test]
fn quota_is_reported_and_spares_the_neighbour() -> Result<()> {
    const QUOTA: usize = 1500;
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    let lab = Lab::new("quota")?;
    let (host, greedy, modest) = host(&lab)?;
    let agent = host
        .agent()
        .arg("--flows=4096")
        .arg(format!("--flow-quota={QUOTA}"))
        .start()?;
    host.settle("greedy")?;
    host.settle("modest")?;
    serve(lab.lan())?;

    let (open, refused) = greedy.space()?.enter(|| {
        let mut open = Vec::new();
        // More than there are records.
        let refused = loop {
            match connect() {
                Ok(stream) if open.len() < 5000 => open.push(stream),
                Ok(_) => break None,
                Err(error) => break Some(error),
            }
        };
        (open, refused)
    })?;
    let refused = refused.context("it was never refused")?;
    assert_eq!(
        (open.len(), refused.kind()),
        (QUOTA, ErrorKind::HostUnreachable)
    );
    // Every protocol is told, long before its patience ends.
    for verb in [
        &["get", SERVER][..],
        &["udp", SERVER, "x"],
        &["ping", "198.18.1.2"],
    ] {
        let start = Instant::now();
        let patient = [verb, &["--timeout", "20000"]].concat();
        let error = format!("{:#}", greedy.peer(&patient).unwrap_err());
        let words = ["No route to host", "unreachable", "prohibited"];
        ensure!(
            words.iter().any(|word| error.contains(word)),
            "{verb:?}: {error}"
        );
        ensure!(
            start.elapsed() < SOON,
            "{verb:?} took {:?}",
            start.elapsed()
        );
    }
    let done = modest.space()?.enter(|| {
        let attempts = (0..CONNECTS).map(|_| connect());
        attempts.filter(Result::is_ok).count()
    })?;
    ensure!(
        done * 1000 >= CONNECTS * 999,
        "{done} of {CONNECTS} connects"
    );
    // What it has goes on.
    for mut stream in &open[..10] {
        stream.write_all(b"y")?;
    }
    let (quota, full) = (reason(&host, "flow-quota")?, reason(&host, "table-full")?);
    ensure!(
        quota >= 4 && full == 0,
        "flow-quota {quota}, table-full {full}"
    );
    eventually(SOON, || {
        let log = agent.log();
        let is_logged = log.lines().any(|line| {
            line.contains("flow-quota") && line.contains("greedy") && line.contains("1500")
        });
        ensure!(is_logged, "the log does not say who it is: {log}");
        Ok(())
    })?;

    // Its share comes back with the end of what it had: nothing of the next life is charged for it.
    drop(open);
    greedy.docker("restart")?;
    host.settle("greedy")?;
    eventually(SOON, || greedy.peer(&["ping", "198.18.1.2"])).map(drop)
}

/// A container that scans is slowed down, and its neighbour is not.
#[test]
fn scan_slows_only_its_own_container() -> Result<()> {
    const RATE: u64 = 500;
    let lab = Lab::new("rate")?;
    let (host, greedy, modest) = host(&lab)?;
    let agent = host.agent().arg(format!("--flow-rate={RATE}")).start()?;
    host.settle("greedy")?;
    host.settle("modest")?;
    serve(lab.lan())?;
    let inside = greedy.space()?;
    let gateway = host.mac("docker0")?;
    let address = match greedy.ip()? {
        std::net::IpAddr::V4(address) => address,
        other => anyhow::bail!("{other}"),
    };
    let own = inside.mac("eth0")?;
    let to = SocketAddrV4::new(lab_server(), 9);
    let scan = |port| Packet::udp(SocketAddrV4::new(address, port), to, b"scan");
    let frames: Vec<_> = (10_000..20_000_u16)
        .map(|port| scan(port).frame(gateway, own))
        .collect();
    let start = Instant::now();
    inside.send_frames("eth0", &frames)?;
    let refused = eventually(SOON, || {
        let (refused, forwarded) = (reason(&host, "flow-rate")?, reason(&host, "forwarded")?);
        ensure!(refused + forwarded >= 10_000, "{refused} and {forwarded}");
        Ok(refused)
    })?;
    let most = RATE * (2 + start.elapsed().as_secs());
    ensure!(10_000 - refused <= most, "{} were opened", 10_000 - refused);
    let done = modest.space()?.enter(|| {
        let attempts = (0..RATE).map(|_| connect());
        attempts.filter(Result::is_ok).count()
    })?;
    ensure!(done as u64 == RATE, "{done} of {RATE} connects");
    eventually(SOON, || {
        ensure!(agent.log().contains("flow-rate"), "{}", agent.log());
        Ok(())
    })
}

/// The server's address.
fn lab_server() -> std::net::Ipv4Addr {
    [198, 18, 1, 2].into()
}
