// SPDX-License-Identifier: MIT OR Apache-2.0
//! Chooses the port of a translation, as `nf_nat_l4proto_unique_tuple` does.
//!
//! In this order: the port under which the source is published or that another flow of the source
//! already has (RFC 4787 REQ-1); the source's own port, which keeps TCP timestamps monotonic for
//! the remote; a random port of the same class. The reply tuple's key is inserted with
//! `BPF_NOEXIST`: that is the lock on the port.

use crate::abi::{FlowRef, PortAffinity, PortKey, Published, ServerKey, Tuple};
use crate::attempt::Attempt;
use crate::conntrack::flow;
use crate::environment::FlowTable;
use crate::family::{Address, Be16, Family};
use crate::subprograms::Tracking;
use crate::wire::proto;

/// How many random ports are tried before a flow is refused (nf_nat: 248). With 95 % of the ports
/// taken, all tries fail once in 500,000 flows.
const TRIES: u32 = 256;

/// After this many failed tries the host's own sockets may have taken most ports. From then on,
/// every other try is in the range that the host's users cannot bind.
const TRIES_ANYWHERE: u32 = 16;

/// Who owns the translated address, and may use its ports besides the forwarder's flows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// The host: its sockets and its published ports take precedence.
    Host,
    /// A remote: nobody on this host.
    Remote,
}

/// Takes a free port for `reply.dport` and returns the reply tuple, whose key now leads to `flow`.
/// `inside` is the source before translation.
#[inline(always)]
pub fn draw<F: Family, T: Tracking<F>>(
    tables: &T,
    flow: FlowRef,
    reply: Tuple<F>,
    inside: (F::Addr, Be16),
    owner: Owner,
) -> Option<Tuple<F>> {
    let (src, sport) = inside;
    let (low, count) = class(sport, reply.proto);
    let mut search = Search {
        tables,
        flow,
        reply,
        inside: (owner == Owner::Host).then_some(inside),
        low,
        count,
        tried: 0,
        found: false,
    };
    let known = if owner == Owner::Host {
        known(tables, reply.dst, src, sport, reply.proto)
    } else {
        Be16::default()
    };
    // A flow that is no longer current is ended before its record is collected, so a connection
    // that is opened again keeps its port.
    let found = known != Be16::default() && search.take(known)
        || search.take(sport)
        || flow::end_if_over(tables, &search.reply) && search.take(sport)
        // A protocol without ports has no other port to try.
        || !proto::is_portless(reply.proto, F::ICMP as u32) && search.draw();
    if !found {
        return None;
    }
    if owner == Owner::Host && search.reply.dport != sport {
        remember(tables, flow, &search.reply, src, sport);
    }
    Some(search.reply)
}

/// A search for a free port.
struct Search<'a, F: Family, T> {
    tables: &'a T,
    flow: FlowRef,
    reply: Tuple<F>,
    /// The source before translation, if the host owns the translated address.
    inside: Option<(F::Addr, Be16)>,
    low: u16,
    count: u32,
    tried: u32,
    found: bool,
}

impl<F: Family, T: Tracking<F>> Search<'_, F, T> {
    #[inline(always)]
    fn take(&mut self, port: Be16) -> bool {
        self.reply.dport = port;
        take(self.tables, self.flow, &self.reply, self.inside.as_ref())
    }

    #[inline(always)]
    fn draw(&mut self) -> bool {
        let tables = self.tables;
        tables.attempt(TRIES, self);
        self.found
    }
}

impl<F: Family, T: Tracking<F>> Attempt for Search<'_, F, T> {
    #[inline(always)]
    fn once(&mut self) -> bool {
        self.tried += 1;
        let random = self.tables.random();
        let kept = self.tables.settings().reserved_ports;
        let is_kept = self.tried > TRIES_ANYWHERE
            && self.tried.is_multiple_of(2)
            && self.low == UNPRIVILEGED
            && self.inside.is_some()
            && kept.first != 0;
        let port = if is_kept {
            scale(random, kept.first, (kept.last - kept.first) as u32 + 1)
        } else {
            scale(random, self.low, self.count)
        };
        self.found = self.take(port);
        self.found
    }
}

/// The port that a source should get: the different port under which it is published at this
/// address of the host, or the port that another live flow of the source has, towards any remote
/// (port affinity); 0 for none.
#[inline(never)]
fn known<F: Family, T: FlowTable<F>>(
    tables: &T,
    at: F::Addr,
    src: F::Addr,
    sport: Be16,
    proto: u32,
) -> Be16 {
    let published = seen_as(tables, at, src, sport, proto);
    if published != Be16::default() {
        return published;
    }
    match affinity(tables, src, sport, proto) {
        Some(affinity)
            if affinity
                .holders
                .into_iter()
                .any(|holder| flow::lives(tables, holder)) =>
        {
            affinity.port
        }
        _ => Be16::default(),
    }
}

