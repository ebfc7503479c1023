// SPDX-License-Identifier: MIT OR Apache-2.0
//! The packet path: one function per hook, then the steps that the hooks share.
//!
//! ```text
//! parse ─ find flow ─ hit ──► forward_established: steer ─ track ─ translate ─ redirect
//!             │ miss                                   │ the fast path cannot finish it
//!             ▼                                        ▼
//!       classify ─ create_flow ─► forward again   pass_to_kernel: translate the destination and mark
//!             │ refused                           the packet; `snat_on_egress` translates the source
//!             ▼                                   on the way out
//!       Reason: to the kernel, or dropped
//! ```
//!
//! **Invariants.**
//!
//! - An ingress hook rewrites a packet's source only if it also redirects the packet. If the packet
//!   were passed to the kernel instead, the kernel would drop it as a martian.
//! - A refused packet is unchanged.
//! - Every packet ends in exactly one [`Reason`].

mod access;
mod classify;
mod create_flow;
mod errors;
pub mod fragments;
mod hosts;
pub mod ipv6;
pub mod mark;
mod neighbour;
mod owner;

use crate::abi::{Endpoint, Flow, HOST, Network, OUTSIDE, device, network, others};
use crate::checksum;
use crate::family::{Address, Family};
use crate::flow::{self, Direction, Hit, ORIGINAL, REPLY};
use crate::frame::Frame;
use crate::parse::{Class, Packet, parse, proto};
use crate::quota;
use crate::reason::{Path, Reason};
use crate::rewrite::{Edit, Exit};
use crate::tables::{Route, Tables};
use crate::tcp::{self, State};
use crate::timeouts::{self, Ticks};
use crate::window;
use access::Standing;

pub use classify::{group_frame, is_isolated, other_frame};
pub use fragments::defrag_out;
pub use neighbour::arp;

/// What a hook knows about a packet besides the packet's bytes.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    /// The device that the hook is attached to.
    pub ifindex: u32,
    /// Egress hooks: the device on which the packet arrived; 0 for packets that the host itself
    /// sends.
    pub ingress_ifindex: u32,
    /// Offset of the network header: 14 with an Ethernet header, 0 without.
    pub l3: u8,
    /// Transport payload per segment of a GSO packet; 0 for other packets.
    pub segment: u32,
    /// The socket buffer's mark.
    pub mark: u32,
    /// The socket buffer's hash.
    pub hash: u32,
}

impl Meta {
    /// The mark that an earlier hook of the forwarder set on a packet that now leaves. A packet
    /// that the host itself sends has passed no earlier hook, so its mark was set by a process and
    /// is ignored.
    #[inline(always)]
    fn kind(&self) -> u32 {
        if self.ingress_ifindex == 0 {
            mark::NONE
        } else {
            mark::kind(self.mark)
        }
    }
}

/// On which side of the forwarder a hook is attached.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// An outside device.
    Outside,
    /// The host's end of a container's veth pair.
    Veth,
    /// The bridge, for containers whose veth has no hook.
    Bridge,
    /// The bridge, for fragments of a container's datagram that return from the defragmentation
    /// loopback. The container's veth checked them when they first arrived.
    Back,
}

