// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ports over time: who held a port of the host before it was published or listened on, and who
//! speaks from the port that it publishes.

use std::net::UdpSocket;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use harness::{Docker, Host, Lab, Peer, Space, eventually};
use rustix::process::Uid;
use rustix::thread::set_thread_res_uid;

const SOON: Duration = Duration::from_secs(5);
const CLIENT: &str = "198.18.1.2:700";
const SECRET: &[u8] = b"password";

/// A datagram socket in a namespace.
fn socket(space: &Space, address: &str) -> Result<UdpSocket> {
    let socket = space.enter(|| UdpSocket::bind(address))??;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    Ok(socket)
}

fn hears(socket: &UdpSocket) -> bool {
    let mut datagram = [0; 64];
    let heard = socket.recv_from(&mut datagram);
    heard.is_ok_and(|(length, _)| datagram[..length] == *SECRET)
}

/// A container that holds a port towards a client before anybody serves there.
fn lurk(host: &Host, port: u16) -> Result<UdpSocket> {
    let thief = host.run(&format!("thief{port}"), &[], &Peer::idle())?;
    let lurks = socket(&thief.space()?, &format!("0.0.0.0:{port}"))?;
    lurks.send_to(b"x", CLIENT)?;
    Ok(lurks)
}

/// Whether the thief and the server that comes later hear the client's secret.
fn published_later(host: &Host, lan: &Space, settle: bool) -> Result<(bool, bool)> {
    let lurks = lurk(host, 5300)?;
    let server = host.run("server", &["-p", "5300:5300/udp"], &Peer::idle())?;
    if settle {
        host.settle("server")?;
    }
    let serves = socket(&server.space()?, "0.0.0.0:5300")?;
    socket(lan, CLIENT)?.send_to(SECRET, (host.address(), 5300))?;
    Ok((hears(&lurks), hears(&serves)))
}

#[test]
fn later_publication_gets_its_clients() -> Result<()> {
    for docker in [Docker::replace(), Docker::replace_with_shim()] {
        let lab = Lab::new("ports-later")?;
        let host = lab.host(docker)?;
        let _agent = host.agent().start()?;
        let heard = published_later(&host, lab.lan(), true)?;
        ensure!(heard == (false, true), "thief and server: {heard:?}");
    }
    Ok(())
}

/// The control: the kernel's tracking keeps the port for the one who was first.
#[test]
fn stock_gives_later_clients_to_the_older_flow() -> Result<()> {
    let lab = Lab::new("ports-stock")?;
    let host = lab.host(Docker::stock())?;
    let heard = published_later(&host, lab.lan(), false)?;
    ensure!(heard == (true, false), "thief and server: {heard:?}");
    Ok(())
}

#[test]
fn later_service_of_the_host_gets_its_clients() -> Result<()> {
    let lab = Lab::new("ports-host")?;
    let host = lab.host(Docker::replace())?;
    let _agent = host.agent().start()?;
    let lurks = lurk(&host, 5301)?;
    host.settle("thief5301")?;
    lurks.send_to(b"x", CLIENT)?;
    let serves = socket(&host, "0.0.0.0:5301")?;
    // Longer than an answer takes that is the container's.
    sleep(Duration::from_millis(2500));
    lurks.send_to(b"x", CLIENT)?;
    socket(lab.lan(), CLIENT)?.send_to(SECRET, (host.address(), 5301))?;
    let heard = (hears(&lurks), hears(&serves));
    ensure!(heard == (false, true), "thief and service: {heard:?}");
    Ok(())
}

/// A container holds the port towards a client that has even answered it, and a service binds the port:
/// whether thief and service hear what the client says within a second.
fn bound_later(host: &Host, lan: &Space, settle: bool) -> Result<(bool, bool)> {
    let lurks = lurk(host, 5303)?;
    let client = socket(lan, CLIENT)?;
    if settle {
        host.settle("thief5303")?;
    }
    let holds = eventually(SOON, || {
        lurks.send_to(b"x", CLIENT)?;
        Ok(client.recv_from(&mut [0; 64])?.1)
    })?;
    ensure!(holds == (host.address(), 5303).into(), "held is {holds}");
    client.send_to(SECRET, holds)?;
    ensure!(hears(&lurks), "the thief holds nothing");
    let serves = socket(host, "0.0.0.0:5303")?;
    sleep(Duration::from_millis(700));
    lurks.send_to(b"x", CLIENT)?;
    client.send_to(SECRET, holds)?;
    Ok((hears(&lurks), hears(&serves)))
}

/// A service that is bound later gets its client, though the client has answered the flow of a
/// container that had taken the port.
#[test]
fn service_gets_the_client_of_an_older_flow() -> Result<()> {
    let lab = Lab::new("ports-bound")?;
    let host = lab.host(Docker::replace())?;
    let _agent = host.agent().start()?;
    let heard = bound_later(&host, lab.lan(), true)?;
    ensure!(heard == (false, true), "thief and service: {heard:?}");
    Ok(())
}

/// The control: the kernel's tracking keeps the port for the one who was first.
#[test]
fn stock_leaves_services_client_to_older_flow() -> Result<()> {
    let lab = Lab::new("ports-bound-stock")?;
    let host = lab.host(Docker::stock())?;
    let heard = bound_later(&host, lab.lan(), false)?;
    ensure!(heard == (true, false), "thief and service: {heard:?}");
    Ok(())
}

/// A datagram socket of the host's, bound by a user.
fn users_socket(host: &Host, address: &str) -> Result<UdpSocket> {
    let user = host.enter(|| {
        let nobody = Uid::from_raw(65534);
        set_thread_res_uid(nobody, nobody, nobody)?;
        UdpSocket::bind(address)
    })??;
    user.set_read_timeout(Some(Duration::from_millis(500)))?;
    Ok(user)
}

