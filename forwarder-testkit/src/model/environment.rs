// SPDX-License-Identifier: MIT OR Apache-2.0
//! Implements the interface of the packet logic over plain memory.

use std::cell::Cell;

use forwarder_common::abi::{
    AllowedKey, Device, Endpoint, Flow, FlowRef, FlowState, IngressKey, LinkKey, Network, Pending,
    PortAffinity, PortKey, Published, Quota, ServerKey, Settings, TrustKey, Tuple,
};
use forwarder_common::attempt::Attempt;
use forwarder_common::call_steps;
use forwarder_common::call_subprograms;
use forwarder_common::clock::Ticks;
use forwarder_common::context::PacketContext;
use forwarder_common::environment::{
    BaseConfiguration, Configuration, Devmap, FlowIndex, FlowRecords, FragmentState, Output,
    PortAffinities, Quotas, ReversePath, Route, Routes, Runtime, SkbOutput, Sockets, UnassuredRing,
};
use forwarder_common::event::{Event, EventKind};
use forwarder_common::family::{Be16, Be32, V4};
use forwarder_common::for_each_step;
use forwarder_common::for_each_subprogram;
use forwarder_common::mark;
use forwarder_common::meta::{Meta, Side};
use forwarder_common::reason::Reason;
use forwarder_common::steps::fragments;
use forwarder_common::subprograms::{Steps, Subprograms};
use forwarder_common::tracking::verdict::before;
use forwarder_common::wire::crc;
use forwarder_common::wire::frame::Frame;
use forwarder_common::wire::parse::Packet;
use forwarder_common::wire::rewrite::{self, Edit};
use forwarder_common::wire::series::FragmentSeries;

use super::{Host, Target};
use crate::checksum::sum;

/// The value of the longest prefix that contains `addr`.
fn longest<V: Copy>(prefixes: impl Iterator<Item = ((Be32, u8), V)>, addr: Be32) -> Option<V> {
    let mask = |len: u8| u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
    prefixes
        .filter(|&((base, len), _)| (base.get() ^ addr.get()) & mask(len) == 0)
        .max_by_key(|&((_, len), _)| len)
        .map(|(_, value)| value)
}

impl BaseConfiguration for Host {
    fn settings(&self) -> Settings {
        self.settings
    }

    fn device(&self, ifindex: u32) -> Option<Device> {
        self.devices.get(&ifindex).copied()
    }
}

impl Configuration<V4> for Host {
    fn network(&self, bridge: u32) -> Option<Network<V4>> {
        self.networks.get(&bridge).copied()
    }

    fn subnet(&self, addr: Be32) -> Option<u32> {
        longest(self.subnets.iter().map(|(&key, &value)| (key, value)), addr)
    }

    fn is_local(&self, addr: Be32) -> bool {
        self.locals.contains(&addr)
    }

    fn published(&self, key: &PortKey<V4>) -> Option<Published<V4>> {
        self.published.get(key).copied()
    }

    fn seen_as(&self, key: &ServerKey<V4>) -> u32 {
        self.seen_as.get(key).copied().unwrap_or_default()
    }

    fn trusts(&self, key: TrustKey) -> bool {
        self.trusted.contains(&key)
    }

    fn linked(&self, key: &LinkKey<V4>) -> bool {
        self.links.contains(key)
    }

    fn ingress(&self, IngressKey { list, client }: IngressKey<V4>) -> u32 {
        let of_list = self.ingress.iter().filter(|((id, ..), _)| *id == list);
        let prefixes = of_list.map(|(&(_, base, len), &word)| ((base, len), word));
        longest(prefixes, client).unwrap_or_default()
    }

    fn allowed(&self, AllowedKey { device, source }: AllowedKey<V4>) -> u32 {
        let of_device = self.allowed.iter().filter(|(key, _)| key.0 == device);
        let ranges = of_device.map(|(&(_, addr, len), &word)| ((addr, len), word));
        longest(ranges, source).unwrap_or_default()
    }

    fn endpoint_slot(&self, addr: Be32) -> Option<u32> {
        self.endpoint_slots.get(&addr).copied()
    }

    fn endpoint(&self, slot: u32) -> Option<&Endpoint<V4>> {
        self.endpoints.get(slot as usize)
    }

    fn mapping(&self, slot: u32) -> u32 {
        self.mappings.get(&slot).copied().unwrap_or_default()
    }

