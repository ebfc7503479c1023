// SPDX-License-Identifier: MIT OR Apache-2.0
//! The shim's socket: whoever speaks there publishes nothing but a port that it holds, into a
//! network of Docker's, and only as whoever administers the network.

use std::io::{BufRead as _, BufReader, IoSlice};
use std::mem::MaybeUninit;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::{Docker, Finished, Host, Lab, Peer, eventually, forwarder_proxy_bin};
use rustix::cmsg_space;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Longer than a claim waits for Docker's agreement.
const ANSWER: Duration = Duration::from_secs(8);
/// A port of the host's that nobody publishes.
const FREE: u16 = 9000;

/// A claim of TCP port [`FREE`] for the container's port.
fn line((address, port): (&str, u16)) -> String {
    format!(
        "{{\"verb\":\"bind\",\"proto\":\"tcp\",\"host_ip\":\"0.0.0.0\",\"host_port\":{FREE},\
         \"container_ip\":\"{address}\",\"container_port\":{port},\"orphan\":false}}\n"
    )
}

/// What the agent answers to a claim that comes with a socket.
fn claim(host: &Host, to: (&str, u16), socket: Option<&OwnedFd>) -> Result<String> {
    let line = line(to);
    let stream = UnixStream::connect(host.state_dir().join("forwarder.sock"))?;
    stream.set_read_timeout(Some(ANSWER))?;
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let sockets: Vec<_> = socket.iter().map(|socket| socket.as_fd()).collect();
    if socket.is_some() {
        control.push(SendAncillaryMessage::ScmRights(&sockets));
    }
    let bytes = [IoSlice::new(line.as_bytes())];
    sendmsg(&stream, &bytes, &mut control, SendFlags::NOSIGNAL)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(answer)
}

/// The shim itself, started by hand for TCP port [`FREE`]. One that is
/// believed would go on: it is interrupted then, and says nothing.
fn shim(host: &Host, to: (&str, u16)) -> Result<Finished> {
    let folder = format!("FORWARDER_STATE_DIR={}", host.state_dir().display());
    let (program, port) = (forwarder_proxy_bin()?, FREE.to_string());
    let program = program.to_str().context("not UTF-8")?;
    let own = to.1.to_string();
    let shim = [
        program,
        "-proto",
        "tcp",
        "-host-ip",
        "0.0.0.0",
        "-host-port",
        &port,
        "-container-ip",
        to.0,
        "-container-port",
        &own,
    ];
    let interrupted = ["env", &folder, "timeout", "-s", "INT", "8"];
    host.output(&[&interrupted[..], &shim].concat())
}

/// The shims' socket publishes only ports that the caller holds.
///
/// A process with nothing but the capability to send raw packets, root without a port, a port of
/// another namespace or of nobody's, an address outside, a container's secret port: none is
/// published. What dockerd starts is.
#[test]
fn shim_socket_publishes_the_callers_ports_only() -> Result<()> {
    let lab = Lab::new("claims")?;
    let host = lab.host(Docker::replace_with_shim())?;
    let _agent = host.agent().start()?;
    let web = host.run("web", &["-p", "0.0.0.0:8080:80"], &Peer::serve(80))?;
    let address = web.ip()?.to_string();
    let to = (address.as_str(), 80);
    let listener = |port| TcpListener::bind(("0.0.0.0", port)).map(OwnedFd::from);
    let datagrams = || UdpSocket::bind(("0.0.0.0", FREE)).map(OwnedFd::from);

    let refused = |to: (&str, u16), socket: Option<&OwnedFd>, why: &str| -> Result<()> {
        let answer = claim(&host, to, socket)?;
        ensure!(
            answer.starts_with("{\"error\":") && answer.contains(why),
            "{answer}, not {why}"
        );
        Ok(())
    };
    refused(to, None, "without a socket that holds 0.0.0.0:9000/tcp")?;
    refused(
        to,
        Some(&host.enter(|| listener(FREE + 1))??),
        "is bound to 0.0.0.0:9001",
    )?;
    refused(to, Some(&host.enter(datagrams)??), "has another protocol")?;
    let outside = lab.lan().enter(|| listener(FREE))??;
    refused(to, Some(&outside), "belongs to another network namespace")?;
    let own = || host.enter(|| listener(FREE));
    refused(
        ("198.18.1.2", 80),
        Some(&own()??),
        "is not in a Docker network",
    )?;
    refused(
        (&address, 5432),
        Some(&own()??),
        "Docker does not publish port 5432 of web",
    )?;

    let socket = host.state_dir().join("forwarder.sock");
    let script = format!(
        "(echo '{}'; sleep 2) | socat - UNIX:{}",
        line(to).trim(),
        socket.display()
    );
    let bounded = ["setpriv", "--inh-caps=-all", "--bounding-set=-all,+net_raw"];
    let said = host.cmd(&[&bounded[..], &["sh", "-c", &script]].concat())?;
    ensure!(
        said.contains("lacks CAP_NET_ADMIN: only dockerd's shims publish ports"),
        "{said}"
    );
    let said = shim(&host, ("198.18.1.2", 80))?.stderr;
    ensure!(
        said.contains("198.18.1.2 is not in a Docker network"),
        "{said}"
    );

    let ports = host.json("ports")?;
    let all = ports.as_array().context("no list")?;
    ensure!(all.len() == 1 && all[0]["host_port"] == 8080, "{ports}");
    lab.lan().peer(&["get", "198.18.1.1:8080"])?;

    // Whoever is believed for a moment, before Docker has said all, is not for long.
    let other = claim(&host, to, Some(&own()??))?;
    eventually(Duration::from_secs(15), || {
        let ports = host.json("ports")?;
        ensure!(
            ports.as_array().is_some_and(|all| all.len() == 1),
            "{other}: {ports}"
        );
        Ok(())
    })?;
    lab.lan().peer(&["get", "198.18.1.1:8080"])?;
    Ok(())
}
