// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host in plain memory: the tables, the clock and the ways out of a hook that the packet logic
//! needs, under a test's control. A parity test compares it with the programs in the kernel.

mod environment;
pub mod frames;
pub mod host;
pub mod ipv6;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};

use forwarder_common::abi::{
    AllowedKey6, Cursors, Device, End, Endpoint, Endpoint6, Flow, FlowRef, FlowState,
    HostAddressKey6, IngressKey6, LinkKey, Network, OwnerKey6, Pending, PortAffinity, PortKey,
    PortKey6, Published, Published6, Quota, REPLY, ServerKey, Settings, TrustKey, Tuple, capacity,
};
use forwarder_common::clock::Ticks;
use forwarder_common::conntrack::{flow, quota};
use forwarder_common::context::{HookInput, PacketContext};
use forwarder_common::environment::Route;
use forwarder_common::event::Event;
use forwarder_common::family::{Be32, Be128, V4};
use forwarder_common::hooks;
use forwarder_common::mark;
use forwarder_common::meta::{Meta, Side};
use forwarder_common::reason::{Path, Reason};
use forwarder_common::steps::refuse::Refusal;
use forwarder_common::wire::frame::Frame;
use forwarder_common::wire::header::Ip as _;
use forwarder_common::wire::parse::Packet;
use forwarder_common::wire::series::FragmentSeries;

use crate::rng::Rng;

/// The hook of a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    OutsideIn,
    OutsideInRaw,
    OutsideOut,
    OutsideOutRaw,
    ContainerIn,
    ContainerOut,
    FollowedIn,
    FollowedOut,
    BridgeIn,
    BridgeOut,
    DefragOut,
    Uplink,
}

/// How a packet arrives at a hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Arrival {
    pub ifindex: u32,
    pub ingress_ifindex: u32,
    pub mark: u32,
    pub hash: u32,
    pub segment: u32,
}

/// Where a redirect leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    Peer(u32),
    Neighbour(u32, Be32),
    /// Back on the device that the packet came from: it became an ICMP error.
    Back(u32),
    /// To a device's ingress.
    Ingress(u32),
}

/// The outcome of a packet; no reason if XDP passed it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    pub reason: Option<Reason>,
    pub mark: u32,
    pub hash: u32,
    pub target: Option<Target>,
}

impl Outcome {
    /// Whether the packet goes on to the kernel's stack.
    pub fn passes(&self) -> bool {
        self.reason
            .is_none_or(|reason| matches!(reason.path(), Path::Kernel | Path::Again))
    }
}

/// The metadata of a packet: mark and hash.
#[derive(Clone, Copy, Debug)]
pub struct Carried(pub u32, pub u32);

impl From<u32> for Carried {
    fn from(mark: u32) -> Self {
        Self(mark, 0)
    }
}

impl From<Outcome> for Carried {
    fn from(outcome: Outcome) -> Self {
        Self(outcome.mark, outcome.hash)
    }
}

/// The size of a table up to which every packet is followed by a check.
const CHECKED: usize = 1024;

/// What another CPU does while a packet is being processed.
type Interference = Box<dyn FnOnce(&Host)>;

