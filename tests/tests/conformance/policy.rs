// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who may come in: lists by published port, by container and by network, on the client's own
//! address and the port that it asked.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use harness::{Far, Peer, Space, eventually};

use crate::SOON;
use crate::ask::{is_kept_from, reaches};
use crate::site::Site;

/// What is promised.
const IN_FORCE: Duration = Duration::from_secs(1);
/// And this is what a machine that others use as well may take to show it.
const SEEN: Duration = Duration::from_secs(2);

/// Ports 8080 and 8081 of both transports, both of them the container's 80.
const PORTS: [&str; 8] = [
    "-p",
    "8080:80",
    "-p",
    "8080:80/udp",
    "-p",
    "8081:80",
    "-p",
    "8081:80/udp",
];

/// A server with these labels, and somebody far away (198.19.1.2) beside the LAN (198.18.1.2).
fn scene(site: &Site, labels: &[&str]) -> Result<Far> {
    let far = site.lab.far()?;
    let labels: Vec<_> = labels.iter().flat_map(|label| ["--label", label]).collect();
    site.run("web", &[&labels[..], &PORTS].concat(), &Peer::serve(80))?;
    Ok(far)
}

/// Who of the two reaches which of the two ports.
fn expect(site: &Site, far: &Far, ports: [[bool; 2]; 2]) -> Result<()> {
    let clients: [(&Space, &str); 2] = [(site.lan(), "198.18.1.2"), (far, "198.19.1.2")];
    for ((from, client), ports) in clients.into_iter().zip(ports) {
        for (port, open) in [8080, 8081].into_iter().zip(ports) {
            let to = format!("198.18.1.1:{port}");
            if open {
                reaches(from, &to, client)?;
            } else {
                is_kept_from(from, &to).with_context(|| format!("{client} at {port}"))?;
            }
        }
    }
    Ok(())
}

/// A container's label lets in the clients that it names and nobody else.
#[test]
fn container_label_allows_named_clients_only() -> Result<()> {
    let site = Site::ours("policy-allow")?;
    let far = scene(&site, &["forwarder.ingress.allow=198.19.1.2/32,10.0.0.0/8"])?;
    expect(&site, &far, [[false; 2], [true; 2]])
}

/// A container's label keeps out the clients that it names, though another label lets them in.
#[test]
fn deny_label_precedes_the_allow_label() -> Result<()> {
    let site = Site::ours("policy-deny")?;
    let labels = [
        "forwarder.ingress.allow=198.18.0.0/15",
        "forwarder.ingress.deny=198.18.1.2/32",
    ];
    let far = scene(&site, &labels)?;
    expect(&site, &far, [[false; 2], [true; 2]])
}

/// A port's label is about the host port that the client asks.
#[test]
fn port_label_is_for_the_requested_host_port() -> Result<()> {
    let site = Site::ours("policy-port")?;
    let labels = [
        "forwarder.ingress.8080/tcp.deny=198.18.1.0/24",
        "forwarder.ingress.8080/udp.deny=198.18.1.0/24",
        "forwarder.ingress.8081/tcp.allow=198.18.1.2/32",
        "forwarder.ingress.8081/udp.allow=198.18.1.2/32",
    ];
    let far = scene(&site, &labels)?;
    expect(&site, &far, [[false, true], [true, false]])
}

/// A network's list in the configuration is for all of its ports.
#[test]
fn network_list_in_file_holds_for_all_its_ports() -> Result<()> {
    let list = "[network.bridge]\ningress-allow = [\"198.18.0.0/15\"]\ningress-deny = [\"198.19.0.0/16\"]\n";
    let site = Site::configured("policy-network", list)?;
    let far = scene(&site, &[])?;
    expect(&site, &far, [[true; 2], [false; 2]])?;
    // Other networks are none of its business.
    site.network("other", &[])?;
    let other = ["--network=other", "-p", "8082:80", "-p", "8082:80/udp"];
    site.run("other", &other, &Peer::serve(80))?;
    reaches(&far, "198.18.1.1:8082", "198.19.1.2")?;
    site.reconfigure("[network.bridge\n")?;
    expect(&site, &far, [[true; 2], [false; 2]]).context("a wrong file changes nothing")?;
    site.reconfigure("")?;
    eventually(SOON, || expect(&site, &far, [[true; 2]; 2]))
}

/// The far one's datagrams, a hundred in a second, from now until the end.
fn flood(socket: &UdpSocket, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        // Being refused is what this is about.
        let _ = socket.send_to(b"flood", "198.18.1.1:8080");
        sleep(Duration::from_millis(10));
    }
}

/// A denial ends flows that are already on the fast path within a second.
#[test]
fn denial_ends_flows_within_a_second() -> Result<()> {
    let site = Site::ours("policy-live")?;
    let far = scene(&site, &[])?;
    let fetch = [
        "fetch",
        "198.18.1.1:8080",
        "100000000",
        "--rate=2000000",
        "--timeout=500",
    ];
    let mut denied = far.spawn_peer(&fetch)?;
    let mut allowed = site.lan().spawn_peer(&fetch)?;
    let socket = far.enter(|| UdpSocket::bind("198.19.1.2:40000"))??;
    let inside = site.host.container("web").space()?.capture("eth0")?;
    let over = AtomicBool::new(false);
    scope(|scope| {
        scope.spawn(|| flood(&socket, &over));
        let ended = (|| {
            denied.line("at ", SOON)?;
            allowed.line("at ", SOON)?;
            let datagrams = || Ok::<_, anyhow::Error>(inside.lines("udp and dst port 80")?.len());
            eventually(SOON, || {
                ensure!(datagrams()? > 20, "no flood to end");
                Ok(())
            })?;
            site.reconfigure("[network.bridge]\ningress-deny = [\"198.19.0.0/16\"]\n")?;
            let begun = Instant::now();
            let mut last = (datagrams()?, Instant::now());
            while begun.elapsed() < SEEN {
                let now = datagrams()?;
                if now > last.0 {
                    last = (now, Instant::now());
                }
                sleep(Duration::from_millis(20));
            }
            let late = last.1.duration_since(begun);
            println!("the last datagram came {late:?} after the file was changed");
            ensure!(late < IN_FORCE, "datagrams for {late:?}");
            ensure!(!denied.wait(SEEN)?.success(), "the stream went on");
            let before = allowed.lines().len();
            eventually(SOON, || {
                ensure!(
                    allowed.lines().len() > before,
                    "the others' stream stands still"
                );
                Ok(())
            })
        })();
        over.store(true, Ordering::Relaxed);
        ended
    })
}
