// SPDX-License-Identifier: MIT OR Apache-2.0
//! Flow records and what belongs to them: tuples, the flow index, the ring of unassured flows,
//! quotas.

use core::cell::Cell;

use super::capacity;
use super::flow_state::{Direction, ORIGINAL};
use super::tracking::TcpTracking;
use crate::clock::Ticks;
use crate::family::{Address as _, Be16, Family};

/// Endpoint slot 0: everything outside.
pub const OUTSIDE: u32 = 0;

/// The slot that stands for the host itself. It has no endpoint: its packets go to and come from
/// the host's stack.
pub const HOST: u32 = u16::MAX as u32;

/// The addresses, ports and protocol that the packets of one direction carry (a 5-tuple).
///
/// The identifier of an ICMP query is `sport` in the request and `dport` in the reply. The other
/// port is the request's type, or 0 for echo.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Tuple<F: Family> {
    /// Source address.
    pub src: F::Addr,
    /// Destination address.
    pub dst: F::Addr,
    /// Source port.
    pub sport: Be16,
    /// Destination port.
    pub dport: Be16,
    /// IP protocol number, host order.
    pub proto: u32,
}

impl<F: Family> Tuple<F> {
    /// The tuple of an answer.
    #[inline(always)]
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            sport: self.dport,
            dport: self.sport,
            proto: self.proto,
        }
    }

    /// The tuple's place in the flow cache. Two tuples that share a place cost each other a lookup
    /// in the flow index, nothing more, so the hash has to be cheap and may be predictable.
    #[inline(always)]
    #[must_use]
    pub fn place(&self) -> u32 {
        let ports = self.sport.word() as u32 | (self.dport.word() as u32) << 16;
        let ends = self.src.mix() ^ self.dst.mix().rotate_left(16);
        let mixed = (ends ^ ports ^ self.proto).wrapping_mul(0x85eb_ca6b);
        mixed >> (u32::BITS - capacity::FLOW_CACHE.ilog2())
    }
}

/// A flow record together with its generation.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowRef {
    /// Index into the array of records.
    pub index: u32,
    /// The record's generation when the key was inserted.
    pub id: u32,
}

impl FlowRef {
    /// Stands in the index for a connection that the kernel tracks. No record has this index.
    pub const KERNEL: Self = Self {
        index: u32::MAX,
        id: 0,
    };
}

/// Where the packets of one direction go. At most one of a flow's two next hops is outside; its
/// device and gateway are stored in the flow.
#[repr(C)]
#[derive(Debug, Default)]
pub struct NextHop {
    /// The endpoint's generation when the flow was created. Outside: the settings' route generation
    /// at the last route lookup; 0 for never.
    pub generation: Cell<u32>,
    /// The endpoint's slot, [`OUTSIDE`] or [`HOST`].
    pub slot: Cell<u16>,
    /// Outside: the route's MTU in bytes, network header included.
    pub mtu: Cell<u16>,
}

impl NextHop {
    /// The endpoint's slot, [`OUTSIDE`] or [`HOST`].
    #[inline(always)]
    #[must_use]
    pub fn slot(&self) -> u32 {
        self.slot.get() as u32
    }
}

/// A flow: both directions of one connection, as one unit.
#[repr(C)]
#[derive(Debug)]
pub struct Flow<F: Family> {
    /// Generation, phase and state in one word, changed by compare-and-swap only: see
    /// [`FlowState`](crate::abi::FlowState).
    pub flow_state: Cell<u64>,
    /// Packets by direction.
    pub packets: [Cell<u64>; 2],
    /// Bytes by direction, network header included.
    pub bytes: [Cell<u64>; 2],
    /// The tuples of the originator's packets and of the answers, both as they arrive at the
    /// forwarder. A packet of direction `d` leaves with the reverse of `tuples[1 - d]`.
    pub tuples: [Cell<Tuple<F>>; 2],
    /// The next hop of each direction.
    pub next_hops: [NextHop; 2],
    /// The outgoing device of the direction whose next hop is outside.
    pub ifindex: Cell<u32>,
    /// The gateway of the direction whose next hop is outside.
    pub next_hop: Cell<F::Addr>,
    /// When the flow expires unless another packet arrives.
    pub expires: Cell<Ticks>,
    /// When the last packet arrived.
    pub seen: Cell<Ticks>,
    /// When the flow was created.
    pub created: Cell<Ticks>,
    /// The generation of the port mapping when the flow was created. Of a followed flow: see
    /// [`Self::let_out`].
    pub mapping_generation: Cell<u32>,
    /// The policy generation of the settings under which the flow was last allowed. Of a followed
    /// flow: see [`Self::let_out`].
    pub policy: Cell<u32>,
    /// TCP sequence tracking. For other protocols, whatever the record's previous flow left behind.
    pub windows: TcpTracking,
    /// The port mapping's slot in `MAPPINGS`, or 0.
    pub mapping: Cell<u16>,
    /// The checksum delta of the addresses, for the originator's packets.
    pub address_delta: Cell<u16>,
    /// The checksum delta of the ports, for the originator's packets.
    pub port_delta: Cell<u16>,
    /// The destination MAC address of frames from outside: XDP compares it.
    pub uplink_mac: Cell<[u8; 6]>,
}

