// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! Implements the packet logic's interface to the kernel: maps, clock, routes and sockets, through
//! helpers.

use core::cell::Cell;
use core::ffi::c_void;
use core::mem::zeroed;
use core::ptr;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED,
    BPF_FIB_LOOKUP_SKIP_NEIGH, BPF_NOEXIST, bpf_fib_lookup, bpf_sock_tuple,
};
use aya_ebpf::helpers::{
    bpf_check_mtu, bpf_fib_lookup as fib_lookup, bpf_get_prandom_u32, bpf_ktime_get_coarse_ns,
    bpf_loop, bpf_sk_lookup_udp, bpf_sk_release, bpf_skb_load_bytes, bpf_skc_lookup_tcp,
};
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::TcContext;
use bytemuck::Pod;
use forwarder_common::abi::{
    AllowedKey, AllowedKey6, Device, Endpoint, Endpoint6, Flow, FlowRef, FlowState,
    HostAddressKey6, IngressKey, IngressKey6, LinkKey, MasqueradeKey, Network, OwnerKey6, Pending,
    PortAffinity, PortKey, PortKey6, Published, Published6, Quota, ServerKey, Settings, TrustKey,
    Tuple,
};
use forwarder_common::attempt::Attempt;
use forwarder_common::clock::{self, Ticks};
use forwarder_common::environment::{
    Configuration, FlowIndex, FlowRecords, FragmentState, PortAffinities, Quotas, ReversePath,
    Route, Routes, Runtime, Sockets, UnassuredRing,
};
use forwarder_common::event::{Event, EventKind};
use forwarder_common::family::{Be16, Be32, Be128, V4};
use forwarder_common::policy::ipv6::Host6;
use forwarder_common::reason::Reason;
use forwarder_common::tracking::verdict::before;
use forwarder_common::wire::proto;
use forwarder_common::wire::series::FragmentSeries;

use crate::atomic;
use crate::maps::{
    AFFINITIES, ALLOWED_SOURCES, ALLOWED6, BOUND, CURSORS, DEVICES, ENDPOINT_SLOTS, ENDPOINTS,
    ENDPOINTS6, EVENTS, FLOW_CACHE, FLOW_INDEX, FLOWS, FREE, HOST_ADDRESSES, HOST_ADDRESSES6,
    INGRESS, INGRESS6, LINKS, LOST, MAPPINGS, MASQ_ADDRESSES, NETWORKS, OWNERS6, PUBLISHED,
    PUBLISHED6, QUOTAS, REASONS, SEEN_AS, SERIES, SETTINGS, SUBNETS, SUBNETS6, TRUSTED,
    UNASSURED_RING, WATCH,
};
use crate::report::{Fault, fault};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// The loopback device's index in every namespace. The kernel's own source check looks up routes
/// with it.
const LOOPBACK: u32 = 1;
/// How many other CPUs may raise the same number in between.
const RAISES: u32 = 3;
const ENODEV: i64 = -19;
const EINVAL: i64 = -22;
/// `BPF_F_CURRENT_NETNS`.
const THIS_NAMESPACE: u64 = -1_i32 as u32 as u64;

/// The kernel's maps and helpers, as seen by one run of a program.
pub struct Kernel<C> {
    /// The program's context.
    pub ctx: C,
}

/// Counts a packet under its reason.
#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(counter) = REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own element; a program is not preempted by another one of its kind.
        unsafe { *counter += 1 };
    }
}

impl<C: EbpfContext> Kernel<C> {
    /// Looks up a route in the kernel's FIB.
    #[inline(always)]
    fn look_up(&self, params: &mut bpf_fib_lookup, flags: u32) -> i64 {
        let size = size_of::<bpf_fib_lookup>() as i32;
        // SAFETY: the context is this program's, and the structure is as long as stated.
        unsafe { fib_lookup(self.ctx.as_ptr(), ptr::from_mut(params), size, flags) as i64 }
    }