    fn source(&self, ifindex: u32, next_hop: Be32) -> Option<Be32> {
        let device = self
            .sources
            .iter()
            .filter(|((device, ..), _)| *device == ifindex);
        longest(
            device.map(|(&(_, base, len), &source)| ((base, len), source)),
            next_hop,
        )
    }
}

impl FlowIndex<V4> for Host {
    fn flow_ref(&self, tuple: &Tuple<V4>) -> Option<FlowRef> {
        self.index.borrow().get(tuple).copied()
    }

    fn cached_flow(&self, place: u32) -> FlowRef {
        self.cached_flow
            .borrow()
            .get(&place)
            .copied()
            .unwrap_or_default()
    }

    fn set_cached_flow(&self, place: u32, flow: FlowRef) {
        self.cached_flow.borrow_mut().insert(place, flow);
    }

    fn insert(&self, tuple: &Tuple<V4>, flow: FlowRef) -> bool {
        let mut index = self.index.borrow_mut();
        let free = !index.contains_key(tuple) && index.len() < self.flows.len() * 2;
        if free {
            index.insert(*tuple, flow);
        }
        free
    }

    fn remove(&self, tuple: &Tuple<V4>) {
        self.index.borrow_mut().remove(tuple);
    }
}

impl FlowRecords<V4> for Host {
    fn flow(&self, index: u32) -> Option<&Flow<V4>> {
        self.flows.get(index as usize)
    }

    fn flow_state(&self, flow: &Flow<V4>) -> FlowState {
        let action = {
            let mut interference = self.interference.borrow_mut();
            match &mut *interference {
                Some((0, _)) => interference.take().map(|(_, action)| action),
                Some((looks, _)) => {
                    *looks -= 1;
                    None
                }
                None => None,
            }
        };
        if let Some(action) = action {
            let (mark, hash, target) = (self.mark.get(), self.hash.get(), self.target.get());
            self.interfering.set(true);
            action(self);
            self.interfering.set(false);
            self.mark.set(mark);
            self.hash.set(hash);
            self.target.set(target);
        }
        FlowState(flow.flow_state.get())
    }

    fn swap_flow_state(&self, flow: &Flow<V4>, from: FlowState, to: FlowState) -> bool {
        let same = flow.flow_state.get() == from.0;
        if same {
            flow.flow_state.set(to.0);
        }
        same
    }

    fn raise(&self, number: &Cell<u32>, to: u32) {
        if before(number.get(), to) {
            number.set(to);
        }
    }

    fn take_free(&self) -> Option<u32> {
        self.free.borrow_mut().pop_front()
    }

    fn give_free(&self, index: u32) {
        self.free.borrow_mut().push_back(index);
    }

    fn used(&self) -> u32 {
        (self.flows.len() - self.free.borrow().len()) as u32
    }

    fn next_sweep(&self) -> u32 {
        let mut cursors = self.cursors.get();
        let place = (cursors.sweep % u64::from(self.settings.flows)) as u32;
        cursors.sweep += 1;
        self.cursors.set(cursors);
        place
    }

    fn emit(&self, flow: &Flow<V4>, index: u32, flow_state: FlowState, news: EventKind) {
        let event = Event::default();
        event.fill(flow, index, flow_state, news, self.clock.get());
        self.emitted.borrow_mut().push(event);
    }
}

impl UnassuredRing<V4> for Host {
    fn next_ring(&self) -> u64 {
        let mut cursors = self.cursors.get();
        let place = cursors.ring;
        cursors.ring += 1;
        self.cursors.set(cursors);
        place
    }

    fn ring(&self, place: u32) -> Pending {
        self.ring.borrow()[place as usize]
    }

    fn set_ring(&self, place: u32, pending: Pending) {
        self.ring.borrow_mut()[place as usize] = pending;
    }
}

impl Quotas<V4> for Host {
    fn quota(&self, slot: u32) -> Option<&Quota> {
        self.quotas.get(slot as usize)
    }

    fn add(&self, word: &Cell<u64>, summand: u64) -> u64 {
        word.replace(word.get().wrapping_add(summand))
    }

    fn swap(&self, word: &Cell<u64>, from: u64, to: u64) -> bool {
        let same = word.get() == from;
        if same {
            word.set(to);
        }
        same
    }
}

impl PortAffinities<V4> for Host {
    fn affinity(&self, place: u32) -> Option<PortAffinity<V4>> {
        Some(
            self.affinities
                .borrow()
                .get(&place)
                .copied()
                .unwrap_or_default(),
        )
    }

