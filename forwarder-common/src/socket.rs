// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sockets of the host's: where one is pointed that asks for a published port of the host's own
//! (local access), and which ports one may be bound to.
//!
//! No packet is rewritten: the socket is connected to the container once, and what it asked for is
//! remembered so that it can be told. A socket of one family reaches peers of another (IPv4 by way
//! of `::ffff:`), hence one form of a [`Peer`] for all of them, and what is published in one
//! [`Family`] is looked up by it.

use crate::abi::{Peer, PortKey, Published, Settings};
use crate::family::{Address, Be32, Family, Wide};
use crate::nat;
use crate::parse::proto;

/// `::1`.
pub const LOOPBACK6: Wide = [Be32::new(0), Be32::new(0), Be32::new(0), Be32::new(1)];

/// The peer to point a socket at that asks for `asked`, or none: then it goes where it asked.
///
/// `is_local` knows the host's own addresses but for loopback's, `published` what is published
/// under exactly a key.
#[inline(always)]
pub fn target<F: Family>(
    asked: &Peer,
    is_local: impl Fn(F::Addr) -> bool,
    published: impl Fn(&PortKey<F>) -> Option<Published<F>>,
) -> Option<Peer> {
    let addr = match F::Addr::narrow(asked.addr) {
        // To connect to nowhere is to connect to oneself.
        Some(addr) if addr == F::Addr::ANY => F::Addr::LOOPBACK,
        Some(addr) if addr.is_loopback() || is_local(addr) => addr,
        // The other family's loopback stands for this host as well, and is nobody's address here.
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

/// Whether a socket that is bound to this address may be pointed at a container: the kernel routes
/// nothing off the host that comes from a loopback address (`EINVAL`).
#[inline(always)]
#[must_use]
pub fn may_leave(bound: Wide) -> bool {
    bound != LOOPBACK6 && !Be32::narrow(bound).is_some_and(Address::is_loopback)
}

/// `::1`, and `::`, which a destination means it by.
#[inline(always)]
#[must_use]
pub fn is_loopback6(addr: Wide) -> bool {
    addr == LOOPBACK6 || addr == Wide::default()
}

/// What becomes of a request to bind a socket.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bind {
    /// It goes on.
    Proceed,
    /// It goes on, and the agent is told: from now on the port's clients are this socket's.
    Announce,
    /// It is refused: the port is kept for containers.
    Refuse,
}

/// What becomes of a request to bind a socket to `wanted`, made by a user of the initial user
/// namespace.
///
/// Nobody but root takes the ports that are kept for containers. What a privileged process binds is
/// a service, whose clients no container's earlier flow may keep; what any other user binds takes
/// nothing from anybody. TCP's services need no announcement: a client begins by a SYN, which shows
/// whom it is for.
#[inline(always)]
#[must_use]
pub fn bind(wanted: &Peer, user: u32, settings: &Settings) -> Bind {
    let port = wanted.port.get();
    let proto = wanted.proto as u32;
    // The kernel draws port 0 from `ip_local_port_range`.
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

/// Whether a socket that is bound to this address may get what comes to an IPv4 address of the
/// host's: not by loopback, and by IPv6 only where it is bound to any address.
#[inline(always)]
fn may_get_ipv4(bound: Wide) -> bool {
    match Be32::narrow(bound) {
        Some(addr) => !addr.is_loopback(),
        None => bound == Wide::default(),
    }
}