/// The larger steps of the packet path. The kernel side makes each of them a global function, which
/// the verifier proves once; the verifier proves an inlined step again on every path that reaches
/// it.
pub trait Steps<F: Family>: Tables<F> + Exit<F> + Sized {
    /// [`PacketContext::forward_established`].
    fn forward_established(&self, context: &mut PacketContext<'_, F, Self>) -> Option<Reason>;
    /// [`PacketContext::forward_icmp_error`].
    fn forward_icmp_error(&self, context: &mut PacketContext<'_, F, Self>) -> Option<Reason>;
    /// [`PacketContext::classify`].
    fn classify(&self, context: &mut PacketContext<'_, F, Self>) -> Option<Reason>;
    /// [`PacketContext::create_flow`].
    fn create_flow(&self, context: &mut PacketContext<'_, F, Self>) -> Option<Reason>;
    /// [`PacketContext::verify_source`].
    fn verify_source(&self, context: &mut PacketContext<'_, F, Self>) -> Option<Reason>;
    /// [`fragments::handle_fragment`]. It takes the packet as parsed and may give it the class and
    /// the ports of its datagram.
    fn handle_fragment(
        &self,
        frame: Frame<'_>,
        meta: &Meta,
        side: Side,
        packet: &mut Packet<F>,
    ) -> Option<Reason>;
    /// [`PacketContext::snat_on_egress`].
    fn snat_on_egress(&self, context: &mut PacketContext<'_, F, Self>) -> Option<Reason>;
    /// [`PacketContext::translate_host_flow`].
    fn translate_host_flow(&self, context: &mut PacketContext<'_, F, Self>) -> Option<Reason>;
    /// [`PacketContext::restore_own_error`].
    fn restore_own_error(&self, context: &mut PacketContext<'_, F, Self>) -> Option<Reason>;
    /// [`PacketContext::restore_crc`].
    fn restore_crc(&self, context: &mut PacketContext<'_, F, Self>, ports: [u32; 2]);
    /// [`PacketContext::scale`].
    fn scale(&self, context: &PacketContext<'_, F, Self>) -> u8;
    /// The folded ones' complement sum of everything from the transport header to the end of the
    /// packet, also beyond the part of the frame that is directly accessible; 0 if the frame is
    /// shorter than the packet's header says.
    fn sum(&self, context: &PacketContext<'_, F, Self>) -> u16;
    /// The frame's length in bytes, including the part that is not directly accessible.
    fn length(&self) -> u32;
}

/// tcx ingress of an outside device: packets from outside to published ports, and packets of flows
/// whose other end is a container.
#[inline(always)]
pub fn outside_in<F: Family, T: Steps<F>>(
    frame: Frame<'_>,
    meta: &Meta,
    tables: &T,
    packet: &mut Packet<F>,
) -> Reason {
    armed(tables, come_in(frame, meta, tables, packet, Side::Outside))
}

/// Whether the agent has attached all programs and filled all maps. Only packets without a flow
/// need the check: no flow exists before.
#[inline(always)]
fn is_armed<F: Family, T: Tables<F>>(tables: &T) -> bool {
    tables.settings().armed != 0
}

/// Replaces a hook's verdict by [`Reason::Unarmed`], which passes the packet, as long as the agent
/// is not armed.
#[inline(always)]
fn armed<F: Family, T: Tables<F>>(tables: &T, judged: Reason) -> Reason {
    if judged.path() as u8 == Path::Fast as u8 || is_armed(tables) {
        judged
    } else {
        Reason::Unarmed
    }
}

/// XDP on an uplink: forwards packets of established flows only. `None`: the packet goes on to the
/// kernel unchanged.
#[inline(always)]
pub fn uplink<F: Family, T: Steps<F>>(frame: Frame<'_>, meta: &Meta, tables: &T) -> Option<Reason> {
    let mut packet = Packet::default();
    parse::<F>(&frame, meta.l3 as usize, &mut packet).ok()?;
    // The options of a SYN are read at tcx.
    if packet.class != Class::Flow
        || packet.len == 0
        || packet.tuple.proto != proto::UDP
            && (packet.tuple.proto != proto::TCP
                || packet.flags & tcp::SYN != 0
                || tables.settings().xdp_tcp == 0)
    {
        return None;
    }
    let hit = flow::find(tables, &packet.tuple)?;
    let now = tables.now();
    let mut context = PacketContext {
        frame,
        meta,
        tables,
        side: Side::Outside,
        packet: &packet,
    };
    if context.frame.read::<[u8; 6]>(0)? != hit.flow.uplink_mac.get()
        || !flow::is_current(tables, hit.flow, now)
        || hit.flow.policy.get() != tables.settings().policy
        || !context.comes_from(&hit)
        || context.may_be_for_socket(&hit, now)
        || !context.is_intact()
    {
        return None;
    }
    let way = context.steer(&hit, now);
    let Way::Peer(endpoint) = way else {
        return None;
    };
    if context.others_need_kernel(&way).is_some() {
        return None;
    }
    if !tables.takes_frames(endpoint.ifindex) {
        return None;
    }
    flow::track(
        tables,
        &hit,
        &packet,
        packet.len as u32,
        window::NO_SCALE,
        now,
    )
    .ok()?;
    let translation = context.translate(&hit);
    if tables.flow_state(hit.flow).id() != hit.flow_state.id() {
        return None;
    }
    Some(context.deliver(translation, endpoint))
}

/// tcx ingress of a container's veth, at the host's end.
#[inline(always)]
pub fn container_in<F: Family, T: Steps<F>>(
    frame: Frame<'_>,
    meta: &Meta,
    tables: &T,
    packet: &mut Packet<F>,
) -> Reason {
    armed(tables, come_in(frame, meta, tables, packet, Side::Veth))
}

/// tcx ingress of a bridge: packets that the veth hooks passed up, and packets of containers whose
/// veth has no hook.
#[inline(always)]
pub fn bridge_in<F: Family, T: Steps<F>>(
    frame: Frame<'_>,
    meta: &Meta,
    tables: &T,
    packet: &mut Packet<F>,
) -> Reason {
    let side = match mark::kind(meta.mark) {
        mark::HOST => {
            tables.mark(mark::NONE);
            return Reason::Admitted;
        }
        mark::NONE => Side::Bridge,
        mark::BACK => Side::Back,
        _ => return Reason::Admitted,
    };
    armed(tables, come_in(frame, meta, tables, packet, side))
}

/// The common path of the ingress hooks, for every packet that no earlier hook has finished.
#[inline(always)]
fn come_in<F: Family, T: Steps<F>>(
    frame: Frame<'_>,
    meta: &Meta,
    tables: &T,
    packet: &mut Packet<F>,
    side: Side,
) -> Reason {
    let read = parse(&frame, meta.l3 as usize, packet);
    let outside = side as u8 == Side::Outside as u8;
    if let Err(reason) = read
        && packet.class as u8 != Class::Unreadable as u8
    {
        return if outside {
            reason
        } else {
            Reason::InvalidHeader
        };
    }
    if packet.is_fragment
        && is_armed(tables)
        && let Some(reason) = tables.handle_fragment(frame, meta, side, packet)
    {
        return reason;
    }
    let mut context = PacketContext {
        frame,
        meta,
        tables,
        side,
        packet,
    };
    // The transport header is invalid. The kernel forwards the packet by its network header alone,
    // so the network header decides here too.
    if outside && let Err(reason) = read {
        return match tables.create_flow(&mut context) {
            Some(judged) if judged.path() as u8 == Path::Drop as u8 => judged,
            _ => reason,
        };
    }
    context.forward_or_create()
}

/// tcx egress of a container's veth: packets that the bridge itself switches.
#[inline(always)]
pub fn container_out<F: Family, T: Steps<F>>(
    frame: Frame<'_>,
    meta: &Meta,
    tables: &T,
    packet: &mut Packet<F>,
) -> Reason {
    if !is_armed(tables) {
        return Reason::Unarmed;
    }
    // The host sent the packet or routed it: the bridge did not switch it.
    if meta.ingress_ifindex == 0 || meta.kind() != mark::NONE {
        return Reason::FromHost;
    }
    let bridge = match tables.device(meta.ingress_ifindex) {
        Some(from) if matches!(from.kind, device::VETH | device::NAMED_VETH | device::PORT) => {
            from.bridge
        }
        Some(_) => 0,
        // A port that no agent has seen yet: what is forwarded from such a device ends at the bridge.
        None => tables.device(meta.ifindex).map_or(0, |to| to.bridge),
    };
    let blocked = tables
        .network(bridge)
        .is_some_and(|net| net.flags & network::ICC_DISABLED != 0);
    if !blocked
        || parse(&frame, meta.l3 as usize, packet).is_ok() && access::is_linked(tables, packet)
    {
        Reason::Bridged
    } else {
        Reason::PeerBlocked
    }
}

/// tcx egress of an outside device: the second half of the kernel path (source translation), and
/// the last check that nothing leaves a container untranslated.
#[inline(always)]
pub fn outside_out<F: Family, T: Steps<F>>(
    frame: Frame<'_>,
    meta: &Meta,
    tables: &T,
    packet: &mut Packet<F>,
) -> Reason {
    let kind = meta.kind();
    if matches!(kind, mark::DONE | mark::LEAVES) {
        tables.mark(mark::NONE);
        return Reason::Admitted;
    }
    if !is_armed(tables) {
        return Reason::Unarmed;
    }
    if let Err(reason) = parse(&frame, meta.l3 as usize, packet) {
        return unread(frame, meta, tables, reason);
    }
    let mut context = PacketContext {
        frame,
        meta,
        tables,
        side: Side::Outside,
        packet,
    };
    if !matches!(kind, mark::NONE | mark::HOST) {
        return tables
            .snat_on_egress(&mut context)
            .unwrap_or(Reason::Untranslated);
    }
    if let Some(reason) = owner::of_a_container(tables, meta, context.packet.tuple.src) {
        return reason;
    }
    if meta.ingress_ifindex == 0 {
        let translated = match context.packet.class {
            Class::Flow | Class::Portless => tables.translate_host_flow(&mut context),
            Class::IcmpError => tables.restore_own_error(&mut context),
            Class::Fragment | Class::Other | Class::Unreadable => None,
        };
        return translated.unwrap_or(Reason::FromHost);
    }
    Reason::FromHost
}

/// The verdict on a leaving packet that cannot be parsed and therefore not be translated. The
/// kernel forwards by the network header alone, so a container's packet has to be dropped here.
#[inline(never)]
fn unread<F: Family, T: Steps<F>>(
    frame: Frame<'_>,
    meta: &Meta,
    tables: &T,
    reason: Reason,
) -> Reason {
    let Ok(header) = F::header(&frame, meta.l3 as usize) else {
        return reason;
    };
    owner::of_a_container(tables, meta, header.src).unwrap_or(reason)
}

/// tcx egress of a bridge: translates the source of hairpin packets on the kernel path, guards
/// against direct routing, and drops the host's packets to networks that the host may not reach.
#[inline(always)]
pub fn bridge_out<F: Family, T: Steps<F>>(
    frame: Frame<'_>,
    meta: &Meta,
    tables: &T,
    packet: &mut Packet<F>,
) -> Reason {
    if !is_armed(tables) {
        return Reason::Unarmed;
    }
    let kind = meta.kind();
    if kind == mark::ROUTED {
        tables.mark(mark::NONE);
        return Reason::Admitted;
    }
    if !matches!(kind, mark::NONE | mark::HOST) {
        if let Err(reason) = parse(&frame, meta.l3 as usize, packet) {
            return reason;
        }
        let mut context = PacketContext {
            frame,
            meta,
            tables,
            side: Side::Bridge,
            packet,
        };
        return tables
            .snat_on_egress(&mut context)
            .unwrap_or(Reason::Untranslated);
    }
    // The host may reach its own containers. A packet that the host forwards must have passed an
    // ingress hook of the forwarder, which would have marked it.
    if meta.ingress_ifindex != 0 {
        return Reason::DirectRouting;
    }
    let network = tables.network(meta.ifindex);
    if network.is_some_and(|network| network.flags & network::ISOLATED != 0) {
        return Reason::Internal;
    }
    // An ICMP error from the host to a container quotes the packet that the container sent. The
    // quote would show the translated destination, so it is translated back.
    let may_quote = F::header(&frame, meta.l3 as usize)
        .is_ok_and(|header| header.proto == F::ICMP as u32)
        && parse(&frame, meta.l3 as usize, packet).is_ok()
        && packet.class == Class::IcmpError;
    if !may_quote {
        return Reason::FromHost;
    }
    let mut context = PacketContext {
        frame,
        meta,
        tables,
        side: Side::Bridge,
        packet,
    };
    tables
        .restore_own_error(&mut context)
        .unwrap_or(Reason::FromHost)
}

/// A packet at one of the forwarder's hooks: the arguments of every step below.
///
/// A hook calls the larger steps ([`Steps`]) itself; a step does not call another one, because BPF
/// has 512 bytes of stack for a whole call chain.
pub struct PacketContext<'a, F: Family, T: Steps<F>> {
    /// The packet's bytes.
    pub frame: Frame<'a>,
    /// What the hook knows besides the bytes.
    pub meta: &'a Meta,
    /// Flow table, configuration, host and output.
    pub tables: &'a T,
    /// On which side the hook is attached.
    pub side: Side,
    /// The parsed packet.
    pub packet: &'a Packet<F>,
}

/// Where a packet of a flow is sent: to a container, to a next hop, to the kernel, or nowhere.
enum Way<'a, F: Family> {
    Peer(&'a Endpoint<F>),
    Neighbour(u32, F::Addr),
    Kernel(Reason),
    Refuse(Reason),
}

/// The forwarding steps, for packets of an existing flow.
impl<'a, F: Family, T: Steps<F>> PacketContext<'a, F, T> {
    /// Forwards a packet that belongs to a flow. A packet without a flow first creates one, if it
    /// may, and is then forwarded along it; so is a packet that loses the race to create the flow.
    #[inline(always)]
    fn forward_or_create(&mut self) -> Reason {
        let forwarded = match self.packet.class {
            Class::Flow | Class::Portless => self.tables.forward_established(self),
            Class::IcmpError => self.tables.forward_icmp_error(self),
            Class::Fragment | Class::Other | Class::Unreadable => None,
        };
        if let Some(reason) = forwarded {
            return reason;
        }
        let outside = self.side as u8 == Side::Outside as u8;
        if !outside && let Some(reason) = self.tables.classify(self) {
            return reason;
        }
        if let Some(reason) = self.tables.create_flow(self) {
            return reason;
        }
        if outside && let Some(reason) = self.tables.verify_source(self) {
            return reason;
        }
        self.tables
            .forward_established(self)
            .unwrap_or(Reason::TableFull)
    }

    /// The packet's flow, if the packet has one that is still valid. A flow that is no longer valid
    /// ends here: it has expired, a SYN reopens it, or a socket of the host has taken its port.
    #[inline(always)]
    fn current(&self, now: Ticks) -> Option<Hit<'a, F>> {
        let hit = flow::find(self.tables, &self.packet.tuple)?;
        let over = !flow::is_current(self.tables, hit.flow, now)
            || self.packet.tuple.proto == proto::TCP
                && !self.packet.tail
                && tcp::reopens(State::from_u8(hit.flow_state.state()), self.packet.flags)
            || self.may_be_for_socket(&hit, now) && access::is_of_socket(self.tables, hit.flow);
        if over {
            flow::end(self.tables, &hit);
            return None;
        }
        Some(hit)
    }

    /// Forwards a packet along its flow; `None` if it has none.
    #[inline(always)]
    pub fn forward_established(&mut self) -> Option<Reason> {
        // A length of 0 is allowed for GSO packets only: the kernel cuts them and sets the length
        // then.
        if self.packet.len == 0 && self.meta.segment == 0 || !self.is_intact() {
            return Some(Reason::Malformed);
        }
        let now = self.tables.now();
        let hit = self.current(now)?;
        if !self.comes_from(&hit) {
            return Some(Reason::SpoofedSource);
        }
        match self.standing(hit.flow) {
            Standing::LetIn => {}
            Standing::KeptOut => return Some(Reason::Policy),
            Standing::Outdated => {
                flow::end(self.tables, &hit);
                return None;
            }
        }
        if self.is_inseparable(hit.flow) {
            return Some(Reason::Fragment);
        }
        let mut way = self.steer(&hit, now);
        if let Way::Refuse(reason) = way {
            return Some(reason);
        }
        if let Some(reason) = self.others_need_kernel(&way) {
            way = Way::Kernel(reason);
        }
        // A bridge learns the sender's port from the source MAC address of every frame it receives.
        if matches!(way, Way::Kernel(_)) && !self.sends_as_itself() {
            return Some(Reason::SpoofedNeighbour);
        }
        // The first fragment of a TCP segment has been tracked for all of the segment's fragments.
        let silent = self.packet.tail && self.packet.tuple.proto == proto::TCP;
        if !silent && let Err(reason) = self.track(&hit, now) {
            return Some(reason);
        }
        // Read the translation first, check the generation after: if the record has been reused for
        // another flow in between, nothing that was read is valid.
        let translation = self.translate(&hit);
        if self.tables.flow_state(hit.flow).id() != hit.flow_state.id() {
            return Some(Reason::FlowGone);
        }
        Some(match way {
            Way::Peer(endpoint) => self.deliver(translation, endpoint),
            Way::Neighbour(ifindex, next_hop) => {
                self.tables.edit(&mut self.frame, &translation);
                self.tables.to_neighbour(ifindex, next_hop);
                Reason::Forwarded
            }
            Way::Kernel(reason) => self.pass_to_kernel(&hit, translation, reason),
            Way::Refuse(reason) => reason,
        })
    }

    /// Whether the checksum of the network header is correct. For packets with IP options the
    /// kernel checks it, because those take the kernel path.
    #[inline(always)]
    fn is_intact(&self) -> bool {
        self.packet.options || F::is_intact(&self.frame, self.packet.l3 as usize)
    }

    /// Tracks the packet in its flow ([`flow::track`]); the reason if the packet does not fit.
    #[inline(always)]
    fn track(&self, hit: &Hit<'_, F>, now: Ticks) -> Result<(), Reason> {
        let scale = if self.packet.flags & tcp::SYN == 0 || self.packet.tuple.proto != proto::TCP {
            window::NO_SCALE
        } else {
            self.tables.scale(self)
        };
        let len = match self.packet.len {
            0 => self.tables.length().wrapping_sub(self.meta.l3 as u32),
            len => len as u32,
        };
        flow::track(self.tables, hit, self.packet, len, scale, now)
    }

    /// Whether a packet is a fragment of a datagram that can only be translated as a whole. SCTP's
    /// checksum changes with a port depending on the port's distance from the datagram's end, which
    /// a fragment does not know.
    #[inline(always)]
    fn is_inseparable(&self, flow: &Flow<F>) -> bool {
        if !self.packet.is_fragment || self.packet.tuple.proto != proto::SCTP {
            return false;
        }
        let (asked, answer) = (flow.tuples[ORIGINAL].get(), flow.tuples[REPLY].get());
        asked.sport != answer.dport || asked.dport != answer.sport
    }

    /// The window scale that a SYN offers: see [`window::scale()`].
    #[inline(always)]
    #[must_use]
    pub fn scale(&self) -> u8 {
        window::scale(self.tables, self.frame, self.packet)
    }

    /// Whether the packet came from the device behind which the opposite end of its flow is.
    #[inline(always)]
    fn comes_from(&self, hit: &Hit<'_, F>) -> bool {
        let slot = hit.flow.next_hops[(hit.dir ^ 1) & 1].slot();
        if self.side == Side::Outside || slot == OUTSIDE {
            return self.side == Side::Outside && slot == OUTSIDE;
        }
        self.tables
            .endpoint(slot)
            .is_some_and(|endpoint| self.is_behind(endpoint))
    }

    /// Whether an endpoint is behind the device that the hook is attached to.
    #[inline(always)]
    fn is_behind(&self, endpoint: &Endpoint<F>) -> bool {
        classify::is_behind(self.tables, self.side, self.meta.ifindex, endpoint)
            && self.may_use_default_endpoint(endpoint)
    }

    /// Whether a container's frame has one of the container's own MAC addresses as source.
    #[inline(always)]
    fn sends_as_itself(&self) -> bool {
        self.side as u8 != Side::Veth as u8
            || self
                .tables
                .device(self.meta.ifindex)
                .is_none_or(|device| classify::sends_as_itself(&self.frame, &device))
    }

    /// Whether the sender may send in a flow of its network's default endpoint. A container whose
    /// endpoint is known may do so only with a source address that it is allowed to use besides its
    /// own.
    #[inline(always)]
    fn may_use_default_endpoint(&self, endpoint: &Endpoint<F>) -> bool {
        if endpoint.addr != F::Addr::ANY || self.side as u8 != Side::Veth as u8 {
            return true;
        }
        let (ifindex, source) = (self.meta.ifindex, self.packet.tuple.src);
        self.tables.device(ifindex).is_some_and(|device| {
            device.kind != device::NAMED_VETH
                || classify::is_allowed(self.tables, self.side, ifindex, device.bridge, source)
        })
    }

    /// Chooses where a flow's packet is sent: directly if the fast path can finish it, else through
    /// the kernel.
    #[inline(always)]
    fn steer(&self, hit: &Hit<'a, F>, now: Ticks) -> Way<'a, F> {
        let towards = &hit.flow.next_hops[hit.dir & 1];
        let slot = towards.slot();
        if slot == HOST {
            return Way::Kernel(Reason::HostFlow);
        }
        if slot != OUTSIDE {
            let Some(endpoint) = self.tables.endpoint(slot) else {
                return Way::Refuse(Reason::NoEndpoint);
            };
            if endpoint.ifindex == 0 {
                return Way::Kernel(Reason::NotHooked);
            }
            return match self.kernel_needed(endpoint.mtu) {
                None => Way::Peer(endpoint),
                Some(_) if !self.tables.exists(endpoint.ifindex) => Way::Refuse(Reason::TargetGone),
                Some(reason) => Way::Kernel(reason),
            };
        }
        let settings = self.tables.settings();
        let stale = now.wrapping_sub(settings.heartbeat) > timeouts::HEARTBEAT;
        if stale || towards.generation.get() != settings.route_generation {
            match renew_route(self.tables, hit.flow, hit.dir, settings.route_generation) {
                None => {}
                Some(reason) if reason.path() as u8 == Path::Drop as u8 => {
                    return Way::Refuse(reason);
                }
                Some(reason) => return Way::Kernel(reason),
            }
        }
        let mtu = towards.mtu.get() as u32;
        if mtu == 0 {
            return Way::Kernel(Reason::NoEthernet);
        }
        match self.kernel_needed(mtu) {
            None => Way::Neighbour(hit.flow.ifindex.get(), hit.flow.next_hop.get()),
            Some(reason) => Way::Kernel(reason),
        }
    }

    /// Why a packet that the fast path could finish has to take the kernel path: IPsec policies, or
    /// traffic control that somebody else has set up on one of the devices.
    #[inline(always)]
    fn others_need_kernel(&self, way: &Way<'a, F>) -> Option<Reason> {
        let others = self.tables.settings().others;
        if others == 0 || matches!(way, Way::Kernel(_) | Way::Refuse(_)) {
            return None;
        }
        if others & others::IPSEC != 0 {
            return Some(Reason::Ipsec);
        }
        let shaped = |ifindex, flag| {
            self.tables
                .device(ifindex)
                .is_some_and(|device| device.flags & flag != 0)
        };
        let out = match way {
            Way::Peer(endpoint) => shaped(endpoint.ifindex, device::flag::SHAPED_OUT),
            _ => false,
        };
        let is_shaped = out || shaped(self.meta.ifindex, device::flag::SHAPED_IN);
        is_shaped.then_some(Reason::Shaped)
    }

    /// Why the kernel has to finish a packet that goes to a device with this MTU.
    #[inline(always)]
    fn kernel_needed(&self, mtu: u32) -> Option<Reason> {
        let packet = self.packet;
        let segment = self.meta.segment;
        let size = if segment == 0 {
            packet.size as u32
        } else if packet.class as u8 == Class::Portless as u8 || packet.tuple.proto == proto::SCTP {
            // Only the kernel knows the size of the segments that it cuts this packet into.
            u32::MAX
        } else {
            packet.headers as u32 + segment
        };
        if packet.hops <= 1 {
            Some(Reason::HopLimit)
        } else if packet.apart {
            Some(Reason::Reassembled)
        } else if packet.options {
            Some(Reason::Options)
        } else if size > mtu {
            Some(Reason::TooBig)
        } else if self.meta.l3 == 0 {
            Some(Reason::NoEthernet)
        } else {
            None
        }
    }

    /// The complete translation of a flow's packet: source, destination, and the checksum deltas
    /// that the flow stores.
    #[inline(always)]
    fn translate(&self, hit: &Hit<'_, F>) -> Edit<F> {
        let to = hit.flow.tuples[(hit.dir ^ 1) & 1].get();
        let turned = |delta| {
            if hit.dir == REPLY {
                checksum::opposite(delta)
            } else {
                delta
            }
        };
        Edit {
            src: to.dst,
            dst: to.src,
            sport: to.dport,
            dport: to.sport,
            address_delta: turned(hit.flow.address_delta.get()),
            port_delta: turned(hit.flow.port_delta.get()),
            hop: true,
            ..Edit::of(self.packet)
        }
    }

    /// Sends the packet into the container.
    #[inline(always)]
    fn deliver(&mut self, translation: Edit<F>, endpoint: &Endpoint<F>) -> Reason {
        let _ = self.frame.write(0, endpoint.macs);
        self.tables.edit(&mut self.frame, &translation);
        self.tables.to_peer(endpoint.ifindex);
        Reason::Forwarded
    }

    /// Passes the packet to the kernel in the form that the kernel expects: the destination is
    /// translated, the source is not, and the hash tells the egress hook which flow the packet
    /// belongs to.
    #[inline(always)]
    fn pass_to_kernel(&mut self, hit: &Hit<'_, F>, translation: Edit<F>, reason: Reason) -> Reason {
        let old = self.packet.tuple;
        let Edit { dst, dport, .. } = translation;
        if dst != old.dst || dport != old.dport {
            let edit = Edit {
                dst,
                dport,
                address_delta: checksum::delta(old.dst.sum(), dst.sum()),
                port_delta: checksum::delta(old.dport.word() as u32, dport.word() as u32),
                ..Edit::of(self.packet)
            };
            self.tables.edit(&mut self.frame, &edit);
        }
        // A packet to the host itself passes no further hook of the forwarder.
        if reason as u8 != Reason::HostFlow as u8 {
            let hash = mark::encode_hash(hit.index, hit.dir, self.packet.apart);
            self.tables.mark(mark::FLOW);
            self.tables.hash(hash);
        }
        reason
    }

    /// The second half of `pass_to_kernel`, at egress: translates the source.
    #[inline(always)]
    pub fn snat_on_egress(&mut self) -> Option<Reason> {
        let (index, dir) = mark::decode_hash(self.meta.hash);
        let packet = self.packet;
        let old = &packet.tuple;
        let of_a_flow = self.meta.kind() == mark::FLOW;
        if (!of_a_flow || mark::was_apart(self.meta.hash))
            && let Some(slot) = self.tables.endpoint_slot(old.src)
        {
            quota::return_piece(self.tables, slot, packet.len);
        }
        if !of_a_flow {
            return None;
        }
        let flow = self.tables.flow(index)?;
        let before = flow.tuples[dir & 1].get();
        let after = flow.tuples[(dir ^ 1) & 1].get();
        let fits = self.tables.flow_state(flow).is_live()
            && before.src == old.src
            && after.src == old.dst
            && before.proto == old.proto
            && (packet.tail || before.sport == old.sport && after.sport == old.dport);
        if !fits {
            // An answer of the host to a marked packet inherits the mark; its source is not a
            // container's.
            let leaks = owner::of_a_container(self.tables, self.meta, old.src).is_some();
            return Some(if leaks {
                Reason::Untranslated
            } else {
                Reason::FromHost
            });
        }
        if self.is_inseparable(flow) {
            return Some(Reason::Fragment);
        }
        if after.dst == old.src && (packet.tail || after.dport == old.sport) {
            self.tables.mark(mark::NONE);
            return Some(Reason::Admitted);
        }
        if self.side == Side::Outside
            && self.tables.settings().others & others::IPSEC != 0
            && access::is_protected(self.tables, old.dst)
        {
            return Some(Reason::Unprotected);
        }
        let sport = if packet.tail { old.sport } else { after.dport };
        let edit = Edit {
            src: after.dst,
            sport,
            address_delta: checksum::delta(old.src.sum(), after.dst.sum()),
            port_delta: checksum::delta(old.sport.word() as u32, sport.word() as u32),
            ..Edit::of(packet)
        };
        self.tables.edit(&mut self.frame, &edit);
        self.tables.mark(mark::NONE);
        Some(Reason::Completed)
    }
}

/// The masquerade address of a network's containers towards a next hop: the network's own source
/// address if it has one, else the address that nf_nat's MASQUERADE would choose.
#[inline(always)]
fn source<F: Family, T: Tables<F>>(
    tables: &T,
    network: &Network<F>,
    ifindex: u32,
    next_hop: F::Addr,
) -> Option<F::Addr> {
    if network.source == F::Addr::ANY {
        tables.source(ifindex, next_hop)
    } else {
        Some(network.source)
    }
}

/// The largest MTU that the packet length field has room for, in bytes.
const MAX_MTU: u32 = u16::MAX as u32;

/// Looks up a flow's route again and stores it in the flow; returns the reason if there is no
/// usable route. A device without an Ethernet header is stored with MTU 0, since only the kernel
/// sends there. If the new route has another masquerade address, the flow ends, as in nf_nat.
#[inline(never)]
fn renew_route<F: Family, T: Tables<F>>(
    tables: &T,
    flow: &Flow<F>,
    dir: Direction,
    generation: u32,
) -> Option<Reason> {
    let towards = &flow.next_hops[dir & 1];
    let Some(endpoint) = tables.endpoint(flow.next_hops[(dir ^ 1) & 1].slot()) else {
        return Some(Reason::NoEndpoint);
    };
    let Some(network) = tables.network(endpoint.bridge) else {
        return Some(Reason::NoEndpoint);
    };
    let tuple = flow.tuples[dir & 1].get();
    let Route::Forward {
        ifindex,
        next_hop,
        mtu,
    } = tables.route(endpoint.bridge, &tuple)
    else {
        return Some(Reason::NoRoute);
    };
    let Some(device) = tables.device(ifindex) else {
        return Some(Reason::DeviceUnknown);
    };
    if device.kind != device::OUTSIDE {
        return Some(Reason::Isolated);
    }
    let seen_as = flow.tuples[REPLY].get().dst;
    if dir == ORIGINAL
        && seen_as != tuple.src
        && source(tables, &network, ifindex, next_hop) != Some(seen_as)
    {
        flow.expires.set(tables.now());
        return Some(Reason::RouteMoved);
    }
    flow.ifindex.set(ifindex);
    flow.next_hop.set(next_hop);
    // No packet is longer than this.
    let mut mtu = if mtu > MAX_MTU { MAX_MTU } else { mtu };
    // `bpf_fib_lookup` returns a route's own MTU only if that MTU is locked
    // (`ip_mtu_from_fib_result`), but forwarding has to respect it always
    // (`ip_dst_mtu_maybe_forward`).
    let smallest = tables.settings().route_mtu;
    if smallest != 0 && smallest < mtu {
        mtu = smallest;
    }
    towards
        .mtu
        .set(if device.ethernet != 0 { mtu as u16 } else { 0 });
    towards.generation.set(generation);
    None
}
