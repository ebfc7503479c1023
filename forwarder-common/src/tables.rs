// SPDX-License-Identifier: MIT OR Apache-2.0
//! The interface to everything outside the packet: maps, clock, routes, sockets.
//!
//! The kernel side implements it with BPF maps and helpers, the tests with plain memory. A parity
//! test checks that both lead to the same decisions.

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

/// The kernel's route to a destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route<F: Family> {
    /// The packet is forwarded on this device to this next hop.
    Forward {
        /// Outgoing device.
        ifindex: u32,
        /// The gateway, or the destination itself.
        next_hop: F::Addr,
        /// The route's MTU in bytes; 0 if only the kernel can send, as to an IPv6 next hop (RFC
        /// 8950).
        mtu: u32,
    },
    /// A local, broadcast, unreachable or prohibited destination: the kernel answers.
    Kernel,
}

/// The kernel's route back to a source (reverse path).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WayBack {
    /// The route leads to this device.
    Device(u32),
    /// There is no route, or the address cannot be a sender's.
    None,
    /// Only the kernel can tell.
    Unknown,
}

/// Everything that the packet path reads and changes besides the packet. Other CPUs share the
/// records, so methods take `&self`, records hold cells, and a flow state changes by
/// compare-and-swap only.
pub trait Tables<F: Family> {
    /// The agent's settings for all programs.
    fn settings(&self) -> Settings;
    /// A device by its index.
    fn device(&self, ifindex: u32) -> Option<Device>;
    /// A network by its bridge.
    fn network(&self, bridge: u32) -> Option<Network<F>>;
    /// The bridge whose subnet `addr` is in.
    fn subnet(&self, addr: F::Addr) -> Option<u32>;
    /// Whether `addr` is an address of the host.
    fn is_local(&self, addr: F::Addr) -> bool;
    /// The port published under exactly this key.
    fn published(&self, key: &PortKey<F>) -> Option<Published<F>>;
    /// The host port under which a container's port is published by exactly this key, if the two
    /// numbers differ; else 0.
    fn seen_as(&self, key: &ServerKey<F>) -> u32;
    /// Whether a network trusts a device.
    fn trusts(&self, key: TrustKey) -> bool;
    /// Whether a link opens a port.
    fn linked(&self, key: &LinkKey<F>) -> bool;
    /// The longest-prefix match for a client in a list ([`ingress`](crate::abi::ingress)); 0 if
    /// there is none.
    fn ingress(&self, key: IngressKey<F>) -> u32;
    /// The longest-prefix match for a source that containers may use
    /// ([`allowed`](crate::abi::allowed)); 0 if there is none.
    fn allowed(&self, key: AllowedKey<F>) -> u32;
    /// The slot of the endpoint with this address.
    fn endpoint_slot(&self, addr: F::Addr) -> Option<u32>;
    /// The endpoint in a slot.
    fn endpoint(&self, slot: u32) -> Option<&Endpoint<F>>;
    /// The generation of a port mapping's slot.
    fn mapping(&self, slot: u32) -> u32;
    /// The quota counters of the endpoint in a slot.
    fn quota(&self, slot: u32) -> Option<&Quota>;
    /// Adds to a word of a [`Quota`]; returns its value before.
    fn add(&self, word: &Cell<u64>, summand: u64) -> u64;
    /// Compare-and-swap on a word of a [`Quota`]; returns whether it succeeded.
    fn swap(&self, word: &Cell<u64>, from: u64, to: u64) -> bool;
    /// The masquerade address of a device towards a next hop.
    fn source(&self, ifindex: u32, next_hop: F::Addr) -> Option<F::Addr>;

