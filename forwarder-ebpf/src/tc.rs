// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! Runs tcx and clsact programs: from the context through the pipeline to the verdict.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::bpf_skb_vlan_pop;
use aya_ebpf::programs::TcContext;
use forwarder_common::context::HookInput;
use forwarder_common::environment::BaseConfiguration as _;
use forwarder_common::family::{Family, V4};
use forwarder_common::hooks;
use forwarder_common::meta::Side;
use forwarder_common::policy::ipv6;
use forwarder_common::reason::{Path, Reason};
use forwarder_common::wire::parse::Packet;

use crate::drops::show_drop;
use crate::kernel::{Kernel, count};
use crate::maps::PASSING;
use crate::report::{Fault, fault};
use crate::skb::{frame, meta};
use crate::steps;

/// Offset of the network header behind an Ethernet header.
pub const ETHERNET: usize = 14;
/// Offset of the network header without an Ethernet header.
pub const RAW: usize = 0;

const PACKET_HOST: u32 = 0;
const PACKET_MULTICAST: u32 = 2;
const PACKET_OTHERHOST: u32 = 3;
/// The bits of a VLAN tag's control information that hold the VLAN id.
const VLAN_ID: u32 = 0xfff;
const ARP: u32 = (0x0806_u16).to_be() as u32;
const IPV6: u32 = ipv6::ETHERTYPE.to_be() as u32;
/// A bridge's group addresses begin with these bytes and end in any value of four bits (IEEE 802.1D
/// table 7-10).
const GROUP: [u8; 5] = [0x01, 0x80, 0xc2, 0, 0];
/// Enough for an ICMP error's headers and the headers that it quotes, options included.
const QUOTE: u32 = 192;
/// An Ethernet header and an ARP message.
const ARP_OCTETS: u32 = 42;
/// Enough for every other header that the pipeline reads.
const HEADERS: u32 = 54;

