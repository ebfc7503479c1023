// SPDX-License-Identifier: MIT OR Apache-2.0
//! The interface to everything outside the packet: maps, clock, routes, sockets, and how packets
//! leave a hook.
//!
//! Small traits, so that a function's bounds say what it can reach. The kernel side implements them
//! with BPF maps and helpers, the tests with plain memory. A parity test checks that both lead to
//! the same decisions.

use core::cell::Cell;

use crate::abi::{
    AllowedKey, Device, Endpoint, Flow, FlowRef, FlowState, IngressKey, LinkKey, Network, Pending,
    PortAffinity, PortKey, Published, Quota, ServerKey, Settings, TrustKey, Tuple, armed,
};
use crate::attempt::Attempt;
use crate::clock::Ticks;
use crate::event::EventKind;
use crate::family::{Be16, Family};
use crate::wire::frame::Frame;
use crate::wire::rewrite::Edit;
use crate::wire::series::FragmentSeries;

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
pub enum ReversePath {
    /// The route leads to this device.
    Device(u32),
    /// There is no route, or the address cannot be a sender's.
    None,
    /// Only the kernel can tell.
    Unknown,
}

/// What the agent tells the programs of every address family.
pub trait BaseConfiguration {
    /// The agent's settings for all programs.
    fn settings(&self) -> Settings;
    /// Whether the agent has attached all programs and filled all maps. Only packets without a flow
    /// need the check: no flow exists before.
    #[inline(always)]
    fn is_armed(&self) -> bool {
        self.settings().armed != armed::NOT
    }
    /// Whether Docker's own rules of netfilter are in place.
    #[inline(always)]
    fn has_kernel_rules(&self) -> bool {
        armed::keeps_rules(self.settings().armed)
    }
    /// A device by its index.
    fn device(&self, ifindex: u32) -> Option<Device>;
}

/// What the agent tells the programs of an address family.
pub trait Configuration<F: Family>: BaseConfiguration {
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
    /// The masquerade address of a device towards a next hop.
    fn source(&self, ifindex: u32, next_hop: F::Addr) -> Option<F::Addr>;
}

/// The index from tuples to flow records, and the cache in front of it.
pub trait FlowIndex<F: Family> {
    /// The flow index entry of a tuple.
    fn flow_ref(&self, tuple: &Tuple<F>) -> Option<FlowRef>;
    /// The flow cache entry in a place.
    fn cached_flow(&self, place: u32) -> FlowRef;
    /// Stores a flow in the flow cache.
    fn set_cached_flow(&self, place: u32, flow: FlowRef);
    /// Inserts a tuple's key unless the key exists; returns whether it did.
    fn insert(&self, tuple: &Tuple<F>, flow: FlowRef) -> bool;
    /// Removes a tuple's key.
    fn remove(&self, tuple: &Tuple<F>);
}

/// The flow records. Other CPUs share them, so records hold cells, and a flow state changes by
/// compare-and-swap only.
pub trait FlowRecords<F: Family> {
    /// A record by its index.
    fn flow(&self, index: u32) -> Option<&Flow<F>>;
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
    /// The next record to sweep; advances at each call.
    fn next_sweep(&self) -> u32;
    /// Emits an event about a flow to whoever watches. The record must belong to the caller alone.
    fn emit(&self, flow: &Flow<F>, index: u32, flow_state: FlowState, kind: EventKind);
}

/// The ring of unassured flows.
pub trait UnassuredRing<F: Family> {
    /// Increments the ring cursor; returns its value before.
    fn next_ring(&self) -> u64;
    /// The flow in a place of the ring.
    fn ring(&self, place: u32) -> Pending;
    /// Puts a flow into a place of the ring.
    fn set_ring(&self, place: u32, pending: Pending);
}

/// The counters of what endpoints use.
pub trait Quotas<F: Family> {
    /// The quota counters of the endpoint in a slot.
    fn quota(&self, slot: u32) -> Option<&Quota>;
    /// Adds to a word of a [`Quota`]; returns its value before.
    fn add(&self, word: &Cell<u64>, summand: u64) -> u64;
    /// Compare-and-swap on a word of a [`Quota`]; returns whether it succeeded.
    fn swap(&self, word: &Cell<u64>, from: u64, to: u64) -> bool;
}