    /// The flow index entry of a tuple.
    fn flow_ref(&self, tuple: &Tuple<F>) -> Option<FlowRef>;
    /// The flow cache entry in a place.
    fn cached_flow(&self, place: u32) -> FlowRef;
    /// Stores a flow in the flow cache.
    fn set_cached_flow(&self, place: u32, flow: FlowRef);
    /// A record by its index.
    fn flow(&self, index: u32) -> Option<&Flow<F>>;
    /// Inserts a tuple's key unless the key exists; returns whether it did.
    fn insert(&self, tuple: &Tuple<F>, flow: FlowRef) -> bool;
    /// Removes a tuple's key.
    fn remove(&self, tuple: &Tuple<F>);
    /// The flow's state, read anew each time.
    fn flow_state(&self, flow: &Flow<F>) -> FlowState;
    /// Compare-and-swap on the flow state; returns whether it succeeded.
    fn swap_flow_state(&self, flow: &Flow<F>, from: FlowState, to: FlowState) -> bool;
    /// Raises a sequence number to `to`, unless it is already as high. A plain write could undo a
    /// raise by another CPU.
    fn raise(&self, number: &Cell<u32>, to: u32);
    /// Takes the index of a free record.
    fn take_free(&self) -> Option<u32>;
    /// Returns a record's index to the free records.
    fn give_free(&self, index: u32);
    /// How many records are not free.
    fn used(&self) -> u32;
    /// Increments the ring cursor; returns its value before.
    fn next_ring(&self) -> u64;
    /// The flow in a place of the ring.
    fn ring(&self, place: u32) -> Pending;
    /// Puts a flow into a place of the ring.
    fn set_ring(&self, place: u32, pending: Pending);
    /// The next record to sweep; advances at each call.
    fn next_sweep(&self) -> u32;
    /// The port affinity in a place.
    fn affinity(&self, place: u32) -> Option<PortAffinity<F>>;
    /// Stores a port affinity.
    fn set_affinity(&self, place: u32, affinity: PortAffinity<F>);

    /// The datagram whose fragments arrive at the moment on this CPU.
    fn series(&self) -> FragmentSeries<F>;
    /// Stores the datagram whose fragments arrive.
    fn set_series(&self, series: FragmentSeries<F>);

    /// [`crate::flow::sweep_some`]. This method and the following eight exist so that the kernel
    /// side can make them global functions, which the verifier proves once for all callers.
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
    /// [`crate::window::prepare`], with the windows of the record at `index`.
    fn prepare(&self, index: u32, flow_state: FlowState, segment: &Segment) -> PreCheck;
    /// [`crate::window::settle`], with the windows of the record at `index`.
    fn settle(&self, index: u32, transition: Transition, segment: &Segment) -> Verdict;
    /// [`crate::sctp::follow`], with states as numbers.
    fn follow(&self, state: u8, chunk: u8, reply: bool, trusted: bool) -> (u8, Ticks);

    /// Emits an event about a flow to whoever watches. The record must belong to the caller alone.
    fn emit(&self, flow: &Flow<F>, index: u32, flow_state: FlowState, kind: EventKind);

    /// The kernel's route for a packet with this tuple that arrived on `ifindex`.
    fn route(&self, ifindex: u32, tuple: &Tuple<F>) -> Route<F>;
    /// The kernel's route back to the source of a packet with this tuple.
    fn way_back(&self, tuple: &Tuple<F>) -> WayBack;
    /// When a privileged process of the host last bound a UDP port by number; 0 for never.
    fn bound(&self, port: Be16) -> Ticks;
    /// Whether a socket of the host would receive a packet with this tuple.
    fn socket(&self, tuple: &Tuple<F>) -> bool;
    /// Whether XDP may redirect into the veth at this index, because its peer accepts XDP frames.
    /// On the kernel side the call also prepares the redirect.
    fn takes_frames(&self, ifindex: u32) -> bool;
    /// Whether a device exists.
    fn exists(&self, ifindex: u32) -> bool;
    /// The coarse monotonic clock.
    fn now(&self) -> Ticks;
    /// 32 random bits, unpredictable from outside.
    fn random(&self) -> u32;
    /// Calls `attempt` until it succeeds, at most `times` times. The verifier checks one call, not
    /// all of them (`bpf_loop`).
    fn attempt<A: Attempt>(&self, times: u32, attempt: &mut A);
}

/// An operation that may be tried several times.
pub trait Attempt {
    /// Tries once; returns whether it succeeded.
    fn once(&mut self) -> bool;
}

/// Maps a random number into a range of ports, without dividing by a variable.
#[inline(always)]
pub(crate) fn scale(random: u32, low: u16, count: u32) -> Be16 {
    let offset = ((random as u64 * count as u64) >> 32) as u32;
    Be16::new((low as u32 + offset) as u16)
}