/// Runs a hook of the pipeline on a packet whose network header is at `L3`. With `addressed`, only
/// frames for this station are processed. IPv6 packets go to the IPv6 hook `six`.
#[inline(always)]
pub fn run<const L3: usize>(
    ctx: &TcContext,
    addressed: bool,
    six: Option<ipv6::Hook>,
    hook: impl Fn(HookInput<'_, Kernel<TcContext>>, &mut Packet<V4>) -> Reason,
) -> i32 {
    let reason = decide::<L3>(ctx, addressed, six, hook);
    note::<L3>(ctx, reason);
    verdict(reason)
}

/// Runs a hook for containers' packets: the container gets an ICMP error when a limit is exhausted.
#[inline(always)]
pub fn run_telling(
    ctx: &TcContext,
    side: Side,
    hook: impl Fn(HookInput<'_, Kernel<TcContext>>, &mut Packet<V4>) -> Reason,
) -> i32 {
    let reason = if is_packet(ctx, side) {
        decide::<ETHERNET>(ctx, false, None, hook)
    } else if is_ipv6(ctx, side) {
        let at_veth = side as u8 == Side::Veth as u8;
        let six = if at_veth {
            ipv6::Hook::ContainerIn
        } else {
            ipv6::Hook::BridgeIn
        };
        judge_ipv6(ctx.skb.skb, !at_veth, six, ETHERNET as u32)
    } else {
        Reason::from_u8(tc_frame(ctx.skb.skb, side as u32) as u8).unwrap_or(Reason::NotIp)
    };
    note::<ETHERNET>(ctx, reason);
    if reason.is_exhaustion() && steps::refuse(ctx.skb.skb) != 0 {
        TC_ACT_REDIRECT
    } else {
        verdict(reason)
    }
}

/// Whether a frame on a veth or a bridge is an IPv4 packet for the pipeline. Takes off a tag with
/// VLAN id 0 first: the kernel treats such a frame as untagged.
#[inline(always)]
fn is_packet(ctx: &TcContext, side: Side) -> bool {
    let skb = ctx.skb.skb;
    let tagged = is_tagged(ctx);
    // SAFETY: fields of the context, only read.
    let (protocol, kind) = unsafe { ((*skb).protocol, (*skb).pkt_type) };
    let addressed = match side {
        Side::Veth => !is_to_group(ctx),
        _ => kind == PACKET_HOST,
    };
    !tagged && addressed && protocol == V4::ETHERTYPE.to_be() as u32
}

/// Whether a frame is an untagged IPv6 packet that the IPv6 rules judge.
#[inline(always)]
fn is_ipv6(ctx: &TcContext, side: Side) -> bool {
    let skb = ctx.skb.skb;
    // SAFETY: fields of the context, only read.
    let six = unsafe { (*skb).vlan_present == 0 && (*skb).protocol == IPV6 };
    six && !(side as u8 == Side::Veth as u8 && is_to_group(ctx))
}

/// Whether a frame is in a VLAN. A tag with VLAN id 0 holds a priority only; it is taken off and
/// does not count. The kernel takes off a stack of such tags as well, but no station sends one: a
/// frame with more than one becomes another station's.
#[inline(always)]
fn is_tagged(ctx: &TcContext) -> bool {
    let skb = ctx.skb.skb;
    // SAFETY: the context is this program's, and no pointer into the packet is live here.
    unsafe {
        if (*skb).vlan_present == 0 {
            return false;
        }
        if (*skb).vlan_tci & VLAN_ID != 0 {
            return true;
        }
        let popped = bpf_skb_vlan_pop(skb) == 0;
        if popped && (*skb).vlan_present == 0 {
            return false;
        }
        if !popped || (*skb).vlan_tci & VLAN_ID == 0 {
            let _ = ctx.change_type(PACKET_OTHERHOST);
        }
    }
    true
}

/// Whether a frame is for a bridge's group address: the bridge port's own device receives it.
#[inline(always)]
fn is_to_group(ctx: &TcContext) -> bool {
    // SAFETY: the context's field, read-only here.
    if unsafe { (*ctx.skb.skb).pkt_type } != PACKET_MULTICAST {
        return false;
    }
    match frame(ctx).read::<[u8; 6]>(0) {
        Some([a, b, c, d, e, f]) => [a, b, c, d, e] == GROUP && f & 0xf0 == 0,
        None => false,
    }
}

/// The verdict on a frame on a veth or a bridge that is no packet for the pipeline: the reason's
/// number.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tc_frame(skb: *mut __sk_buff, side: u32) -> u32 {
    let ctx = TcContext::new(skb);
    let kernel = Kernel {
        ctx: TcContext::new(skb),
    };
    // SAFETY: fields of the context, only read.
    let (protocol, vlan) = unsafe { ((*skb).protocol, (*skb).vlan_present) };
    let meta = meta(&ctx, ETHERNET as u8);
    let at_veth = side == Side::Veth as u32;
    let reason = if kernel.settings().armed == 0 {
        Reason::Unarmed
    } else if !at_veth && hooks::is_isolated(&kernel, meta.ifindex) {
        Reason::Internal
    } else if at_veth && is_to_group(&ctx) {
        hooks::group_frame(&kernel, meta.ifindex, u16::from_be(protocol as u16))
    } else if vlan == 0 && protocol == ARP {
        let _ = ctx.pull_data(ARP_OCTETS);
        let side = if at_veth { Side::Veth } else { Side::Bridge };
        hooks::arp(frame(&ctx), &meta, &kernel, side)
    } else if at_veth {
        hooks::other_frame(&kernel, meta.ifindex)
    } else {
        Reason::NotForUs
    };
    reason as u32
}

/// Counts a packet under its reason, and shows it if it is dropped.
#[inline(always)]
fn note<const L3: usize>(ctx: &TcContext, reason: Reason) {
    count(reason);
    if matches!(reason.path(), Path::Drop) {
        show_drop(ctx.skb.skb, reason as u32, L3 as u32);
    }
}

#[inline(always)]
fn verdict(reason: Reason) -> i32 {
    match reason.path() {
        Path::Fast => TC_ACT_REDIRECT,
        Path::Again if reason as u8 == Reason::Whole as u8 => TC_ACT_REDIRECT,
        Path::Kernel | Path::Again => TC_ACT_UNSPEC,
        Path::Drop => TC_ACT_SHOT,
    }
}

#[inline(always)]
fn decide<const L3: usize>(
    ctx: &TcContext,
    addressed: bool,
    six: Option<ipv6::Hook>,
    hook: impl Fn(HookInput<'_, Kernel<TcContext>>, &mut Packet<V4>) -> Reason,
) -> Reason {
    let skb = ctx.skb.skb;
    if addressed && is_tagged(ctx) {
        return Reason::NotForUs;
    }
    // SAFETY: fields of the context, only read.
    let (protocol, vlan, kind) = unsafe { ((*skb).protocol, (*skb).vlan_present, (*skb).pkt_type) };
    if protocol != V4::ETHERTYPE.to_be() as u32 {
        if protocol == IPV6
            && let Some(hook) = six
        {
            return judge_ipv6(skb, addressed, hook, L3 as u32);
        }
        return Reason::NotIp;
    }
    if vlan != 0 || (addressed && kind != PACKET_HOST) {
        return Reason::NotForUs;
    }
    let Some(passing) = PASSING.get_ptr_mut(0) else {
        return Reason::Truncated;
    };
    // SAFETY: this CPU's own element; programs of one kind do not interrupt each other.
    let passing = unsafe { &mut *passing };
    passing.l3 = L3 as u8;
    pull::<L3>(ctx);
    let kernel = Kernel {
        ctx: TcContext::new(skb),
    };
    let input = HookInput {
        frame: frame(ctx),
        meta: &meta(ctx, L3 as u8),
        tables: &kernel,
    };
    hook(input, &mut passing.packet)
}

/// The hooks of a container (`addressed` is false) check all IPv6 packets, whatever their VLAN tag
/// and their station.
#[inline(always)]
fn judge_ipv6(skb: *mut __sk_buff, addressed: bool, hook: ipv6::Hook, l3: u32) -> Reason {
    // SAFETY: fields of the context, only read.
    let (tag, kind) = unsafe { ((*skb).vlan_tci & VLAN_ID, (*skb).pkt_type) };
    if addressed && (tag != 0 || kind == PACKET_OTHERHOST) {
        return Reason::NotForUs;
    }
    let reason = Reason::from_u8(tc_ipv6(skb, hook as u32, l3) as u8).unwrap_or(Reason::NoIpv6);
    let kernel = Kernel {
        ctx: TcContext::new(skb),
    };
    if !hook.is_ingress() || reason as u8 != Reason::ToHost as u8 || kernel.settings().lists6 == 0 {
        return reason;
    }
    Reason::from_u8(tc_ipv6_lists(skb, l3) as u8).unwrap_or(Reason::Policy)
}

/// [`ipv6::judge`] with the hook's number; returns the reason's number.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tc_ipv6(skb: *mut __sk_buff, hook: u32, l3: u32) -> u32 {
    let ctx = TcContext::new(skb);
    let meta = meta(&ctx, l3 as u8);
    ipv6::judge(&Kernel { ctx }, ipv6::Hook::from_u32(hook), &meta) as u32
}

/// [`ipv6::ask_lists`]; returns the reason's number.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tc_ipv6_lists(skb: *mut __sk_buff, l3: u32) -> u32 {
    let ctx = TcContext::new(skb);
    let meta = meta(&ctx, l3 as u8);
    ipv6::ask_lists(&Kernel { ctx }, &meta) as u32
}

/// Makes the headers linear if they are not: a frame counts as truncated only if that fails.
#[inline(always)]
fn pull<const L3: usize>(ctx: &TcContext) {
    let linear = (ctx.data_end() - ctx.data()) as u32;
    let len = ctx.len();
    if linear >= len {
        return;
    }
    let icmp = frame(ctx).read::<u8>(L3 + 9) == Some(V4::ICMP);
    if linear < HEADERS || icmp {
        if let Err(errno) = ctx.pull_data(if len < QUOTE { len } else { QUOTE }) {
            fault(Fault::Pull, errno.into());
        }
    }
}