    /// Counts records that are taken, or that are returned if the summand is negative.
    #[inline(always)]
    fn count_used(&self, summand: u64) {
        if let Some(cursors) = CURSORS.get_ptr_mut(0) {
            // SAFETY: an aligned 64-bit word of a map's element.
            unsafe { atomic::add(&raw mut (*cursors).used, summand) };
        }
    }

    /// A device's MTU, if the device exists.
    #[inline(always)]
    fn mtu(&self, ifindex: u32) -> Option<u32> {
        let mut mtu = 0;
        // SAFETY: the context is this program's.
        let outcome = unsafe { bpf_check_mtu(self.ctx.as_ptr(), ifindex, &raw mut mtu, 0, 0) };
        (outcome != ENODEV).then_some(mtu)
    }
}

impl<C: EbpfContext> Configuration<V4> for Kernel<C> {
    #[inline(always)]
    fn settings(&self) -> Settings {
        SETTINGS.get(0).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn device(&self, ifindex: u32) -> Option<Device> {
        // SAFETY: the element is copied at once; the agent replaces whole elements.
        unsafe { DEVICES.get(ifindex) }.copied()
    }

    #[inline(always)]
    fn network(&self, bridge: u32) -> Option<Network<V4>> {
        // SAFETY: as for `device`.
        unsafe { NETWORKS.get(bridge) }.copied()
    }

    #[inline(always)]
    fn subnet(&self, addr: Be32) -> Option<u32> {
        SUBNETS.get(Key::new(32, addr)).copied()
    }

    #[inline(always)]
    fn is_local(&self, addr: Be32) -> bool {
        HOST_ADDRESSES.get(Key::new(32, addr)).is_some()
    }

    #[inline(always)]
    fn published(&self, key: &PortKey<V4>) -> Option<Published<V4>> {
        // SAFETY: as for `device`.
        unsafe { PUBLISHED.get(key) }.copied()
    }

    #[inline(always)]
    fn seen_as(&self, key: &ServerKey<V4>) -> u32 {
        // SAFETY: as for `device`.
        unsafe { SEEN_AS.get(key) }.copied().unwrap_or_default()
    }

    #[inline(always)]
    fn trusts(&self, key: TrustKey) -> bool {
        TRUSTED.get_ptr(key).is_some()
    }

    #[inline(always)]
    fn linked(&self, key: &LinkKey<V4>) -> bool {
        LINKS.get_ptr(key).is_some()
    }

    #[inline(always)]
    fn ingress(&self, key: IngressKey<V4>) -> u32 {
        INGRESS.get(Key::new(64, key)).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn allowed(&self, key: AllowedKey<V4>) -> u32 {
        ALLOWED_SOURCES
            .get(Key::new(64, key))
            .copied()
            .unwrap_or_default()
    }

    #[inline(always)]
    fn endpoint_slot(&self, addr: Be32) -> Option<u32> {
        // SAFETY: as for `device`.
        unsafe { ENDPOINT_SLOTS.get(addr) }.copied()
    }

    #[inline(always)]
    fn endpoint(&self, slot: u32) -> Option<&Endpoint<V4>> {
        ENDPOINTS.get(slot)
    }

    #[inline(always)]
    fn mapping(&self, slot: u32) -> u32 {
        MAPPINGS.get(slot).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn source(&self, ifindex: u32, next_hop: Be32) -> Option<Be32> {
        MASQ_ADDRESSES
            .get(Key::new(64, MasqueradeKey { ifindex, next_hop }))
            .copied()
    }
}

impl<C: EbpfContext> FlowIndex<V4> for Kernel<C> {
    #[inline(always)]
    fn flow_ref(&self, tuple: &Tuple<V4>) -> Option<FlowRef> {
        // SAFETY: copied at once; the content is checked against the record.
        unsafe { FLOW_INDEX.get(tuple) }.copied()
    }

    #[inline(always)]
    fn cached_flow(&self, place: u32) -> FlowRef {
        FLOW_CACHE.get(place).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn set_cached_flow(&self, place: u32, flow: FlowRef) {
        if let Some(entry) = FLOW_CACHE.get_ptr_mut(place) {
            // SAFETY: a live element; readers check its content against the record.
            unsafe { *entry = flow };
        }
    }

    #[inline(always)]
    fn insert(&self, tuple: &Tuple<V4>, flow: FlowRef) -> bool {
        FLOW_INDEX.insert(tuple, flow, BPF_NOEXIST as u64).is_ok()
    }

    #[inline(always)]
    fn remove(&self, tuple: &Tuple<V4>) {
        if let Err(errno) = FLOW_INDEX.remove(tuple) {
            fault(Fault::Remove, errno.into());
        }
    }
}

impl<C: EbpfContext> FlowRecords<V4> for Kernel<C> {
    #[inline(always)]
    fn flow(&self, index: u32) -> Option<&Flow<V4>> {
        FLOWS.get(index).map(|record| &record.0)
    }

    #[inline(always)]
    fn flow_state(&self, flow: &Flow<V4>) -> FlowState {
        // SAFETY: a live reference; volatile, since another CPU may have changed the word.
        FlowState(unsafe { ptr::read_volatile(flow.flow_state.as_ptr()) })
    }

    #[inline(always)]
    fn swap_flow_state(&self, flow: &Flow<V4>, from: FlowState, to: FlowState) -> bool {
        // SAFETY: an aligned 64-bit word of a map's element, changed by this operation only.
        unsafe { atomic::compare_and_swap(flow.flow_state.as_ptr(), from.0, to.0) }
    }

    #[inline(always)]
    fn raise(&self, number: &Cell<u32>, to: u32) {
        // SAFETY: an aligned word of a map's element; volatile, because another CPU may have changed
        // it.
        let mut seen = unsafe { ptr::read_volatile(number.as_ptr()) };
        for _ in 0..RAISES {
            if !before(seen, to) {
                return;
            }
            // SAFETY: as above.
            let (now, done) = unsafe { atomic::exchange(number.as_ptr(), seen, to) };
            if done {
                return;
            }
            seen = now;
        }
    }

    #[inline(always)]
    fn take_free(&self) -> Option<u32> {
        let index = FREE.pop().ok().flatten()?;
        self.count_used(1);
        Some(index)
    }

    #[inline(always)]
    fn give_free(&self, index: u32) {
        if FREE.push(index, 0).is_ok() {
            self.count_used(u64::MAX);
        } else {
            fault(Fault::GiveFree, index.into());
        }
    }

    #[inline(always)]
    fn used(&self) -> u32 {
        let Some(cursors) = CURSORS.get_ptr(0) else {
            return 0;
        };
        // SAFETY: a live element; volatile, since other CPUs change the word.
        unsafe { ptr::read_volatile(&raw const (*cursors).used) as u32 }
    }

    #[inline(always)]
    fn next_sweep(&self) -> u32 {
        let Some(cursors) = CURSORS.get_ptr_mut(0) else {
            return 0;
        };
        // SAFETY: an aligned 64-bit word of a map's element.
        let cursor = unsafe { atomic::increment(&raw mut (*cursors).sweep) };
        wrap(cursor, self.settings().flows)
    }

    /// While nobody watches, this costs one array lookup.
    #[inline(always)]
    fn emit(&self, flow: &Flow<V4>, index: u32, flow_state: FlowState, kind: EventKind) {
        let Some(watch) = WATCH.get_ptr(0) else {
            return;
        };
        // SAFETY: a live element; volatile, because the watcher changes it.
        let until = unsafe { ptr::read_volatile(watch) };
        if until == 0 {
            return;
        }
        // SAFETY: no arguments.
        let now = unsafe { bpf_ktime_get_coarse_ns() };
        if now < until
            && let Some(place) = EVENTS.reserve::<Event<V4>>(0)
        {
            // SAFETY: this program's own part of the ring; any bytes are a valid event.
            let event = unsafe { &*place.as_ptr() };
            event.fill(flow, index, flow_state, kind, clock::ticks(now));
            place.submit(0);
        } else if let Some(lost) = LOST.get_ptr_mut(0) {
            // SAFETY: an aligned 64-bit word of a map's element. Atomic, because packets interrupt
            // a program that the command line runs.
            unsafe { atomic::increment(lost) };
        }
    }
}

impl<C: EbpfContext> UnassuredRing<V4> for Kernel<C> {
    #[inline(always)]
    fn next_ring(&self) -> u64 {
        let Some(cursors) = CURSORS.get_ptr_mut(0) else {
            return 0;
        };
        // SAFETY: an aligned 64-bit word of a map's element.
        unsafe { atomic::increment(&raw mut (*cursors).ring) }
    }

    #[inline(always)]
    fn ring(&self, place: u32) -> Pending {
        UNASSURED_RING.get(place).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn set_ring(&self, place: u32, pending: Pending) {
        if let Some(entry) = UNASSURED_RING.get_ptr_mut(place) {
            // SAFETY: a live element; readers check its content against the record.
            unsafe { *entry = pending };
        }
    }
}

impl<C: EbpfContext> Quotas<V4> for Kernel<C> {
    #[inline(always)]
    fn quota(&self, slot: u32) -> Option<&Quota> {
        QUOTAS.get(slot).map(|shares| &shares.0)
    }

    #[inline(always)]
    fn add(&self, word: &Cell<u64>, summand: u64) -> u64 {
        // SAFETY: an aligned 64-bit word of a map's element.
        unsafe { atomic::add(word.as_ptr(), summand) }
    }

    #[inline(always)]
    fn swap(&self, word: &Cell<u64>, from: u64, to: u64) -> bool {
        // SAFETY: an aligned 64-bit word of a map's element.
        unsafe { atomic::compare_and_swap(word.as_ptr(), from, to) }
    }
}

impl<C: EbpfContext> PortAffinities<V4> for Kernel<C> {
    #[inline(always)]
    fn affinity(&self, place: u32) -> Option<PortAffinity<V4>> {
        AFFINITIES.get(place).copied()
    }

    #[inline(always)]
    fn set_affinity(&self, place: u32, affinity: PortAffinity<V4>) {
        if let Some(entry) = AFFINITIES.get_ptr_mut(place) {
            // SAFETY: a live element; a torn entry costs no more than one failed try.
            unsafe { *entry = affinity };
        }
    }
}

impl<C: EbpfContext> FragmentState<V4> for Kernel<C> {
    #[inline(always)]
    fn series(&self) -> FragmentSeries<V4> {
        SERIES.get(0).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn set_series(&self, series: FragmentSeries<V4>) {
        if let Some(place) = SERIES.get_ptr_mut(0) {
            // SAFETY: this CPU's own element; programs of one kind do not interrupt each other.
            unsafe { *place = series };
        }
    }
}

impl<C: EbpfContext> Routes<V4> for Kernel<C> {
    #[inline(always)]
    fn route(&self, ifindex: u32, tuple: &Tuple<V4>) -> Route<V4> {
        // SAFETY: plain integers, for which zero is a value.
        let mut params: bpf_fib_lookup = unsafe { zeroed() };
        params.family = AF_INET;
        params.l4_protocol = tuple.proto as u8;
        params.sport = tuple.sport.word();
        params.dport = tuple.dport.word();
        params.ifindex = ifindex;
        // With any length the kernel returns the route's MTU instead of the device's.
        params.__bindgen_anon_1.tot_len = 1;
        params.__bindgen_anon_3.ipv4_src = tuple.src.word();
        params.__bindgen_anon_4.ipv4_dst = tuple.dst.word();
        // The neighbour entry does not matter, because the kernel resolves it on output; but a
        // lookup that ends at a missing entry returns no MTU.
        let mut outcome = self.look_up(&mut params, BPF_FIB_LOOKUP_SKIP_NEIGH);
        if outcome == EINVAL {
            // Kernels before 6.3 do not know the flag.
            outcome = self.look_up(&mut params, 0);
        }
        let stopped = outcome == BPF_FIB_LKUP_RET_NO_NEIGH as i64;
        if outcome != 0 && !stopped {
            return Route::Kernel;
        }
        if params.family != AF_INET {
            // Only the kernel can send to an IPv6 next hop (RFC 8950).
            return Route::Forward {
                ifindex: params.ifindex,
                next_hop: tuple.dst,
                mtu: 0,
            };
        }
        // SAFETY: the kernel filled both unions with what is read here.
        let (next_hop, mtu) = unsafe {
            (
                params.__bindgen_anon_4.ipv4_dst,
                params.__bindgen_anon_1.mtu_result,
            )
        };
        Route::Forward {
            ifindex: params.ifindex,
            next_hop: Be32::from_word(next_hop),
            mtu: if stopped {
                self.mtu(params.ifindex).unwrap_or_default()
            } else {
                mtu as u32
            },
        }
    }

    #[inline(always)]
    fn reverse_path(&self, tuple: &Tuple<V4>) -> ReversePath {
        // SAFETY: plain integers, for which zero is a value.
        let mut params: bpf_fib_lookup = unsafe { zeroed() };
        params.family = AF_INET;
        params.ifindex = LOOPBACK;
        params.__bindgen_anon_3.ipv4_src = tuple.dst.word();
        params.__bindgen_anon_4.ipv4_dst = tuple.src.word();
        let mut outcome = self.look_up(&mut params, BPF_FIB_LOOKUP_SKIP_NEIGH);
        if outcome == EINVAL {
            outcome = self.look_up(&mut params, 0);
        }
        if outcome == 0 || outcome == BPF_FIB_LKUP_RET_NO_NEIGH as i64 {
            ReversePath::Device(params.ifindex)
        } else if outcome >= BPF_FIB_LKUP_RET_BLACKHOLE as i64
            && outcome <= BPF_FIB_LKUP_RET_NOT_FWDED as i64
        {
            ReversePath::None
        } else {
            ReversePath::Unknown
        }
    }

    #[inline(always)]
    fn exists(&self, ifindex: u32) -> bool {
        self.mtu(ifindex).is_some()
    }
}

impl<C: EbpfContext> Sockets<V4> for Kernel<C> {
    #[inline(always)]
    fn bound(&self, port: Be16) -> Ticks {
        let number = port.get();
        match BOUND.get(number as u32 / 2) {
            Some(pair) => pair[number as usize % 2],
            None => 0,
        }
    }

    #[inline(always)]
    fn socket(&self, tuple: &Tuple<V4>) -> bool {
        // SAFETY: plain integers.
        let mut name: bpf_sock_tuple = unsafe { zeroed() };
        name.__bindgen_anon_1.ipv4.saddr = tuple.src.word();
        name.__bindgen_anon_1.ipv4.daddr = tuple.dst.word();
        name.__bindgen_anon_1.ipv4.sport = tuple.sport.word();
        name.__bindgen_anon_1.ipv4.dport = tuple.dport.word();
        let length = (2 * size_of::<Be32>() + 2 * size_of::<Be16>()) as u32;
        // SAFETY: the context is this program's; a socket that is found is released.
        unsafe {
            let socket = match tuple.proto {
                proto::TCP => {
                    bpf_skc_lookup_tcp(self.ctx.as_ptr(), &raw mut name, length, THIS_NAMESPACE, 0)
                }
                proto::UDP => {
                    bpf_sk_lookup_udp(self.ctx.as_ptr(), &raw mut name, length, THIS_NAMESPACE, 0)
                }
                _ => return false,
            };
            if socket.is_null() {
                return false;
            }
            bpf_sk_release(socket.cast());
        }
        true
    }
}

impl<C: EbpfContext> Runtime for Kernel<C> {
    #[inline(always)]
    fn now(&self) -> Ticks {
        // SAFETY: no arguments.
        clock::ticks(unsafe { bpf_ktime_get_coarse_ns() })
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: no arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn attempt<A: Attempt>(&self, times: u32, attempt: &mut A) {
        let callback: unsafe extern "C" fn(u64, *mut A) -> i64 = once::<A>;
        // SAFETY: the callback has the helper's signature, and `attempt` outlives the call.
        unsafe {
            bpf_loop(
                times,
                callback as *mut c_void,
                ptr::from_mut(attempt).cast(),
                0,
            );
        }
    }
}

impl Host6 for Kernel<TcContext> {
    #[inline(always)]
    fn is_armed(&self) -> bool {
        self.settings().armed != 0
    }

    #[inline(always)]
    fn device(&self, ifindex: u32) -> Option<Device> {
        Configuration::device(self, ifindex)
    }

    #[inline(always)]
    fn network_flags(&self, bridge: u32) -> Option<u32> {
        // SAFETY: as for `device`.
        unsafe { NETWORKS.get(bridge) }.map(|network| network.flags)
    }

    #[inline(always)]
    fn network_policy(&self, bridge: u32) -> u32 {
        // SAFETY: as for `device`.
        unsafe { NETWORKS.get(bridge) }.map_or(0, |network| network.policy)
    }

    #[inline(always)]
    fn subnet(&self, addr: Be128) -> Option<u32> {
        SUBNETS6.get(Key::new(128, addr)).copied()
    }

    #[inline(always)]
    fn is_local(&self, key: &HostAddressKey6) -> bool {
        HOST_ADDRESSES6.get_ptr(key).is_some()
    }

    #[inline(always)]
    fn owner(&self, key: &OwnerKey6) -> Option<u32> {
        // SAFETY: as for `device`.
        unsafe { OWNERS6.get(key) }.copied()
    }

    #[inline(always)]
    fn endpoint(&self, veth: u32) -> Option<Endpoint6> {
        // SAFETY: as for `device`.
        unsafe { ENDPOINTS6.get(veth) }.copied()
    }

    #[inline(always)]
    fn allowed(&self, key: &AllowedKey6) -> u32 {
        let word = ALLOWED6.get(Key::new(32 + 128, *key));
        word.copied().unwrap_or_default()
    }

    #[inline(always)]
    fn published(&self, key: &PortKey6) -> Option<Published6> {
        // SAFETY: as for `device`.
        unsafe { PUBLISHED6.get(key) }.copied()
    }

    #[inline(always)]
    fn ingress(&self, key: &IngressKey6) -> u32 {
        let word = INGRESS6.get(Key::new(32 + 128, *key));
        word.copied().unwrap_or_default()
    }

    #[inline(always)]
    fn load<T: Pod>(&self, offset: u32) -> Option<T> {
        let mut value = T::zeroed();
        let place = ptr::from_mut(&mut value).cast();
        // SAFETY: `value` has room for that many bytes, and any bytes are a valid value.
        let outcome = unsafe {
            bpf_skb_load_bytes(
                self.ctx.skb.skb.cast(),
                offset,
                place,
                size_of::<T>() as u32,
            )
        };
        (outcome == 0).then_some(value)
    }

    #[inline(always)]
    fn route(&self, ifindex: u32, src: Be128, dst: Be128) -> Option<u32> {
        // SAFETY: plain integers, for which zero is a value.
        let mut params: bpf_fib_lookup = unsafe { zeroed() };
        params.family = AF_INET6;
        params.ifindex = ifindex;
        params.__bindgen_anon_3.ipv6_src = src.words();
        params.__bindgen_anon_4.ipv6_dst = dst.words();
        let outcome = self.look_up(&mut params, 0);
        let forwarded = outcome == 0 || outcome == BPF_FIB_LKUP_RET_NO_NEIGH as i64;
        forwarded.then_some(params.ifindex)
    }
}

/// The callback of `bpf_loop`: 1 ends the loop.
///
/// # Safety
/// `attempt` is the argument of [`Runtime::attempt`].
unsafe extern "C" fn once<A: Attempt>(_: u64, attempt: *mut A) -> i64 {
    // SAFETY: as above.
    i64::from(unsafe { &mut *attempt }.once())
}

/// The index of a cursor in a table of `size` elements.
#[inline(always)]
fn wrap(cursor: u64, size: u32) -> u32 {
    if size == 0 {
        0
    } else {
        (cursor % size as u64) as u32
    }
}
