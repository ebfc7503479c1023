//! Choosing the port of a translation, as `nf_nat_l4proto_unique_tuple` does.
//!
//! First the port that this source already has towards others (RFC 4787 REQ-1), then its own (so
//! that TCP timestamps stay monotonic for the remote), then at random in the same class. The
//! reply tuple's key is inserted with "not if it exists": that is the lock.

use crate::abi::{FlowRef, Hint, PortKey, Published, Tuple, capacity};
use crate::family::{Address, Be16, Family};
use crate::flow;
use crate::parse::proto;
use crate::tables::{Attempt, Tables, scale};

/// Random ports that are tried before a flow is refused: at 95 % of the ports taken, all fail
/// once in 700 flows.
const TRIES: u32 = 128;

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
    mut reply: Tuple<F>,
    inside: (F::Addr, Be16),
    owner: Owner,
) -> Option<Tuple<F>> {
    let (src, sport) = inside;
    let place = (src.mix() ^ sport.word() as u32) & (capacity::HINTS - 1);
    if owner == Owner::Host
        && let Some(hint) = tables.hint(place)
        && hint.src == src
        && hint.sport == sport
        && hint.proto == reply.proto
    {
        reply.dport = hint.port;
        if take(tables, flow, &reply, owner) {
            return Some(reply);
        }
    }
    reply.dport = sport;
    if take(tables, flow, &reply, owner) {
        return Some(reply);
    }
    // Somebody has it. If that flow is over, it has to go before its time: a connection made anew
    // keeps its port.
    if flow::end_if_over(tables, &reply) && take(tables, flow, &reply, owner) {
        return Some(reply);
    }
    let (low, count) = class(sport, reply.proto);
    let mut search = Search {
        tables,
        flow,
        reply,
        owner,
        low,
        count,
        found: false,
    };
    // Without ports there is no other one.
    let bare = proto::is_bare(reply.proto, F::ICMP as u32);
    tables.attempt(if bare { 0 } else { TRIES }, &mut search);
    if !search.found {
        return None;
    }
    if owner == Owner::Host {
        let hint = Hint {
            src,
            sport,
            port: search.reply.dport,
            proto: reply.proto,
        };
        tables.set_hint(place, hint);
    }
    Some(search.reply)
}

/// A search for a free port at random.
struct Search<'a, F: Family, T> {
    tables: &'a T,
    flow: FlowRef,
    reply: Tuple<F>,
    owner: Owner,
    low: u16,
    count: u32,
    found: bool,
}

impl<F: Family, T: Tables<F>> Attempt for Search<'_, F, T> {
    #[inline(always)]
    fn once(&mut self) -> bool {
        self.reply.dport = scale(self.tables.random(), self.low, self.count);
        self.found = take(self.tables, self.flow, &self.reply, self.owner);
        self.found
    }
}

/// Takes one port, if nobody has it.
#[inline(never)]
fn take<F: Family, T: Tables<F>>(
    tables: &T,
    flow: FlowRef,
    reply: &Tuple<F>,
    owner: Owner,
) -> bool {
    if owner == Owner::Host && (is_published(tables, reply) || tables.socket(reply)) {
        return false;
    }
    // The lock.
    tables.insert(reply, flow)
}

#[inline(always)]
fn is_published<F: Family, T: Tables<F>>(tables: &T, reply: &Tuple<F>) -> bool {
    published(tables, reply.dst, reply.dport, reply.proto).is_some()
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

/// The range that a drawn port comes from, as its lowest port and their number: below 512, below
/// 1024, or above, as nf_nat has it; ICMP identifiers have no classes.
#[inline(always)]
const fn class(port: Be16, protocol: u32) -> (u16, u32) {
    if protocol != proto::TCP && protocol != proto::UDP {
        (0, 65_536)
    } else if port.get() < 512 {
        (1, 511)
    } else if port.get() < 1024 {
        (600, 424)
    } else {
        (1024, 64_512)
    }
}