/// Whether thief and service hear a client that has been silent since the container took the port.
fn silent_client(host: &Host, lan: &Space, heard_by: [&UdpSocket; 2]) -> Result<(bool, bool)> {
    let [thief, service] = heard_by;
    let port = service.local_addr()?.port();
    socket(lan, CLIENT)?.send_to(SECRET, (host.address(), port))?;
    Ok((hears(thief), hears(service)))
}

/// A service that a user binds, or that is bound while no agent lives, gets a client that has said
/// nothing for two seconds since a container took the port. The container goes on all the time.
#[test]
fn users_service_gets_a_client_that_was_silent() -> Result<()> {
    for away in [false, true] {
        let lab = Lab::new("ports-silent")?;
        let host = lab.host(Docker::replace())?;
        let mut agent = host.agent().start()?;
        let lurks = lurk(&host, 5306)?;
        host.settle("thief5306")?;
        let serves = if away {
            agent.kill()?;
            socket(&host, "0.0.0.0:5306")?
        } else {
            users_socket(&host, "0.0.0.0:5306")?
        };
        for _ in 0..5 {
            lurks.send_to(b"x", CLIENT)?;
            sleep(Duration::from_millis(500));
        }
        let heard = silent_client(&host, lab.lan(), [&lurks, &serves])?;
        ensure!(heard == (false, true), "thief and service: {heard:?}");
    }
    Ok(())
}

/// The control: the kernel's tracking gives the container what the client says, half a minute
/// after the container's only datagram.
#[test]
fn stock_gives_a_silent_client_to_the_container() -> Result<()> {
    let lab = Lab::new("ports-silent-stock")?;
    let host = lab.host(Docker::stock())?;
    let lurks = lurk(&host, 5306)?;
    let serves = users_socket(&host, "0.0.0.0:5306")?;
    sleep(Duration::from_secs(25));
    let heard = silent_client(&host, lab.lan(), [&lurks, &serves])?;
    ensure!(heard == (true, false), "thief and service: {heard:?}");
    Ok(())
}

/// What a user of the host binds takes no answer from a container, whatever services are bound beside.
#[test]
fn users_bind_takes_no_answer_of_a_container() -> Result<()> {
    let lab = Lab::new("ports-user")?;
    let host = lab.host(Docker::replace())?;
    let _agent = host.agent().start()?;
    let asks = lurk(&host, 5304)?;
    host.settle("thief5304")?;
    let user = users_socket(&host, "0.0.0.0:5304")?;
    let _service = socket(&host, "0.0.0.0:5305")?;
    sleep(Duration::from_millis(700));
    socket(lab.lan(), CLIENT)?.send_to(SECRET, (host.address(), 5304))?;
    let heard = (hears(&asks), hears(&user));
    ensure!(heard == (true, false), "container and user: {heard:?}");
    Ok(())
}

/// A server that calls first from the port that it publishes, as SIP, games and WireGuard do.
fn calls_first(host: &Host, lan: &Space, settle: bool, port: u16) -> Result<()> {
    let published = format!("{port}:5302/udp");
    let server = host.run("server", &["-p", &published], &Peer::idle())?;
    if settle {
        host.settle("server")?;
    }
    let serves = socket(&server.space()?, "0.0.0.0:5302")?;
    let client = socket(lan, CLIENT)?;
    let from = eventually(SOON, || {
        serves.send_to(b"call", CLIENT)?;
        Ok(client.recv_from(&mut [0; 64])?.1)
    })?;
    ensure!(
        from == (host.address(), port).into(),
        "it is seen as {from}"
    );
    client.send_to(SECRET, from)?;
    ensure!(hears(&serves), "no answer comes back");
    if settle {
        // Its record has gone, and it goes on.
        host.cli(&["flows", "delete", "--all"])?;
        serves.send_to(b"again", CLIENT)?;
        let again = client.recv_from(&mut [0; 64])?.1;
        ensure!(again == from, "then it is seen as {again}");
    }
    Ok(())
}

#[test]
fn caller_is_seen_by_its_published_port() -> Result<()> {
    for docker in [Docker::replace(), Docker::replace_with_shim()] {
        let lab = Lab::new("ports-first")?;
        let host = lab.host(docker)?;
        let _agent = host.agent().start()?;
        calls_first(&host, lab.lan(), true, 5302)?;
    }
    Ok(())
}

#[test]
fn caller_is_seen_by_the_hosts_port() -> Result<()> {
    for docker in [Docker::replace(), Docker::replace_with_shim()] {
        let lab = Lab::new("ports-other")?;
        let host = lab.host(docker)?;
        let _agent = host.agent().start()?;
        calls_first(&host, lab.lan(), true, 6302)?;
    }
    Ok(())
}

/// The control: the rule that publishes a port is not read backwards.
#[test]
fn stock_shows_callers_by_their_own_port() -> Result<()> {
    let lab = Lab::new("ports-other-stock")?;
    let host = lab.host(Docker::stock())?;
    let seen = calls_first(&host, lab.lan(), false, 6302);
    let why = seen.err().map(|error| format!("{error:#}"));
    let own = format!("it is seen as {}:5302", host.address());
    ensure!(why.as_ref() == Some(&own), "{why:?}");
    Ok(())
}

/// The control: callers on stock Docker are seen by their published port.
#[test]
fn stock_callers_show_their_published_port() -> Result<()> {
    let lab = Lab::new("ports-first-stock")?;
    let host = lab.host(Docker::stock())?;
    calls_first(&host, lab.lan(), false, 5302)
}