/// The masquerade ports that sources already have.
pub trait PortAffinities<F: Family> {
    /// The port affinity in a place.
    fn affinity(&self, place: u32) -> Option<PortAffinity<F>>;
    /// Stores a port affinity.
    fn set_affinity(&self, place: u32, affinity: PortAffinity<F>);
}

/// The datagram whose fragments arrive at the moment on this CPU.
pub trait FragmentState<F: Family> {
    /// The datagram whose fragments arrive at the moment on this CPU.
    fn series(&self) -> FragmentSeries<F>;
    /// Stores the datagram whose fragments arrive.
    fn set_series(&self, series: FragmentSeries<F>);
}

/// The kernel's routes and devices.
pub trait Routes<F: Family> {
    /// The kernel's route for a packet with this tuple that arrived on `ifindex`.
    fn route(&self, ifindex: u32, tuple: &Tuple<F>) -> Route<F>;
    /// The kernel's route back to the source of a packet with this tuple.
    fn reverse_path(&self, tuple: &Tuple<F>) -> ReversePath;
    /// Whether a device exists.
    fn exists(&self, ifindex: u32) -> bool;
}

/// The host's own sockets.
pub trait Sockets<F: Family> {
    /// When a privileged process of the host last bound a UDP port by number; 0 for never.
    fn bound(&self, port: Be16) -> Ticks;
    /// Whether a socket of the host would receive a packet with this tuple.
    fn socket(&self, tuple: &Tuple<F>) -> bool;
}

/// Clock, randomness, and bounded loops.
pub trait Runtime {
    /// The coarse monotonic clock.
    fn now(&self) -> Ticks;
    /// 32 random bits, unpredictable from outside.
    fn random(&self) -> u32;
    /// Calls `attempt` until it succeeds, at most `times` times. The verifier checks one call, not
    /// all of them (`bpf_loop`).
    fn attempt<A: Attempt>(&self, times: u32, attempt: &mut A);
}

/// The devices that XDP may redirect to.
pub trait Devmap {
    /// Whether XDP may redirect into the veth at this index, because its peer accepts XDP frames.
    /// On the kernel side the call also prepares the redirect.
    fn takes_frames(&self, ifindex: u32) -> bool;
}

/// How packets leave a hook, besides "pass" and "drop", which follow from the reason alone. The
/// redirects only record where the packet goes once the program ends; until then it may still be
/// written to.
pub trait Output<F: Family> {
    /// Applies an edit to the packet.
    fn edit(&self, frame: &mut Frame<'_>, edit: &Edit<F>);
    /// Redirects into the network namespace of the veth at this index (`bpf_redirect_peer`; XDP:
    /// the devmap).
    fn to_peer(&self, ifindex: u32);
}

/// What a hook can do with a socket buffer besides [`Output`], and a frame at XDP cannot.
pub trait SkbOutput<F: Family>: Output<F> {
    /// Sets the forwarder's bits of the packet's mark: see [`mark`](crate::mark).
    fn mark(&self, kind: u32);
    /// Sets the packet's hash.
    fn hash(&self, hash: u32);
    /// Redirects to the ingress of a device, as if the packet had just arrived there.
    fn to_ingress(&self, ifindex: u32);
    /// Redirects out of a device to a next hop (`bpf_redirect_neigh`), with the mark
    /// [`DONE`](crate::mark::DONE).
    fn to_neighbour(&self, ifindex: u32, next_hop: F::Addr);
}

/// All maps that connection tracking uses.
pub trait FlowTable<F: Family>:
    Configuration<F>
    + FlowIndex<F>
    + FlowRecords<F>
    + UnassuredRing<F>
    + Quotas<F>
    + PortAffinities<F>
    + Sockets<F>
    + Runtime
{
}

impl<F: Family, T> FlowTable<F> for T where
    T: Configuration<F>
        + FlowIndex<F>
        + FlowRecords<F>
        + UnassuredRing<F>
        + Quotas<F>
        + PortAffinities<F>
        + Sockets<F>
        + Runtime
{
}
