// SPDX-License-Identifier: MIT OR Apache-2.0
//! `ping`: ICMP echo; over IPv4 it also reports ICMP errors that arrive instead of a reply.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use forwarder_testkit::checksum::sum;
use rustix::net::sockopt::{Timeout, set_ip_ttl, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, ipproto, recvfrom, sendto,
    socket_with,
};

use crate::Options;

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST_6: u8 = 128;
const ECHO_REPLY_6: u8 = 129;
const UNREACHABLE: u8 = 3;
const ECHO_REQUEST: u8 = 8;
const TIME_EXCEEDED: u8 = 11;
/// Bytes of an ICMP header.
const HEADER: usize = 8;

pub(crate) fn ping(to: IpAddr, count: u16, options: &Options) -> Result<()> {
    let (family, icmp, kind) = match to {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, ECHO_REQUEST),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, ECHO_REQUEST_6),
    };
    let fd = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(icmp))
        .context("cannot open a raw socket: run as root")?;
    set_socket_timeout(&fd, Timeout::Recv, Some(options.timeout))?;
    if let Some(ttl) = options.ttl {
        set_ip_ttl(&fd, ttl)?;
    }
    if let Some(from) = options.bind {
        bind(&fd, &from)?;
    }
    // Two pings in one namespace must not take each other's replies.
    let id = (std::process::id() % 0xffff) as u16;
    for sequence in 1..=count {
        let request = echo(kind, id, sequence);
        sendto(&fd, &request, SendFlags::empty(), &SocketAddr::new(to, 0))?;
        let deadline = Instant::now() + options.timeout;
        let answer = loop {
            let mut buffer = [0; 2048];
            let (length, _, from) = recvfrom(&fd, &mut buffer[..], RecvFlags::empty())
                .with_context(|| format!("no reply to number {sequence}"))?;
            let from = from.and_then(|from| SocketAddr::try_from(from).ok());
            let from = from.context("an answer from nobody")?;
            let answer = match to {
                IpAddr::V4(_) => classify(&buffer[..length], id, sequence),
                // The message comes without the IP header.
                IpAddr::V6(_) => is_reply(&buffer[..length], id, sequence).then_some("reply"),
            };
            if let Some(answer) = answer {
                break format!("{answer} from {}", from.ip());
            }
            ensure!(Instant::now() < deadline, "no reply to number {sequence}");
        };
        println!("{answer}");
        ensure!(answer.starts_with("reply"), "not a reply: {answer}");
    }
    Ok(())
}

/// Builds an echo request. For IPv6 the kernel completes the checksum.
fn echo(kind: u8, id: u16, sequence: u16) -> Vec<u8> {
    let mut packet = vec![kind, 0, 0, 0];
    packet.extend(id.to_be_bytes());
    packet.extend(sequence.to_be_bytes());
    packet.extend(b"the forwarder's tests");
    packet.push(0);
    let checksum = !sum(&[&packet]);
    packet[2..4].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// Whether an ICMPv6 message answers our request.
fn is_reply(message: &[u8], id: u16, sequence: u16) -> bool {
    let ids = [id.to_be_bytes(), sequence.to_be_bytes()].concat();
    message.first() == Some(&ECHO_REPLY_6) && message.get(4..HEADER) == Some(&ids[..])
}

/// Returns what an IP packet says about our request, if anything.
fn classify(packet: &[u8], id: u16, sequence: u16) -> Option<&'static str> {
    let message = without_ip_header(packet)?;
    let ours = |echo: &[u8]| {
        echo.get(4..HEADER)
            .is_some_and(|ids| ids == [id.to_be_bytes(), sequence.to_be_bytes()].concat())
    };
    let about_ours = || without_ip_header(message.get(HEADER..)?).map(ours);
    match *message.first()? {
        ECHO_REPLY if ours(message) => Some("reply"),
        UNREACHABLE if about_ours()? => Some("unreachable"),
        TIME_EXCEEDED if about_ours()? => Some("time exceeded"),
        _ => None,
    }
}

fn without_ip_header(packet: &[u8]) -> Option<&[u8]> {
    packet.get(usize::from(packet.first()? & 0xf) * 4..)
}
