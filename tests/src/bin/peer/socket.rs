// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sockets with the clients' options: bound, with a TTL, never waiting longer than requested.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};

use anyhow::{Context as _, Result};
use rustix::net::sockopt::{
    Timeout, set_ip_ttl, set_ipv6_unicast_hops, set_ipv6_v6only, set_socket_reuseaddr,
    set_socket_timeout,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};

use crate::Options;

/// Connects; `--timeout` limits the connect, each read and each write.
pub(crate) fn tcp(to: SocketAddr, options: &Options) -> Result<TcpStream> {
    let family = if to.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let fd = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&fd, Timeout::Send, Some(options.timeout))?;
    set_socket_timeout(&fd, Timeout::Recv, Some(options.timeout))?;
    match options.ttl {
        Some(ttl) if to.is_ipv4() => set_ip_ttl(&fd, ttl)?,
        Some(ttl) => set_ipv6_unicast_hops(&fd, Some(u8::try_from(ttl)?))?,
        None => {}
    }
    if options.v6only {
        set_ipv6_v6only(&fd, true)?;
    }
    if let Some(from) = options.bind {
        // One local port can connect to many remotes, and again immediately after a close.
        set_socket_reuseaddr(&fd, true)?;
        bind(&fd, &from).with_context(|| format!("cannot bind to {from}"))?;
    }
    connect(&fd, &to).with_context(|| format!("cannot connect to {to}"))?;
    Ok(TcpStream::from(fd))
}

/// Returns a connected UDP socket, so that ICMP errors are returned as errors.
pub(crate) fn udp(to: SocketAddr, options: &Options) -> Result<UdpSocket> {
    let socket = unconnected(to, options)?;
    socket.connect(to)?;
    Ok(socket)
}

/// Returns a UDP socket of the family of its later destination.
pub(crate) fn unconnected(to: SocketAddr, options: &Options) -> Result<UdpSocket> {
    let any = match to {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let from = options.bind.unwrap_or(any);
    let socket = UdpSocket::bind(from).with_context(|| format!("cannot bind to {from}"))?;
    socket.set_read_timeout(Some(options.timeout))?;
    if let Some(ttl) = options.ttl {
        socket.set_ttl(ttl)?;
    }
    Ok(socket)
}
