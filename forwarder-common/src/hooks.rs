// SPDX-License-Identifier: MIT OR Apache-2.0
//! The packet path: one function per hook. The steps that they share are in
//! [`steps`](crate::steps).
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

use crate::abi::{device, network};
use crate::context::PacketContext;
use crate::environment::{Configuration, Devmap};
use crate::mark;
use crate::meta::{Meta, Side};
use crate::policy::{access, owner};
use crate::reason::{Path, Reason};
use crate::steps::egress::unread;
use crate::subprograms::{Forwarding, Steps};
use crate::wire::frame::Frame;
use crate::wire::header::Ip;
use crate::wire::parse::{Class, Packet, parse};

pub use crate::policy::classify::{group_frame, is_isolated, other_frame};
pub use crate::policy::neighbour::arp;
pub use crate::steps::fragments::defrag_out;

/// tcx ingress of an outside device: packets from outside to published ports, and packets of flows
/// whose other end is a container.
#[inline(always)]
pub fn outside_in<F: Ip, T: Steps<F>>(
    frame: Frame<'_>,
    meta: &Meta,
    tables: &T,
    packet: &mut Packet<F>,
) -> Reason {
    armed(tables, ingress(frame, meta, tables, packet, Side::Outside))
}

/// tcx ingress of a container's veth, at the host's end.
#[inline(always)]
pub fn container_in<F: Ip, T: Steps<F>>(
    frame: Frame<'_>,
    meta: &Meta,
    tables: &T,
    packet: &mut Packet<F>,
) -> Reason {
    armed(tables, ingress(frame, meta, tables, packet, Side::Veth))
}

/// tcx ingress of a bridge: packets that the veth hooks passed up, and packets of containers whose
/// veth has no hook.
#[inline(always)]
pub fn bridge_in<F: Ip, T: Steps<F>>(
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
    armed(tables, ingress(frame, meta, tables, packet, side))
}

/// Replaces a hook's verdict by [`Reason::Unarmed`], which passes the packet, as long as the agent
/// is not armed.
#[inline(always)]
fn armed<F: Ip, T: Configuration<F>>(tables: &T, judged: Reason) -> Reason {
    if judged.path() as u8 == Path::Fast as u8 || tables.is_armed() {
        judged
    } else {
        Reason::Unarmed
    }
}

/// The common path of the ingress hooks, for every packet that no earlier hook has finished.
#[inline(always)]
fn ingress<F: Ip, T: Steps<F>>(
    frame: Frame<'_>,
    meta: &Meta,
    tables: &T,
    packet: &mut Packet<F>,
    side: Side,
) -> Reason {
    tables.enter(side);
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
        && tables.is_armed()
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
    forward_or_create(&mut context)
}

/// Forwards a packet that belongs to a flow. A packet without a flow first creates one, if it
/// may, and is then forwarded along it; so is a packet that loses the race to create the flow.
#[inline(always)]
fn forward_or_create<F: Ip, T: Steps<F>>(context: &mut PacketContext<'_, F, T>) -> Reason {
    let tables = context.tables;
    let forwarded = match context.packet.class {
        Class::Flow | Class::Portless => tables.forward_established(context),
        Class::IcmpError => tables.forward_icmp_error(context),
        Class::Fragment | Class::Other | Class::Unreadable => None,
    };
    if let Some(reason) = forwarded {
        return reason;
    }
    let outside = context.side as u8 == Side::Outside as u8;
    if !outside && let Some(reason) = tables.classify(context) {
        return reason;
    }
    if let Some(reason) = tables.create_flow(context) {
        return reason;
    }
    if outside && let Some(reason) = tables.verify_source(context) {
        return reason;
    }
    tables
        .forward_established(context)
        .unwrap_or(Reason::TableFull)
}

/// XDP on an uplink: forwards packets of established flows only. `None`: the packet goes on to the
/// kernel unchanged.
#[inline(always)]
pub fn uplink<F: Ip, T: Forwarding<F> + Devmap>(
    frame: Frame<'_>,
    meta: &Meta,
    tables: &T,
) -> Option<Reason> {
    let mut packet = Packet::default();
    parse::<F>(&frame, meta.l3 as usize, &mut packet).ok()?;
    let packet = &packet;
    PacketContext {
        frame,
        meta,
        tables,
        side: Side::Outside,
        packet,
    }
    .forward_at_uplink()
}

/// tcx egress of a container's veth: packets that the bridge itself switches.
#[inline(always)]
pub fn container_out<F: Ip, T: Steps<F>>(
    frame: Frame<'_>,
    meta: &Meta,
    tables: &T,
    packet: &mut Packet<F>,
) -> Reason {
    if !tables.is_armed() {
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
pub fn outside_out<F: Ip, T: Steps<F>>(
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
    if !tables.is_armed() {
        return Reason::Unarmed;
    }
    if let Err(reason) = parse(&frame, meta.l3 as usize, packet) {
        return unread(frame, meta, tables, reason);
    }
    tables.enter(Side::Outside);
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

/// tcx egress of a bridge: translates the source of hairpin packets on the kernel path, guards
/// against direct routing, and drops the host's packets to networks that the host may not reach.
#[inline(always)]
pub fn bridge_out<F: Ip, T: Steps<F>>(
    frame: Frame<'_>,
    meta: &Meta,
    tables: &T,
    packet: &mut Packet<F>,
) -> Reason {
    if !tables.is_armed() {
        return Reason::Unarmed;
    }
    let kind = meta.kind();
    if kind == mark::ROUTED {
        tables.mark(mark::NONE);
        return Reason::Admitted;
    }
    tables.enter(Side::Bridge);
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