/// The host.
pub struct Host {
    pub settings: Settings,
    pub devices: HashMap<u32, Device>,
    pub networks: HashMap<u32, Network<V4>>,
    pub subnets: HashMap<(Be32, u8), u32>,
    pub locals: HashSet<Be32>,
    pub published: HashMap<PortKey<V4>, Published<V4>>,
    pub seen_as: HashMap<ServerKey<V4>, u32>,
    pub trusted: HashSet<TrustKey>,
    pub links: HashSet<LinkKey<V4>>,
    /// Lists of clients by list, address and prefix length.
    pub ingress: HashMap<(u32, Be32, u8), u32>,
    /// Sources that containers may use, by device, address and prefix length.
    pub allowed: HashMap<(u32, Be32, u8), u32>,
    pub endpoint_slots: HashMap<Be32, u32>,
    pub endpoints: Vec<Endpoint<V4>>,
    /// The quota counters of endpoints, by slot.
    pub quotas: Vec<Quota>,
    pub mappings: HashMap<u32, u32>,
    pub sources: HashMap<(u32, Be32, u8), Be32>,
    /// Devices that exist, and the MAC address of each.
    pub nics: HashMap<u32, [u8; 6]>,
    /// Veths whose peers accept frames from XDP.
    pub ports: HashSet<u32>,
    /// The kernel's routes by destination prefix.
    pub routes: HashMap<(Be32, u8), Route<V4>>,
    /// The IPv6 tables, and the devices on which IPv6 would be forwarded.
    pub locals6: HashSet<HostAddressKey6>,
    pub subnets6: HashMap<(Be128, u8), u32>,
    pub owners6: HashMap<OwnerKey6, u32>,
    pub endpoints6: HashMap<u32, Endpoint6>,
    pub routes6: HashMap<Be128, u32>,
    pub published6: HashMap<PortKey6, Published6>,
    /// With the prefix length of the client's address.
    pub ingress6: HashMap<(IngressKey6, u8), u32>,
    /// With the prefix length of the source.
    pub allowed6: HashMap<(AllowedKey6, u8), u32>,
    /// The destinations for which the host has a socket.
    pub sockets: HashSet<PortKey<V4>>,
    /// When privileged processes bound UDP ports.
    pub bound: HashMap<u16, Ticks>,
    pub clock: Cell<Ticks>,
    pub index: RefCell<HashMap<Tuple<V4>, FlowRef>>,
    pub flows: Vec<Flow<V4>>,
    pub free: RefCell<VecDeque<u32>>,
    /// The events that were emitted.
    pub emitted: RefCell<Vec<Event<V4>>>,
    /// The next result of `random`, once, instead of the generator's number: the kernel may have
    /// tried this port and have had to give it up, and then trying it again would not help.
    pub drawn: Cell<Option<u32>>,
    /// The last packet, if it was turned into another one.
    pub answer: RefCell<Option<Vec<u8>>>,
    ring: RefCell<Vec<Pending>>,
    cursors: Cell<Cursors>,
    affinities: RefCell<HashMap<u32, PortAffinity<V4>>>,
    cached_flow: RefCell<HashMap<u32, FlowRef>>,
    pub series: Cell<FragmentSeries<V4>>,
    rng: RefCell<Rng>,
    mark: Cell<u32>,
    hash: Cell<u32>,
    /// The length of the frame that is being processed.
    length: Cell<u32>,
    target: Cell<Option<Target>>,
    interference: RefCell<Option<(u32, Interference)>>,
    interfering: Cell<bool>,
    /// Packets since the last check.
    unchecked: Cell<usize>,
}

/// Whether a frame is for a bridge's group address.
fn is_to_group(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x01, 0x80, 0xc2, 0, 0])
        && bytes.get(5).is_some_and(|last| last & 0xf0 == 0)
}

impl Host {
    /// A host with empty tables, with room for this many flows.
    pub fn new(flows: u32) -> Self {
        let ring = flows / capacity::UNASSURED_SHARE;
        Self {
            settings: Settings {
                route_generation: 1,
                ring,
                flows,
                armed: 1,
                ..Settings::default()
            },
            devices: HashMap::new(),
            networks: HashMap::new(),
            subnets: HashMap::new(),
            locals: HashSet::new(),
            published: HashMap::new(),
            seen_as: HashMap::new(),
            trusted: HashSet::new(),
            links: HashSet::new(),
            ingress: HashMap::new(),
            allowed: HashMap::new(),
            endpoint_slots: HashMap::new(),
            endpoints: vec![Endpoint::default(); 256],
            quotas: (0..256).map(|_| Quota::default()).collect(),
            mappings: HashMap::new(),
            sources: HashMap::new(),
            nics: HashMap::new(),
            ports: HashSet::new(),
            routes: HashMap::new(),
            locals6: HashSet::new(),
            subnets6: HashMap::new(),
            owners6: HashMap::new(),
            endpoints6: HashMap::new(),
            routes6: HashMap::new(),
            published6: HashMap::new(),
            ingress6: HashMap::new(),
            allowed6: HashMap::new(),
            sockets: HashSet::new(),
            bound: HashMap::new(),
            clock: Cell::default(),
            index: RefCell::default(),
            flows: (0..flows).map(|_| empty_flow()).collect(),
            free: RefCell::new((0..flows).collect()),
            emitted: RefCell::default(),
            drawn: Cell::default(),
            answer: RefCell::default(),
            ring: RefCell::new(vec![Pending::default(); ring as usize]),
            cursors: Cell::default(),
            affinities: RefCell::default(),
            cached_flow: RefCell::default(),
            series: Cell::default(),
            rng: RefCell::new(Rng::new(1)),
            mark: Cell::default(),
            hash: Cell::default(),
            length: Cell::default(),
            target: Cell::default(),
            interference: RefCell::default(),
            interfering: Cell::default(),
            unchecked: Cell::default(),
        }
    }

    /// Lets time pass, with the agent alive.
    pub fn wait(&mut self, ticks: Ticks) {
        self.clock.set(self.clock.get().wrapping_add(ticks));
        self.settings.heartbeat = self.clock.get();
    }

    /// Runs `action` when packets read a flow state for the `nth` time from now on, counted from 0:
    /// what another CPU might do at that moment.
    pub fn interfere(&self, nth: u32, action: impl FnOnce(&Self) + 'static) {
        *self.interference.borrow_mut() = Some((nth, Box::new(action)));
    }

