//! Local access: where a socket of the host's is pointed when it asks for a published port of the
//! host's own.
//!
//! No packet is rewritten: the socket is connected to the container once, and what it asked for is
//! remembered so that it can be told. A socket of one family reaches peers of another (IPv4 by way
//! of `::ffff:`), hence one form of a [`Peer`] for all of them, and what is published in one
//! [`Family`] is looked up by it.

use crate::abi::{Peer, PortKey, Published};
use crate::family::{Address, Be32, Family, Wide};
use crate::nat;

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
