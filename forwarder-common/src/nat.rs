// SPDX-License-Identifier: MIT OR Apache-2.0
//! Choosing the port of a translation, as `nf_nat_l4proto_unique_tuple` does.
//!
//! First the port that the source publishes, or that a flow of it has towards others (RFC 4787 REQ-1),
//! then its own (so that TCP timestamps stay monotonic for the remote), then at random in the same class. The
//! reply tuple's key is inserted with "not if it exists": that is the lock.

use crate::abi::{FlowRef, PortAffinity, PortKey, Published, ServerKey, Tuple};
use crate::family::{Address, Be16, Family};
use crate::flow;
use crate::parse::proto;
use crate::tables::{Attempt, Tables, scale};

/// Random ports that are tried before a flow is refused (nf_nat: 248): at 95 % of the ports taken, all
/// fail once in 500,000 flows.
const TRIES: u32 = 256;

/// After so many tries in vain the host's own sockets may have taken most ports: from then on every
/// other one is in the range that its users cannot bind.
const TRIES_ANYWHERE: u32 = 16;

/// Who owns the translated address, and may hold ports of it beside our flows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// The host itself: its sockets and its published ports come first.
    Host,
    /// A remote: nobody.
    Remote,
}

/// Takes a free port for `reply.dport` and returns the reply tuple that now leads to `flow`.
/// `inside` is the source as it came.
#[inline(always)]
pub fn draw<F: Family, T: Tables<F>>(
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
    // A flow that is over goes before its time: a connection made anew keeps its port.
    let found = known != Be16::default() && search.take(known)
        || search.take(sport)
        || flow::end_if_over(tables, &search.reply) && search.take(sport)
        // Without ports there is no other one.
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
    /// The source as it came, where the host owns the translated address.
    inside: Option<(F::Addr, Be16)>,
    low: u16,
    count: u32,
    tried: u32,
    found: bool,
}

impl<F: Family, T: Tables<F>> Search<'_, F, T> {
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

impl<F: Family, T: Tables<F>> Attempt for Search<'_, F, T> {
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

/// The port by which a source has to be seen: its own is published under that other number at this
/// address of the host's, or a flow of it was drawn that one and has it, towards whomever; 0 for none.
#[inline(never)]
fn known<F: Family, T: Tables<F>>(
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

/// The other number under which a source's port is published at an address of the host's: at exactly it,
/// else at any; 0 for none.
#[inline(always)]
fn seen_as<F: Family, T: Tables<F>>(
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

/// What is remembered of the port that a flow of this source was drawn.
#[inline(always)]
fn affinity<F: Family, T: Tables<F>>(
    tables: &T,
    src: F::Addr,
    sport: Be16,
    proto: u32,
) -> Option<PortAffinity<F>> {
    let affinity = tables.affinity(PortAffinity::<F>::place(src, sport, proto))?;
    affinity.is_of(src, sport, proto).then_some(affinity)
}

/// The port that a flow of this source was drawn last; 0 for none.
#[inline(never)]
pub(crate) fn drawn<F: Family, T: Tables<F>>(
    tables: &T,
    src: F::Addr,
    sport: Be16,
    proto: u32,
) -> Be16 {
    affinity(tables, src, sport, proto).map_or(Be16::default(), |affinity| affinity.port)
}

/// Remembers the port that a flow of this source was drawn.
#[inline(never)]
fn remember<F: Family, T: Tables<F>>(
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

/// Takes one port, if nobody has it.
#[inline(never)]
fn take<F: Family, T: Tables<F>>(
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
    // The lock.
    tables.insert(reply, flow)
}

/// Whether a port of the host's is somebody else's: published, but for the very source, whose
/// peers are to see it by its published port; else a socket's.
#[inline(always)]
fn is_hosts<F: Family, T: Tables<F>>(
    tables: &T,
    reply: &Tuple<F>,
    &(src, sport): &(F::Addr, Be16),
) -> bool {
    match published(tables, reply.dst, reply.dport, reply.proto) {
        Some(to) => to.addr != src || to.port != sport,
        None => tables.socket(reply),
    }
}

/// What is published at an address of the host's: under exactly it, else under any.
#[inline(always)]
pub fn published<F: Family, T: Tables<F>>(
    tables: &T,
    addr: F::Addr,
    port: Be16,
    proto: u32,
) -> Option<Published<F>> {
    find(|key| tables.published(key), addr, port, proto)
}

/// The same, by whatever knows what is published under exactly a key.
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

/// The lowest port of the class that anybody may bind.
const UNPRIVILEGED: u16 = 1024;

/// The range that a drawn port comes from, as its lowest port and their number: below 512, below
/// 1024, or above, as nf_nat has it; ICMP identifiers have no classes.
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