    /// Runs a hook on a frame, which the hook may change.
    pub fn run(&self, hook: Hook, bytes: &mut [u8], arrival: Arrival) -> Outcome {
        self.mark.set(arrival.mark);
        self.hash.set(arrival.hash);
        self.length.set(bytes.len() as u32);
        self.target.set(None);
        self.answer.take();
        let reason = self.decide(hook, bytes, arrival);
        Outcome {
            reason,
            mark: self.mark.get(),
            hash: self.hash.get(),
            target: self.target.get(),
        }
    }

    /// Whether a frame on a veth or a bridge is no packet for the pipeline.
    fn is_other_frame(&self, hook: Hook, bytes: &[u8], arrival: Arrival) -> bool {
        let kind = bytes.get(12..14);
        let addressed = match hook {
            Hook::ContainerIn if is_to_group(bytes) => return true,
            Hook::ContainerIn => true,
            Hook::BridgeIn => {
                let nic = self.nics.get(&arrival.ifindex);
                nic.is_some_and(|mac| bytes.starts_with(mac))
            }
            _ => return false,
        };
        kind != Some(&[0x86, 0xdd]) && (!addressed || kind != Some(&[0x08, 0x00]))
    }

    /// The verdict on a frame.
    fn judge_frame(&self, hook: Hook, bytes: &mut [u8], arrival: Arrival) -> Reason {
        let at_veth = hook == Hook::ContainerIn;
        let meta = Meta {
            ifindex: arrival.ifindex,
            ingress_ifindex: arrival.ingress_ifindex,
            l3: 14,
            segment: arrival.segment,
            mark: arrival.mark,
            hash: arrival.hash,
        };
        if self.settings.armed == 0 {
            Reason::Unarmed
        } else if !at_veth && hooks::is_isolated(self, meta.ifindex) {
            Reason::Internal
        } else if at_veth && is_to_group(bytes) {
            let ethertype = u16::from_be_bytes([bytes[12], bytes[13]]);
            hooks::group_frame(self, meta.ifindex, ethertype)
        } else if bytes.get(12..14) == Some(&[0x08, 0x06]) {
            let side = if at_veth { Side::Veth } else { Side::Bridge };
            hooks::arp(Frame::new(bytes), &meta, self, side)
        } else if at_veth {
            hooks::other_frame(self, meta.ifindex)
        } else {
            Reason::NotForUs
        }
    }

    fn decide(&self, hook: Hook, bytes: &mut [u8], arrival: Arrival) -> Option<Reason> {
        let raw = matches!(hook, Hook::OutsideInRaw | Hook::OutsideOutRaw);
        if !raw {
            if self.is_other_frame(hook, bytes, arrival) {
                return Some(self.judge_frame(hook, bytes, arrival));
            }
            if bytes.get(12..14) == Some(&[0x86, 0xdd]) {
                return self.judge_ipv6(hook, bytes, arrival);
            }
            if bytes.get(12..14) != Some(&[0x08, 0x00]) {
                return (hook != Hook::Uplink).then_some(Reason::NotIp);
            }
            let nic = self.nics.get(&arrival.ifindex);
            let addressed = matches!(hook, Hook::OutsideIn | Hook::BridgeIn);
            if addressed && nic.is_none_or(|mac| bytes[..6] != *mac) {
                return Some(Reason::NotForUs);
            }
        }
        let l3 = if raw { 0 } else { 14 };
        let Arrival {
            ifindex,
            ingress_ifindex,
            mark,
            hash,
            segment,
        } = arrival;
        let mut meta = Meta {
            ifindex,
            ingress_ifindex,
            l3,
            segment,
            mark,
            hash,
        };
        if hook == Hook::Uplink {
            // At XDP there is no socket buffer yet.
            (meta.segment, meta.mark, meta.hash) = (0, 0, 0);
        }
        let input = HookInput {
            frame: Frame::new(bytes),
            meta: &meta,
            tables: self,
        };
        let packet = &mut Packet::default();
        let reason = match hook {
            Hook::OutsideIn | Hook::OutsideInRaw => hooks::outside_in(input, packet),
            Hook::OutsideOut | Hook::OutsideOutRaw => hooks::outside_out(input, packet),
            Hook::ContainerIn => hooks::container_in(input, packet),
            Hook::ContainerOut => hooks::container_out(input, packet),
            Hook::FollowedIn => hooks::followed_in(input, packet),
            Hook::FollowedOut => hooks::followed_out(input, packet),
            Hook::BridgeIn => hooks::bridge_in(input, packet),
            Hook::BridgeOut => hooks::bridge_out(input, packet),
            Hook::DefragOut => hooks::defrag_out(input, packet),
            Hook::Uplink => return hooks::uplink(input),
        };
        let side = match hook {
            Hook::ContainerIn | Hook::FollowedIn => Side::Veth,
            Hook::BridgeIn if mark::kind(mark) == mark::DEFRAGMENTED => Side::Defragmented,
            Hook::BridgeIn => Side::Bridge,
            _ => Side::Outside,
        };
        if reason.is_exhaustion() {
            let context = PacketContext {
                frame: Frame::new(bytes),
                meta: &meta,
                tables: self,
                side,
                packet,
            };
            if let Some(refusal) = context.refuse() {
                self.mark.set(mark::with(mark, refusal.mark));
                self.target.set(Some(Target::Back(ifindex)));
                self.answer.replace(Some(answer(&refusal, bytes)));
            }
        }
        Some(reason)
    }

