// SPDX-License-Identifier: MIT OR Apache-2.0
//! The door to everything outside the packet: maps, the clock, routes, sockets.
//!
//! The kernel side implements it over BPF maps and helpers, a host over plain memory: the twin
//! test holds both to the same decisions.

use core::cell::Cell;

use crate::abi::{
    AllowedKey, Device, Endpoint, Flow, FlowRef, IngressKey, LinkKey, Network, Pending,
    PortAffinity, PortKey, Published, Quota, ServerKey, Settings, TrustKey, Tuple,
};
use crate::event::EventKind;
use crate::family::{Be16, Family};
use crate::flow::{End, FlowState};
use crate::pipeline::fragments::FragmentSeries;
use crate::reason::Reason;
use crate::timeouts::Ticks;
use crate::window::{PreCheck, Segment, Transition, Verdict};

/// What the kernel's routing says of a destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route<F: Family> {
    /// Forwarded by this device to this next hop.
    Forward {
        /// Outgoing device.
        ifindex: u32,
        /// The gateway, or the destination itself.
        next_hop: F::Addr,
        /// The route's MTU in bytes; 0 where only the kernel can send, as to an IPv6 next hop.
        mtu: u32,
    },
    /// The host's own, a broadcast, unreachable, prohibited: the kernel's to answer.
    Kernel,
}

/// What the kernel's routing says of the way back to a source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WayBack {
    /// It leads by this device.
    Device(u32),
    /// There is none: no route, or one of an address that nobody sends from.
    None,
    /// Only the kernel can tell.
    Unknown,
}

/// Everything the pipeline reads and changes beside the packet. Records are shared with other
/// CPUs: hence `&self` and cells, and a gate that only compare-and-swap changes.
pub trait Tables<F: Family> {
    /// What the agent tells all programs.
    fn settings(&self) -> Settings;
    /// A device by its index.
    fn device(&self, ifindex: u32) -> Option<Device>;
    /// A network by its bridge.
    fn network(&self, bridge: u32) -> Option<Network<F>>;
    /// The bridge whose subnet `addr` is in.
    fn subnet(&self, addr: F::Addr) -> Option<u32>;
    /// Whether `addr` is one of the host's own.
    fn is_local(&self, addr: F::Addr) -> bool;
    /// What is published under exactly this key.
    fn published(&self, key: &PortKey<F>) -> Option<Published<F>>;
    /// The host's port by which a container is seen that publishes its own under exactly this key, and
    /// under another number; 0 for none.
    fn seen_as(&self, key: &ServerKey<F>) -> u32;
    /// Whether a network trusts a device.
    fn trusts(&self, key: TrustKey) -> bool;
    /// Whether a link opens a port.
    fn linked(&self, key: &LinkKey<F>) -> bool;
    /// What a list says of a client ([`ingress`](crate::abi::ingress)): its most specific word, 0
    /// if it has none.
    fn ingress(&self, key: IngressKey<F>) -> u32;
    /// What is said of a source that containers may use ([`allowed`](crate::abi::allowed)): the most
    /// specific word, 0 if there is none.
    fn allowed(&self, key: AllowedKey<F>) -> u32;
    /// The slot of the endpoint with this address.
    fn endpoint_slot(&self, addr: F::Addr) -> Option<u32>;
    /// The endpoint in a slot.
    fn endpoint(&self, slot: u32) -> Option<&Endpoint<F>>;
    /// The generation of a mapping's slot.
    fn mapping(&self, slot: u32) -> u32;
    /// What the endpoint in a slot has taken of what it may.
    fn quota(&self, slot: u32) -> Option<&Quota>;
    /// Adds to a word of a [`Quota`]; what it was before.
    fn add(&self, word: &Cell<u64>, summand: u64) -> u64;
    /// Changes a word of a [`Quota`] from one value to another; whether it did.
    fn swap(&self, word: &Cell<u64>, from: u64, to: u64) -> bool;
    /// The masquerade address of a device towards a next hop.
    fn source(&self, ifindex: u32, next_hop: F::Addr) -> Option<F::Addr>;

