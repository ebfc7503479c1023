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

use crate::context::HookInput;
use crate::environment::Devmap;
use crate::mark;
use crate::meta::Side;
use crate::policy::access;
use crate::reason::{Path, Reason};
use crate::steps::{egress, forward};
use crate::subprograms::{Forwarding, Steps};
use crate::wire::header::Ip;
use crate::wire::parse::{Class, Packet};

pub use crate::policy::classify::{group_frame, is_isolated, other_frame};
pub use crate::policy::neighbour::arp;
pub use crate::steps::fragments::defrag_out;

/// tcx ingress of an outside device: packets from outside to published ports, and packets of flows
/// whose other end is a container.
#[inline(always)]
pub fn outside_in<F: Ip, T: Steps<F>>(at: HookInput<'_, T>, packet: &mut Packet<F>) -> Reason {
    ingress::<true, F, T>(at, Side::Outside, packet)
}

/// tcx ingress of a container's veth, at the host's end.
#[inline(always)]
pub fn container_in<F: Ip, T: Steps<F>>(at: HookInput<'_, T>, packet: &mut Packet<F>) -> Reason {
    ingress::<false, F, T>(at, Side::Veth, packet)
}

/// tcx ingress of a bridge: packets that the veth hooks passed up, and packets of containers whose
/// veth has no hook.
#[inline(always)]
pub fn bridge_in<F: Ip, T: Steps<F>>(at: HookInput<'_, T>, packet: &mut Packet<F>) -> Reason {
    let side = match mark::kind(at.meta.mark) {
        mark::NONE => Side::Bridge,
        mark::DEFRAGMENTED => Side::Defragmented,
        kind => {
            if kind == mark::HOST {
                at.tables.mark(mark::NONE);
            }
            return Reason::Admitted;
        }
    };
    ingress::<false, F, T>(at, side, packet)
}

/// The ingress hooks, for every packet that no earlier hook has finished. As long as the agent is
/// not armed, a packet passes whatever the verdict.
#[inline(always)]
fn ingress<const OUTSIDE: bool, F: Ip, T: Steps<F>>(
    at: HookInput<'_, T>,
    side: Side,
    packet: &mut Packet<F>,
) -> Reason {
    let tables = at.tables;
    let judged = judge::<OUTSIDE, F, T>(at, side, packet);
    if judged.path() as u8 == Path::Fast as u8 || tables.is_armed() {
        judged
    } else {
        Reason::Unarmed
    }
}

/// Parses a packet, reassembles its datagram if it is a fragment, and forwards it.
#[inline(always)]
fn judge<const OUTSIDE: bool, F: Ip, T: Steps<F>>(
    at: HookInput<'_, T>,
    side: Side,
    packet: &mut Packet<F>,
) -> Reason {
    let tables = at.tables;
    tables.enter(side);
    let read = at.parse(packet);
    if let Err(reason) = read
        && packet.class as u8 != Class::Unreadable as u8
    {
        return if OUTSIDE {
            reason
        } else {
            Reason::InvalidHeader
        };
    }
    if packet.is_fragment
        && tables.is_armed()
        && let Some(reason) = tables.handle_fragment(at.frame, at.meta, side, packet)
    {
        return reason;
    }
    let mut context = at.context(side, packet);
    // The transport header is invalid. The kernel forwards the packet by its network header alone,
    // so the network header decides here too.
    if OUTSIDE && let Err(reason) = read {
        return match tables.create_flow(&mut context) {
            Some(judged) if judged.path() as u8 == Path::Drop as u8 => judged,
            _ => reason,
        };
    }
    forward::or_create::<OUTSIDE, F, T>(&mut context)
}

/// XDP on an uplink: forwards packets of established flows only. `None`: the packet goes on to the
/// kernel unchanged.
#[inline(always)]
pub fn uplink<F: Ip, T: Forwarding<F> + Devmap>(at: HookInput<'_, T>) -> Option<Reason> {
    let mut packet = Packet::default();
    at.parse::<F>(&mut packet).ok()?;
    at.context(Side::Outside, &packet).forward_at_uplink()
}