    /// The live flow of a tuple, and its flow state.
    pub fn flow_of(&self, tuple: &Tuple<V4>) -> Option<(&Flow<V4>, FlowState)> {
        flow::find(self, tuple).map(|hit| (hit.flow, hit.flow_state))
    }

    /// Checks after every packet; with a large table, where a check takes as long as hundreds of
    /// packets, after each 64th.
    fn check_some(&self) {
        let unchecked = self.unchecked.get() + 1;
        let is_due = self.flows.len() <= CHECKED || unchecked == 64;
        if is_due {
            self.check();
        }
        self.unchecked.set(if is_due { 0 } else { unchecked });
    }

    /// Checks what must hold between two packets: every key names a live record with this tuple or
    /// stands for a connection of the kernel, every live record has both of its keys, and no free
    /// record is free twice.
    pub fn check(&self) {
        if self.interfering.get() {
            // A packet is still being processed.
            return;
        }
        let index = self.index.borrow();
        let is_own = |reference: &FlowRef| *reference != FlowRef::KERNEL;
        for (tuple, reference) in index.iter().filter(|(_, reference)| is_own(reference)) {
            let flow = &self.flows[reference.index as usize];
            let flow_state = FlowState(flow.flow_state.get());
            assert!(
                flow_state.is_live() && flow_state.id() == reference.id,
                "a key without a flow: {tuple:?}"
            );
            assert!(
                flow.tuples.iter().any(|own| own.get() == *tuple),
                "a stranger's key: {tuple:?}"
            );
        }
        let live = self
            .flows
            .iter()
            .filter(|flow| FlowState(flow.flow_state.get()).is_live());
        let keys: usize = live
            .map(|flow| {
                for tuple in &flow.tuples {
                    assert!(index.contains_key(&tuple.get()), "half a flow: {flow:?}");
                }
                2
            })
            .sum();
        let own = index.values().filter(|reference| is_own(reference)).count();
        assert_eq!(own, keys, "two flows share a key");
        for (slot, quota) in self.quotas.iter().enumerate() {
            let held = quota.held.get();
            if held == 0 {
                continue;
            }
            let of_slot = |flow: &&Flow<V4>| {
                let originator = End::of(&flow.next_hops[REPLY]);
                FlowState(flow.flow_state.get()).is_live()
                    && originator.slot as usize == slot
                    && originator.generation == quota::owner(held)
            };
            let live = self.flows.iter().filter(of_slot).count();
            assert_eq!(quota::count(held), live as i32, "charged to slot {slot}");
        }
        let free = self.free.borrow();
        assert_eq!(
            free.len(),
            free.iter().collect::<HashSet<_>>().len(),
            "freed twice"
        );
        assert_eq!(free.len() + keys / 2, self.flows.len(), "a record is lost");
    }
}

/// The ICMP error that a refused packet becomes.
fn answer(refusal: &Refusal<V4>, frame: &[u8]) -> Vec<u8> {
    let (link, packet) = frame.split_at(14);
    let mut answer = [link, &[0; V4::REFUSAL], packet].concat();
    answer.truncate(refusal.octets());
    assert!(
        refusal.write(&mut Frame::new(&mut answer)),
        "half an answer"
    );
    answer
}

fn empty_flow() -> Flow<V4> {
    Flow {
        flow_state: Cell::default(),
        packets: Default::default(),
        bytes: Default::default(),
        tuples: Default::default(),
        next_hops: Default::default(),
        ifindex: Cell::default(),
        next_hop: Cell::default(),
        expires: Cell::default(),
        seen: Cell::default(),
        created: Cell::default(),
        mapping: Cell::default(),
        mapping_generation: Cell::default(),
        address_delta: Default::default(),
        port_delta: Default::default(),
        policy: Cell::default(),
        uplink_mac: Cell::default(),
        windows: Default::default(),
    }
}
