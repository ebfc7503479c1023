// SPDX-License-Identifier: MIT OR Apache-2.0
//! Socket redirection: which sockets of the host connect to a container instead of the host's
//! published port (local access), which ports a socket may bind, and which packets find no socket.
//!
//! No packet is rewritten: the socket is connected to the container once, and its original
//! destination is remembered, so that `getpeername` and `recvmsg` can return it. A socket of one
//! family may reach peers of the other one (IPv4 as `::ffff:…`). Hence a [`Peer`] has the same form
//! for both families, and published ports are looked up in one [`Family`].

use crate::abi::{Peer, PortKey, PortKey6, Published, Settings};
use crate::family::{Address, Be32, Be128, Family, V4, Wide};
use crate::nat;
use crate::wire::proto;

/// `::1`.
pub const LOOPBACK6: Wide = [Be32::new(0), Be32::new(0), Be32::new(0), Be32::new(1)];

/// The container to which a socket that connects to `asked` is redirected; `None` if it is not
/// redirected.
///
/// `is_local` knows the host's own addresses except for loopback; `published` looks up a published
/// port by exactly this key.
#[inline(always)]
pub fn target<F: Family>(
    asked: &Peer,
    is_local: impl Fn(F::Addr) -> bool,
    published: impl Fn(&PortKey<F>) -> Option<Published<F>>,
) -> Option<Peer> {
    let addr = match F::Addr::narrow(asked.addr) {
        // Connecting to the unspecified address connects to loopback.
        Some(addr) if addr == F::Addr::ANY => F::Addr::LOOPBACK,
        Some(addr) if addr.is_loopback() || is_local(addr) => addr,
        // The loopback address of the other family stands for this host too, but is no address of
        // this family.
        None if is_loopback6(asked.addr) => F::Addr::ANY,
        _ => return None,
    };
    let proto = asked.proto as u32;
    let Published { addr, port, .. } = nat::find(published, addr, asked.port, proto)?;
    Some(Peer {
        addr: addr.widen(),
        port,
        proto: asked.proto,
    })
}

/// Whether a socket that is bound to this address may be redirected to a container. The kernel does
/// not route packets with a loopback source off the host (`EINVAL`).
#[inline(always)]
#[must_use]
pub fn may_leave(bound: Wide) -> bool {
    bound != LOOPBACK6 && !Be32::narrow(bound).is_some_and(Address::is_loopback)
}

/// Whether the address is `::1`, or `::`, which as a destination means the same.
#[inline(always)]
#[must_use]
pub fn is_loopback6(addr: Wide) -> bool {
    addr == LOOPBACK6 || addr == Wide::default()
}

/// The verdict on a request to bind a socket.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bind {
    /// The request proceeds.
    Proceed,
    /// The request proceeds and the agent is notified: from now on this socket receives what
    /// clients send to the port.
    Announce,
    /// The request is refused: the port is reserved for containers.
    Refuse,
}

/// The verdict on a request to bind a socket to `wanted`, by a user of the initial user namespace.
///
/// Only root may bind ports that are reserved for containers. A port that a privileged process
/// binds is a service, whose clients no earlier flow of a container may keep; a port that any other
/// user binds takes nothing from anybody. TCP services need no notification: their clients begin
/// with a SYN, which shows that the packet is not an answer.
#[inline(always)]
#[must_use]
pub fn bind(wanted: &Peer, user: u32, settings: &Settings) -> Bind {
    let port = wanted.port.get();
    let proto = wanted.proto as u32;
    // The kernel chooses for port 0 out of `ip_local_port_range`.
    if port == 0 || !may_get_ipv4(wanted.addr) {
        Bind::Proceed
    } else if user == 0 || (port as u32) < settings.unprivileged_port_start {
        if proto == proto::UDP {
            Bind::Announce
        } else {
            Bind::Proceed
        }
    } else if matches!(proto, proto::TCP | proto::UDP) && settings.reserved_ports.contains(port) {
        Bind::Refuse
    } else {
        Bind::Proceed
    }
}

/// Whether a socket that is bound to this address may receive packets to an IPv4 address of the
/// host: not if bound to loopback, and for IPv6 only if bound to the unspecified address.
#[inline(always)]
fn may_get_ipv4(bound: Wide) -> bool {
    match Be32::narrow(bound) {
        Some(addr) => !addr.is_loopback(),
        None => bound == Wide::default(),
    }
}

/// The index of the loopback device, in every network namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK_IFINDEX: u32 = 1;

/// A packet for which the kernel looks up a socket of the host.
#[derive(Clone, Copy, Debug)]
pub struct Lookup {
    /// The packet's source address.
    pub remote: Wide,
    /// The packet's destination.
    pub local: Peer,
}

/// Whether a packet may find a socket of the host. A packet to a published port may not if it
/// arrived on a device without an entry: no hook there has checked the port's list of clients
/// before docker-proxy gets the packet.
///
/// Everything else finds its socket, and so does what the host sends to itself: by loopback, or by
/// IPv6 to an address of such a device, in which case source and destination are the same.
#[inline(always)]
pub fn may_be_served(
    ingress_ifindex: u32,
    lookup: impl FnOnce() -> Lookup,
    has_entry: impl Fn(u32) -> bool,
    is_published: impl Fn(&PortKey<V4>) -> bool,
    is_published6: impl Fn(&PortKey6) -> bool,
) -> bool {
    if ingress_ifindex <= LOOPBACK_IFINDEX || has_entry(ingress_ifindex) {
        return true;
    }
    let Lookup { remote, local } = lookup();
    if remote == local.addr {
        return true;
    }
    let Peer { addr, port, proto } = local;
    match Be32::narrow(addr) {
        Some(addr) => {
            let key = |addr| PortKey { addr, port, proto };
            !is_published(&key(addr)) && !is_published(&key(Be32::ANY))
        }
        None => {
            let key = |addr| PortKey6 { addr, port, proto };
            !is_published6(&key(Be128::from_words(addr))) && !is_published6(&key(Be128::ANY))
        }
    }
}