impl<F: Family> Flow<F> {
    /// The port mapping's slot in `MAPPINGS`, or 0.
    #[inline(always)]
    #[must_use]
    pub fn mapping(&self) -> u32 {
        self.mapping.get() as u32
    }

    /// When a packet of this direction, having passed all of the kernel's rules, last left the host:
    /// for a followed flow only, which is in no mapping and under no list of clients.
    #[inline(always)]
    #[must_use]
    pub fn let_out(&self, dir: Direction) -> &Cell<Ticks> {
        if dir == ORIGINAL {
            &self.mapping_generation
        } else {
            &self.policy
        }
    }
}

/// A place in the ring of unassured flows, in one word. From the low end: 24 bits of the record's
/// index, 24 of its generation, 16 of the originator's slot. There are never more than 2^24 flows,
/// and no record is reused 2^24 times before the ring comes around.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pending(pub u64);

impl Pending {
    const PART: u32 = (1 << 24) - 1;

    /// A flow and the slot of the endpoint that opened it, [`OUTSIDE`] or [`HOST`].
    #[inline(always)]
    #[must_use]
    pub const fn new(flow: FlowRef, originator: u32) -> Self {
        let (index, id) = (flow.index & Self::PART, flow.id & Self::PART);
        Self(index as u64 | (id as u64) << 24 | (originator as u64) << 48)
    }

    /// The record's index.
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> u32 {
        self.0 as u32 & Self::PART
    }

    /// Whether the place names this generation of the record.
    #[inline(always)]
    #[must_use]
    pub const fn is_of(self, id: u32) -> bool {
        (self.0 >> 24) as u32 & Self::PART == id & Self::PART
    }

    /// The slot of the endpoint that opened the flow.
    #[inline(always)]
    #[must_use]
    pub const fn originator(self) -> u32 {
        (self.0 >> 48) as u32
    }
}

/// The cursors of the ring and of the sweep, and how full the table is.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cursors {
    /// How many flows have taken a place in the ring of unassured flows.
    pub ring: u64,
    /// The next record that the sweep inspects.
    pub sweep: u64,
    /// How many records are not free.
    pub used: u64,
}

/// What an endpoint uses of its limits: see [`quota`](crate::conntrack::quota). Each word but the
/// last has two halves, of which the low one counts from 2^31 unless stated otherwise. For the outside only the
/// last word is used.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Quota {
    /// The endpoint's generation, and the number of live flows that the endpoint opened.
    pub held: Cell<u64>,
    /// Token bucket of new flows: when it was last filled, and its level.
    pub opens: Cell<u64>,
    /// Token bucket of ICMP errors to the endpoint: when it was last filled, and its level.
    pub answers: Cell<u64>,
    /// Token bucket of bytes in incomplete datagrams: when it was last filled, and its level,
    /// counted from 0.
    pub fragments: Cell<u64>,
    /// How many places of the ring of unassured flows belong to flows that the endpoint opened.
    pub places: Cell<u64>,
}

/// The masquerade port that a source got because its own port was taken. It is valid as long as a
/// flow that uses it is live.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PortAffinity<F: Family> {
    /// The container's address.
    pub src: F::Addr,
    /// The container's port.
    pub sport: Be16,
    /// The masquerade port.
    pub port: Be16,
    /// IP protocol number, host order.
    pub proto: u32,
    /// Flows that use the port: the oldest known one that is live, and the newest.
    pub holders: [FlowRef; 2],
}

impl<F: Family> PortAffinity<F> {
    /// Whether the entry is this source's.
    #[inline(always)]
    #[must_use]
    pub fn is_of(&self, src: F::Addr, sport: Be16, proto: u32) -> bool {
        self.src == src && self.sport == sport && self.proto == proto
    }

    /// The place of a source's port affinity. It does not use the low bits of the product: an
    /// address's last bytes, in which containers differ, never reach them.
    #[inline(always)]
    #[must_use]
    pub fn place(src: F::Addr, sport: Be16, proto: u32) -> u32 {
        let port = sport.word() as u32 | proto << 16;
        let mixed = (src.mix() ^ port).wrapping_mul(0x85eb_ca6b);
        mixed >> (u32::BITS - capacity::AFFINITIES.ilog2())
    }
}