/// tcx egress of a container's veth: packets that the bridge itself switches.
#[inline(always)]
pub fn container_out<F: Ip, T: Steps<F>>(at: HookInput<'_, T>, packet: &mut Packet<F>) -> Reason {
    if !at.tables.is_armed() {
        return Reason::Unarmed;
    }
    // The host sent the packet or routed it: the bridge did not switch it.
    if at.meta.ingress_ifindex == 0 || at.meta.kind() != mark::NONE {
        return Reason::FromHost;
    }
    access::switched(at, packet)
}

/// tcx ingress of a veth of a network about whose traffic the kernel decides: packets of followed
/// flows. All others pass unchanged.
#[inline(always)]
pub fn followed_in<F: Ip, T: Steps<F>>(at: HookInput<'_, T>, packet: &mut Packet<F>) -> Reason {
    let tables = at.tables;
    tables.enter(Side::Veth);
    if at.parse(packet).is_err() || packet.class as u8 != Class::Flow as u8 {
        return Reason::KernelOwned;
    }
    let forwarded = tables.forward_established(&mut at.context(Side::Veth, packet));
    forwarded.unwrap_or(Reason::KernelOwned)
}

/// tcx egress of such a veth: what the kernel lets out to the container.
#[inline(always)]
pub fn followed_out<F: Ip, T: Steps<F>>(at: HookInput<'_, T>, packet: &mut Packet<F>) -> Reason {
    if at.parse(packet).is_err() {
        return Reason::FromHost;
    }
    at.tables.enter(Side::Veth);
    let let_out = at.tables.let_out(&mut at.context(Side::Veth, packet));
    let_out.unwrap_or(Reason::FromHost)
}

/// tcx egress of an outside device: the second half of the kernel path (source translation), and
/// the last check that nothing leaves a container untranslated.
#[inline(always)]
pub fn outside_out<F: Ip, T: Steps<F>>(at: HookInput<'_, T>, packet: &mut Packet<F>) -> Reason {
    let tables = at.tables;
    let kind = at.meta.kind();
    // Over Docker's rules, the kernel has translated what leaves its network without a flow.
    let is_kernels = kind == mark::LEAVES && tables.has_kernel_rules();
    if matches!(kind, mark::DONE | mark::LEAVES) {
        tables.mark(mark::NONE);
        if !is_kernels {
            return Reason::Admitted;
        }
    }
    if !tables.is_armed() {
        return Reason::Unarmed;
    }
    if let Err(reason) = at.parse(packet) {
        return egress::unread::<F, T>(at.frame, at.meta, tables, reason);
    }
    tables.enter(Side::Outside);
    let mut context = at.context(Side::Outside, packet);
    if is_kernels || matches!(kind, mark::NONE | mark::HOST) {
        egress::unmarked(&mut context)
    } else {
        let translated = tables.snat_on_egress(&mut context);
        translated.unwrap_or(Reason::Untranslated)
    }
}

/// tcx egress of a bridge: translates the source of hairpin packets on the kernel path, guards
/// against direct routing, and drops the host's packets to networks that the host may not reach.
#[inline(always)]
pub fn bridge_out<F: Ip, T: Steps<F>>(at: HookInput<'_, T>, packet: &mut Packet<F>) -> Reason {
    let tables = at.tables;
    if !tables.is_armed() {
        return Reason::Unarmed;
    }
    let kind = at.meta.kind();
    let has_rules = tables.has_kernel_rules();
    if kind == mark::ROUTED || kind == mark::LEAVES && has_rules {
        tables.mark(mark::NONE);
        return Reason::Admitted;
    }
    tables.enter(Side::Bridge);
    if !matches!(kind, mark::NONE | mark::HOST) {
        if let Err(reason) = at.parse(packet) {
            return reason;
        }
        let translated = tables.snat_on_egress(&mut at.context(Side::Bridge, packet));
        return translated.unwrap_or(Reason::Untranslated);
    }
    // The host may reach its own containers. A packet that the host forwards must have passed an
    // ingress hook of the forwarder, which would have marked it, unless the kernel has translated it.
    if at.meta.ingress_ifindex != 0 && !has_rules {
        return Reason::DirectRouting;
    }
    if is_isolated(tables, at.meta.ifindex) {
        return Reason::Internal;
    }
    egress::to_container(at, packet)
}