    fn set_affinity(&self, place: u32, affinity: PortAffinity<V4>) {
        self.affinities.borrow_mut().insert(place, affinity);
    }
}

impl FragmentState<V4> for Host {
    fn series(&self) -> FragmentSeries<V4> {
        self.series.get()
    }

    fn set_series(&self, series: FragmentSeries<V4>) {
        self.series.set(series);
    }
}

impl Routes<V4> for Host {
    fn route(&self, _: u32, tuple: &Tuple<V4>) -> Route<V4> {
        if self.locals.contains(&tuple.dst) {
            return Route::Kernel;
        }
        let routes = self.routes.iter().map(|(&key, &route)| (key, route));
        match longest(routes, tuple.dst) {
            Some(Route::Forward {
                ifindex,
                next_hop,
                mtu,
            }) if next_hop == Be32::default() => Route::Forward {
                ifindex,
                next_hop: tuple.dst,
                mtu,
            },
            Some(route) => route,
            None => Route::Kernel,
        }
    }

    fn reverse_path(&self, tuple: &Tuple<V4>) -> ReversePath {
        match self.route(0, &tuple.reversed()) {
            Route::Forward { ifindex, .. } => ReversePath::Device(ifindex),
            Route::Kernel => ReversePath::None,
        }
    }

    fn exists(&self, ifindex: u32) -> bool {
        self.nics.contains_key(&ifindex)
    }
}

impl Sockets<V4> for Host {
    fn bound(&self, port: Be16) -> Ticks {
        self.bound.get(&port.get()).copied().unwrap_or_default()
    }

    fn socket(&self, tuple: &Tuple<V4>) -> bool {
        let proto = tuple.proto as u16;
        self.sockets.contains(&PortKey {
            addr: tuple.dst,
            port: tuple.dport,
            proto,
        })
    }
}

impl Runtime for Host {
    fn now(&self) -> Ticks {
        self.clock.get()
    }

    fn random(&self) -> u32 {
        let drawn = self.drawn.take();
        drawn.unwrap_or_else(|| self.rng.borrow_mut().word())
    }

    fn attempt<A: Attempt>(&self, times: u32, attempt: &mut A) {
        let _ = (0..times).any(|_| attempt.once());
    }
}

impl Devmap for Host {
    fn takes_frames(&self, ifindex: u32) -> bool {
        self.ports.contains(&ifindex)
    }
}

impl Output<V4> for Host {
    fn edit(&self, frame: &mut Frame<'_>, edit: &Edit<V4>) {
        let whole = rewrite::headers(frame, edit, crc::shift) && rewrite::checksum(frame, edit);
        assert!(whole, "half a packet written: {edit:?}");
    }

    fn to_peer(&self, ifindex: u32) {
        self.target.set(Some(Target::Peer(ifindex)));
    }
}

impl SkbOutput<V4> for Host {
    fn mark(&self, kind: u32) {
        self.mark.set(mark::with(self.mark.get(), kind));
    }

    fn hash(&self, hash: u32) {
        self.hash.set(hash);
    }

    fn to_ingress(&self, ifindex: u32) {
        self.target.set(Some(Target::Ingress(ifindex)));
    }

    fn to_neighbour(&self, ifindex: u32, next_hop: Be32) {
        self.mark.set(mark::with(self.mark.get(), mark::DONE));
        self.target.set(Some(Target::Neighbour(ifindex, next_hop)));
    }
}

impl Subprograms<V4> for Host {
    for_each_subprogram!(call_subprograms);
}

impl Steps<V4> for Host {
    for_each_step!(call_steps);

    fn enter(&self, _: Side) {}

    fn handle_fragment(
        &self,
        frame: Frame<'_>,
        meta: &Meta,
        side: Side,
        packet: &mut Packet<V4>,
    ) -> Option<Reason> {
        fragments::handle_fragment(frame, meta, self, side, packet)
    }

    fn sum(&self, context: &PacketContext<'_, V4, Self>) -> u16 {
        let Packet { l3, l4, len, .. } = *context.packet;
        let (l4, end) = (usize::from(l4), usize::from(l3) + usize::from(len));
        let bytes: Option<Vec<u8>> = (l4..end).map(|at| context.frame.read(at)).collect();
        bytes.map_or(0, |bytes| sum(&[&bytes]))
    }

    fn length(&self) -> u32 {
        self.length.get()
    }
}