/// The different port under which a source's port is published at an address of the host: at
/// exactly this address, else at any; 0 for none.
#[inline(always)]
fn seen_as<F: Family, T: FlowTable<F>>(
    tables: &T,
    at: F::Addr,
    src: F::Addr,
    sport: Be16,
    proto: u32,
) -> Be16 {
    let key = ServerKey {
        at,
        addr: src,
        port: sport,
        proto: proto as u16,
    };
    let port = match tables.seen_as(&key) {
        0 => tables.seen_as(&ServerKey {
            at: F::Addr::ANY,
            ..key
        }),
        port => port,
    };
    Be16::new(port as u16)
}

/// The port affinity of a source.
#[inline(always)]
fn affinity<F: Family, T: FlowTable<F>>(
    tables: &T,
    src: F::Addr,
    sport: Be16,
    proto: u32,
) -> Option<PortAffinity<F>> {
    let affinity = tables.affinity(PortAffinity::<F>::place(src, sport, proto))?;
    affinity.is_of(src, sport, proto).then_some(affinity)
}

/// The port of a source's port affinity; 0 for none.
#[inline(never)]
pub(crate) fn drawn<F: Family, T: FlowTable<F>>(
    tables: &T,
    src: F::Addr,
    sport: Be16,
    proto: u32,
) -> Be16 {
    affinity(tables, src, sport, proto).map_or(Be16::default(), |affinity| affinity.port)
}

/// Stores the port that a flow of this source got, as its port affinity.
#[inline(never)]
fn remember<F: Family, T: FlowTable<F>>(
    tables: &T,
    flow: FlowRef,
    reply: &Tuple<F>,
    src: F::Addr,
    sport: Be16,
) {
    let proto = reply.proto;
    let place = PortAffinity::<F>::place(src, sport, proto);
    let mut affinity = PortAffinity {
        src,
        sport,
        port: reply.dport,
        proto,
        holders: [flow; 2],
    };
    if let Some(old) = self::affinity(tables, src, sport, proto)
        && old.port == affinity.port
    {
        let [eldest, youngest] = old.holders;
        affinity.holders[0] = if flow::lives(tables, eldest) {
            eldest
        } else {
            youngest
        };
    }
    tables.set_affinity(place, affinity);
}

/// Takes one port if it is free.
#[inline(never)]
fn take<F: Family, T: FlowTable<F>>(
    tables: &T,
    flow: FlowRef,
    reply: &Tuple<F>,
    inside: Option<&(F::Addr, Be16)>,
) -> bool {
    if let Some(inside) = inside
        && is_hosts(tables, reply, inside)
    {
        return false;
    }
    // The insertion is the lock.
    tables.insert(reply, flow)
}

/// Whether a port of the host is in use: published for another container, or else bound by a
/// socket. A port that is published for the source itself is free for it: its peers are to see it
/// with its published port.
#[inline(always)]
fn is_hosts<F: Family, T: FlowTable<F>>(
    tables: &T,
    reply: &Tuple<F>,
    &(src, sport): &(F::Addr, Be16),
) -> bool {
    match published(tables, reply.dst, reply.dport, reply.proto) {
        Some(to) => to.addr != src || to.port != sport,
        None => tables.socket(reply),
    }
}

/// The port published at an address of the host: at exactly this address, else at any.
#[inline(always)]
pub fn published<F: Family, T: FlowTable<F>>(
    tables: &T,
    addr: F::Addr,
    port: Be16,
    proto: u32,
) -> Option<Published<F>> {
    find(|key| tables.published(key), addr, port, proto)
}

/// [`published`], with a closure that looks up a key.
#[inline(always)]
pub fn find<F: Family>(
    published: impl Fn(&PortKey<F>) -> Option<Published<F>>,
    addr: F::Addr,
    port: Be16,
    proto: u32,
) -> Option<Published<F>> {
    let key = PortKey {
        addr,
        port,
        proto: proto as u16,
    };
    match published(&key) {
        Some(published) => Some(published),
        None => published(&PortKey {
            addr: F::Addr::ANY,
            ..key
        }),
    }
}

/// The lowest port that an unprivileged user may bind.
const UNPRIVILEGED: u16 = 1024;

/// The range that a random port comes from, as its lowest port and the number of ports: below 512,
/// below 1024, or above, as in nf_nat. ICMP identifiers have no classes.
#[inline(always)]
const fn class(port: Be16, protocol: u32) -> (u16, u32) {
    if !matches!(protocol, proto::TCP | proto::UDP | proto::SCTP) {
        (0, 65_536)
    } else if port.get() < 512 {
        (1, 511)
    } else if port.get() < UNPRIVILEGED {
        (600, 424)
    } else {
        (UNPRIVILEGED, 64_512)
    }
}

/// Maps a random number into a range of ports, without dividing by a variable.
#[inline(always)]
fn scale(random: u32, low: u16, count: u32) -> Be16 {
    let offset = ((random as u64 * count as u64) >> 32) as u32;
    Be16::new((low as u32 + offset) as u16)
}
