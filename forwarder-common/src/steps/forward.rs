// SPDX-License-Identifier: MIT OR Apache-2.0
//! Forwards packets of existing flows: tracks, translates and sends them, or passes them to the
//! kernel in the form that the kernel expects.

use crate::abi::{Endpoint, Flow, HOST, ORIGINAL, REPLY};
use crate::clock::{Ticks, reached};
use crate::conntrack::flow::{self, Hit};
use crate::conntrack::window_scale;
use crate::context::PacketContext;
use crate::environment::Runtime;
use crate::family::{Address, Family};
use crate::mark;
use crate::policy::access::{self, Access};
use crate::reason::Reason;
use crate::steps::kernel_owned::is_untranslatable;
use crate::steps::steer::Target;
use crate::subprograms::{Forwarding, Steps};
use crate::tracking::segment::NO_SCALE;
use crate::tracking::tcp::{State, reopens};
use crate::verifier::{forget, forget_reason};
use crate::wire::header::Ip;
use crate::wire::parse::Class;
use crate::wire::rewrite::Edit;
use crate::wire::{checksum, proto, tcp};

/// Forwards a packet that belongs to a flow. A packet without a flow first creates one, if it
/// may, and is then forwarded along it; so is a packet that loses the race to create the flow.
#[inline(always)]
pub(crate) fn or_create<const OUTSIDE: bool, F: Ip, T: Steps<F>>(
    context: &mut PacketContext<'_, F, T>,
) -> Reason {
    let tables = context.tables;
    let forwarded = match context.packet.class {
        Class::Flow | Class::Portless => tables.forward_established(context),
        Class::IcmpError => tables.forward_icmp_error(context),
        Class::Fragment | Class::Other | Class::Unreadable => None,
    };
    if let Some(reason) = forwarded {
        return reason;
    }
    if !OUTSIDE && let Some(reason) = tables.classify(context) {
        return reason;
    }
    let has_rules = tables.has_kernel_rules();
    if has_rules && let Some(reason) = tables.kernel_owned(context, false) {
        return reason;
    }
    if let Some(reason) = tables.create_flow(context) {
        if has_rules && is_untranslatable(reason) {
            return tables.kernel_owned(context, true).unwrap_or(reason);
        }
        let portless = proto::is_portless(context.packet.tuple.proto, F::ICMP as u32);
        if OUTSIDE && portless && reason as u8 == Reason::ToHost as u8 {
            let _ = tables.record_for_host(context);
        }
        return reason;
    }
    if OUTSIDE && let Some(reason) = tables.verify_source(context) {
        return reason;
    }
    tables
        .forward_established(context)
        .unwrap_or(Reason::TableFull)
}

impl<F: Family, T: Runtime> PacketContext<'_, F, T> {
    /// The window scale that a SYN offers: see [`window_scale::offered`].
    #[inline(always)]
    #[must_use]
    pub fn scale(&self) -> u8 {
        window_scale::offered(self.tables, self.frame, self.packet)
    }
}

/// What forwarding takes at XDP as at tcx.
impl<'a, F: Ip, T: Forwarding<F>> PacketContext<'a, F, T> {
    /// The packet's flow, if the packet has one that is still valid. A flow that is no longer valid
    /// ends here: it has expired, a SYN reopens it, or a socket of the host has taken its port.
    #[inline(always)]
    pub(super) fn current(&self, now: Ticks) -> Option<Hit<'a, F>> {
        let hit = flow::find(self.tables, &self.packet.tuple)?;
        let over = !flow::is_current(self.tables, hit.flow, now)
            || self.packet.tuple.proto == proto::TCP
                && !self.packet.later_fragment
                && reopens(State::from_u8(hit.flow_state.state()), self.packet.flags)
            || self.may_be_for_socket(&hit, now) && access::is_of_socket(self.tables, hit.flow);
        if over {
            // What a remote sends without ports does not become the host's while the container that
            // it is for starts anew.
            let waits = self.packet.class as u8 == Class::Portless as u8
                && hit.dir == REPLY
                && !reached(hit.flow.expires.get(), now);
            if !waits {
                flow::end(self.tables, &hit);
            }
            return None;
        }
        Some(hit)
    }

    /// Whether the checksum of the network header is correct. For packets with IP options the
    /// kernel checks it, because those take the kernel path.
    #[inline(always)]
    pub(crate) fn is_intact(&self) -> bool {
        self.packet.options || F::is_intact(&self.frame, self.packet.l3 as usize)
    }

    /// The complete translation of a flow's packet: source, destination, and the checksum deltas
    /// that the flow stores.
    #[inline(always)]
    pub(crate) fn translate(&self, hit: &Hit<'_, F>) -> Edit<F> {
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
    pub(crate) fn deliver(&mut self, translation: Edit<F>, endpoint: &Endpoint<F>) -> Reason {
        let _ = self.frame.write(0, endpoint.macs);
        self.tables.edit(&mut self.frame, &translation);
        self.tables.to_peer(endpoint.ifindex);
        Reason::Forwarded
    }
}