    /// The flow that a tuple belongs to.
    fn flow_ref(&self, tuple: &Tuple<F>) -> Option<FlowRef>;
    /// The flow that was looked up last of those whose tuples have this place.
    fn cached_flow(&self, place: u32) -> FlowRef;
    /// Remembers a flow that was looked up.
    fn set_cached_flow(&self, place: u32, flow: FlowRef);
    /// A record by its index.
    fn flow(&self, index: u32) -> Option<&Flow<F>>;
    /// Inserts a tuple's key unless it is there; whether it did.
    fn insert(&self, tuple: &Tuple<F>, flow: FlowRef) -> bool;
    /// Removes a tuple's key.
    fn remove(&self, tuple: &Tuple<F>);
    /// The gate as it is now, however often it was read before.
    fn flow_state(&self, flow: &Flow<F>) -> FlowState;
    /// Changes the gate from one value to another; whether it did.
    fn swap_flow_state(&self, flow: &Flow<F>, from: FlowState, to: FlowState) -> bool;
    /// Raises a sequence number to `to`, unless it is there already, or further: not by a plain
    /// write, which could take back what another CPU wrote.
    fn raise(&self, number: &Cell<u32>, to: u32);
    /// Takes the index of a free record.
    fn take_free(&self) -> Option<u32>;
    /// Gives a record's index back.
    fn give_free(&self, index: u32);
    /// How many records are not free.
    fn used(&self) -> u32;
    /// How many flows have taken a place in the ring: one more at each call.
    fn next_ring(&self) -> u64;
    /// What is in a place of the ring.
    fn ring(&self, place: u32) -> Pending;
    /// Puts a flow into a place of the ring.
    fn set_ring(&self, place: u32, pending: Pending);
    /// The next record to sweep: moves on at each call.
    fn next_sweep(&self) -> u32;
    /// The remembered port in a place of the hints.
    fn affinity(&self, place: u32) -> Option<PortAffinity<F>>;
    /// Remembers a port.
    fn set_affinity(&self, place: u32, affinity: PortAffinity<F>);

    /// The datagram whose fragments come at the moment, on this CPU.
    fn series(&self) -> FragmentSeries<F>;
    /// Remembers it.
    fn set_series(&self, series: FragmentSeries<F>);

    /// [`crate::flow::sweep_some`]. This and the next seven are methods so that the kernel's side can
    /// make functions of their own of them, which the verifier proves once, whoever calls them.
    fn sweep_some(&self);
    /// [`crate::quota::charge`].
    fn charge(&self, originator: End) -> Option<Reason>;
    /// [`crate::quota::give_back`].
    fn give_back(&self, originator: End);
    /// [`crate::flow::take_record`].
    fn take_record(&self, originator: u32) -> Option<FlowRef>;
    /// [`crate::flow::publish`].
    fn publish(&self, flow: FlowRef);
    /// [`crate::flow::claim`].
    fn claim(&self, index: u32, flow_state: FlowState, why: EventKind) -> bool;
    /// [`crate::window::prepare`], of the windows of the record at `index`.
    fn prepare(&self, index: u32, flow_state: FlowState, segment: &Segment) -> PreCheck;
    /// [`crate::window::settle`], of the same.
    fn settle(&self, index: u32, lead: Transition, segment: &Segment) -> Verdict;
    /// [`crate::sctp::follow`], the state by its number.
    fn follow(&self, state: u8, chunk: u8, reply: bool, trusted: bool) -> (u8, Ticks);

    /// Tells whoever watches what happens to a flow, whose record is the caller's alone.
    fn emit(&self, flow: &Flow<F>, index: u32, flow_state: FlowState, news: EventKind);

    /// The kernel's route for a packet from `src` to `dst` that came by `ifindex`.
    fn route(&self, ifindex: u32, tuple: &Tuple<F>) -> Route<F>;
    /// How the kernel would route a packet to the source of a packet with this tuple.
    fn way_back(&self, tuple: &Tuple<F>) -> WayBack;
    /// When a privileged process of the host last asked for a UDP port by number; 0 is never.
    fn bound(&self, port: Be16) -> Ticks;
    /// Whether a socket of the host would take a packet with this tuple.
    fn socket(&self, tuple: &Tuple<F>) -> bool;
    /// Whether XDP may redirect into the veth at this index: its far end takes frames. The kernel's
    /// side notes the redirect along with the answer.
    fn takes_frames(&self, ifindex: u32) -> bool;
    /// Whether a device exists.
    fn exists(&self, ifindex: u32) -> bool;
    /// The coarse monotonic clock.
    fn now(&self) -> Ticks;
    /// 32 random bits, not predictable from outside.
    fn random(&self) -> u32;
    /// Tries until a try succeeds, at most so many times. The verifier looks at one try, not at
    /// all of them (`bpf_loop`).
    fn attempt<A: Attempt>(&self, times: u32, attempt: &mut A);
}

/// Something to try more than once.
pub trait Attempt {
    /// Tries once; whether it succeeded.
    fn once(&mut self) -> bool;
}

/// A port out of a range by a random number, without division by a variable.
#[inline(always)]
pub(crate) fn scale(random: u32, low: u16, count: u32) -> Be16 {
    let offset = ((random as u64 * count as u64) >> 32) as u32;
    Be16::new((low as u32 + offset) as u16)
}