/// The steps at tcx.
impl<F: Ip, T: Steps<F>> PacketContext<'_, F, T> {
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
        // Several conditions depend on this, and more on where the packet goes: to the verifier each
        // is one case, not the product of all.
        let is_followed = forget(hit.flow_state.is_followed() as u32, now) != 0;
        if !self.comes_from(&hit) {
            // Whoever sends by the tuple of the kernel's connection is judged as without a flow.
            return (!is_followed).then_some(Reason::SpoofedSource);
        }
        if !is_followed {
            match self.access(hit.flow) {
                Access::Allowed => {}
                Access::Denied => return Some(Reason::Policy),
                Access::PortTaken => {
                    flow::end(self.tables, &hit);
                    return None;
                }
            }
            if self.is_inseparable(hit.flow) {
                return Some(Reason::Fragment);
            }
        }
        let mut way = self.steer(&hit, now);
        if is_followed {
            if self.resets() {
                flow::end(self.tables, &hit);
                return Some(self.leave());
            }
            if !self.may_overtake(&hit, now) || matches!(way, Target::Refuse(_)) {
                way = Target::Kernel(Reason::KernelOwned);
            }
        } else if let Target::Refuse(reason) = way {
            return Some(reason);
        }
        if let Some(reason) = self.others_need_kernel(&way) {
            way = Target::Kernel(reason);
        }
        if let Target::Kernel(reason) = way {
            way = Target::Kernel(forget_reason(reason, now));
        }
        // A bridge learns the sender's port from the source MAC address of every frame it receives.
        if matches!(way, Target::Kernel(_)) && !is_followed && !self.sends_as_itself() {
            return Some(Reason::SpoofedNeighbour);
        }
        // The first fragment of a TCP segment has been tracked for all of the segment's fragments.
        let silent = self.packet.later_fragment && self.packet.tuple.proto == proto::TCP;
        if !silent && let Err(reason) = self.track(&hit, now) {
            return Some(if is_followed { self.leave() } else { reason });
        }
        // Read the translation first, check the generation after: if the record has been reused for
        // another flow in between, nothing that was read is valid.
        let translation = self.translate(&hit);
        let slot = hit.flow.next_hops[hit.dir & 1].slot();
        if self.tables.flow_state(hit.flow).id() != hit.flow_state.id() {
            return Some(Reason::FlowGone);
        }
        Some(match way {
            Target::Peer(endpoint) => self.deliver(translation, endpoint),
            Target::Neighbour(ifindex, next_hop) => {
                self.tables.edit(&mut self.frame, &translation);
                self.tables.to_neighbour(ifindex, next_hop);
                Reason::Forwarded
            }
            Target::Kernel(_) if is_followed => self.leave(),
            Target::Kernel(reason) => {
                // A packet to the host itself meets no further hook of the forwarder.
                self.pass_to_kernel(&hit, translation, slot != HOST);
                reason
            }
            Target::Refuse(reason) => reason,
        })
    }

    /// Tracks the packet in its flow ([`flow::track`]); the reason if the packet does not fit.
    #[inline(always)]
    pub(super) fn track(&mut self, hit: &Hit<'_, F>, now: Ticks) -> Result<(), Reason> {
        let scale = if self.packet.flags & tcp::SYN == 0 || self.packet.tuple.proto != proto::TCP {
            NO_SCALE
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
    pub(crate) fn is_inseparable(&self, flow: &Flow<F>) -> bool {
        if !self.packet.is_fragment || self.packet.tuple.proto != proto::SCTP {
            return false;
        }
        let (asked, answer) = (flow.tuples[ORIGINAL].get(), flow.tuples[REPLY].get());
        asked.sport != answer.dport || asked.dport != answer.sport
    }

    /// Passes the packet to the kernel in the form that the kernel expects: the destination is
    /// translated, the source is not, and, unless the packet meets no further hook, the hash tells the
    /// egress hook which flow it belongs to.
    #[inline(always)]
    pub(crate) fn pass_to_kernel(
        &mut self,
        hit: &Hit<'_, F>,
        translation: Edit<F>,
        is_marked: bool,
    ) {
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
        if is_marked {
            let hash = mark::encode_hash(hit.index, hit.dir, self.packet.unassembled);
            self.tables.mark(mark::FLOW);
            self.tables.hash(hash);
        }
    }
}
