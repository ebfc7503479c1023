// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! Runs tcx and clsact programs: from the context through the pipeline to the verdict.

use core::hint::black_box;
use core::mem::zeroed;
use core::ptr;

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_REDIRECT, TC_ACT_SHOT,
    TC_ACT_UNSPEC, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_redir_neigh,
};
use aya_ebpf::helpers::{
    bpf_csum_diff, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer,
    bpf_set_hash, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_vlan_pop,
};
use aya_ebpf::programs::TcContext;
use forwarder_common::checksum;
use forwarder_common::family::{Be32, Family, V4};
use forwarder_common::frame::Frame;
use forwarder_common::parse::{Packet, proto};
use forwarder_common::pipeline::{self, Meta, PacketContext, Side, Steps, fragments, ipv6, mark};
use forwarder_common::reason::{Path, Reason};
use forwarder_common::rewrite::{self, Edit, Exit};
use forwarder_common::tables::{Attempt, Tables as _};
use forwarder_common::window;

use crate::kernel::{Kernel, count};
use crate::maps::{PASSING, Passing};
use crate::steps;

/// Offset of the network header behind an Ethernet header.
pub const ETHERNET: usize = 14;
/// Offset of the network header without an Ethernet header.
pub const RAW: usize = 0;

const AF_INET: u32 = 2;
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
    hook: impl Fn(Frame<'_>, &Meta, &Kernel<TcContext>, &mut Packet<V4>) -> Reason,
) -> i32 {
    let reason = decide::<L3>(ctx, addressed, six, hook);
    count(reason);
    verdict(reason)
}

/// Runs a hook for containers' packets: the container gets an ICMP error when a limit is exhausted.
#[inline(always)]
pub fn run_telling(
    ctx: &TcContext,
    side: Side,
    hook: impl Fn(Frame<'_>, &Meta, &Kernel<TcContext>, &mut Packet<V4>) -> Reason,
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
    count(reason);
    if reason.is_exhaustion() && tc_refuse(ctx.skb.skb) != 0 {
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
    } else if !at_veth && pipeline::is_isolated(&kernel, meta.ifindex) {
        Reason::Internal
    } else if at_veth && is_to_group(&ctx) {
        pipeline::group_frame(&kernel, meta.ifindex, u16::from_be(protocol as u16))
    } else if vlan == 0 && protocol == ARP {
        let _ = ctx.pull_data(ARP_OCTETS);
        let side = if at_veth { Side::Veth } else { Side::Bridge };
        pipeline::arp(frame(&ctx), &meta, &kernel, side)
    } else if at_veth {
        pipeline::other_frame(&kernel, meta.ifindex)
    } else {
        Reason::NotForUs
    };
    reason as u32
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
    hook: impl Fn(Frame<'_>, &Meta, &Kernel<TcContext>, &mut Packet<V4>) -> Reason,
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
    hook(
        frame(ctx),
        &meta(ctx, L3 as u8),
        &kernel,
        &mut passing.packet,
    )
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

#[inline(always)]
fn meta(ctx: &TcContext, l3: u8) -> Meta {
    let skb = ctx.skb.skb;
    // SAFETY: fields of the context, only read.
    unsafe {
        Meta {
            ifindex: (*skb).ifindex,
            ingress_ifindex: (*skb).ingress_ifindex,
            l3,
            segment: (*skb).gso_size,
            mark: (*skb).mark,
            hash: (*skb).hash,
        }
    }
}

type TcPacketContext<'a> = PacketContext<'a, V4, Kernel<TcContext>>;

/// Makes steps of the packet path global functions: see [`Steps`].
macro_rules! steps {
    ($($step:ident = $global:ident)+) => {
        $(
            #[doc = concat!("[`PacketContext::", stringify!($step), "`]; returns the reason's number, or [`NONE`].")]
            #[unsafe(no_mangle)]
            #[inline(never)]
            pub extern "C" fn $global(skb: *mut __sk_buff) -> u32 {
                anew(skb, |context| context.$step())
            }
        )+

        impl Steps<V4> for Kernel<TcContext> {
            #[inline(always)]
            fn handle_fragment(
                &self,
                _: Frame<'_>,
                _: &Meta,
                side: Side,
                packet: &mut Packet<V4>,
            ) -> Option<Reason> {
                let passing = PASSING.get_ptr_mut(0)?;
                // SAFETY: this CPU's own element.
                unsafe { (*passing).side = side };
                let reason = Reason::from_u8(tc_handle_fragment(self.ctx.skb.skb) as u8);
                // SAFETY: the same element, which contains the packet; volatile, because the
                // compiler does not know that the call has changed it.
                packet.class = unsafe { (&raw const (*passing).packet.class).read_volatile() };
                reason
            }

            $(
                #[inline(always)]
                fn $step(&self, context: &mut TcPacketContext<'_>) -> Option<Reason> {
                    if let Some(passing) = PASSING.get_ptr_mut(0) {
                        // SAFETY: this CPU's own element.
                        unsafe { (*passing).side = context.side };
                    }
                    Reason::from_u8($global(self.ctx.skb.skb) as u8)
                }
            )+

            #[inline(always)]
            fn restore_crc(&self, _: &mut TcPacketContext<'_>, [before, after]: [u32; 2]) {
                tc_restore_crc(self.ctx.skb.skb, before, after);
            }

            #[inline(always)]
            fn scale(&self, _: &TcPacketContext<'_>) -> u8 {
                tc_scale(self.ctx.skb.skb) as u8
            }

            #[inline(always)]
            fn sum(&self, _: &TcPacketContext<'_>) -> u16 {
                tc_sum(self.ctx.skb.skb) as u16
            }

            #[inline(always)]
            fn length(&self) -> u32 {
                self.ctx.len()
            }
        }
    };
}

steps! {
    forward_established = tc_forward_established
    forward_icmp_error = tc_forward_icmp_error
    classify = tc_classify
    create_flow = tc_create_flow
    verify_source = tc_verify_source
    snat_on_egress = tc_snat_on_egress
    translate_host_flow = tc_translate_host_flow
    restore_own_error = tc_restore_own_error
}

/// [`fragments::handle_fragment`]; returns the reason's number, or [`NONE`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tc_handle_fragment(skb: *mut __sk_buff) -> u32 {
    let Some(passing) = PASSING.get_ptr_mut(0) else {
        return NONE;
    };
    let ctx = TcContext::new(skb);
    // SAFETY: this CPU's own element; the calling hook does not access it in the meantime.
    let Passing { packet, side, l3 } = unsafe { &mut *passing };
    let meta = meta(&ctx, *l3);
    let kernel = Kernel {
        ctx: TcContext::new(skb),
    };
    let reason = fragments::handle_fragment(frame(&ctx), &meta, &kernel, *side, packet);
    reason.map_or(NONE, |reason| reason as u32)
}

const NONE: u32 = 0xff;

/// Runs a step inside of a global function. Only the context and the content of [`PASSING`] cross
/// the call.
#[inline(always)]
fn anew(skb: *mut __sk_buff, step: impl FnOnce(&mut TcPacketContext<'_>) -> Option<Reason>) -> u32 {
    let reason = resume(skb, step).flatten();
    reason.map_or(NONE, |reason| reason as u32)
}

#[inline(always)]
fn resume<R>(skb: *mut __sk_buff, step: impl FnOnce(&mut TcPacketContext<'_>) -> R) -> Option<R> {
    let ctx = TcContext::new(skb);
    let passing = PASSING.get_ptr(0)?;
    // SAFETY: this CPU's own element, written by the calling hook.
    let Passing { packet, side, l3 } = unsafe { &*passing };
    let meta = meta(&ctx, *l3);
    let kernel = Kernel {
        ctx: TcContext::new(skb),
    };
    let mut context = PacketContext {
        frame: frame(&ctx),
        meta: &meta,
        tables: &kernel,
        side: *side,
        packet,
    };
    Some(step(&mut context))
}

/// [`PacketContext::restore_crc`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tc_restore_crc(skb: *mut __sk_buff, before: u32, after: u32) -> u32 {
    let _ = resume(skb, |context| context.restore_crc([before, after]));
    0
}

/// [`PacketContext::scale`]; returns the scale.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tc_scale(skb: *mut __sk_buff) -> u32 {
    resume(skb, |context| context.scale()).unwrap_or(window::UNREAD) as u32
}

/// [`Steps::sum`], in chunks: a long packet is not completely linear.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tc_sum(skb: *mut __sk_buff) -> u32 {
    let Some(passing) = PASSING.get_ptr(0) else {
        return 0;
    };
    // SAFETY: this CPU's own element, written by the calling hook.
    let Packet { l3, l4, len, .. } = unsafe { (*passing).packet };
    let mut chunks = Chunks {
        skb,
        at: l4 as u32,
        left: (len as u32).wrapping_sub((l4 - l3) as u32),
        sum: 0,
    };
    let kernel = Kernel {
        ctx: TcContext::new(skb),
    };
    kernel.attempt(u16::MAX as u32 / CHUNK + 1, &mut chunks);
    if chunks.left == 0 {
        checksum::fold(chunks.sum) as u32
    } else {
        0
    }
}

/// Bytes that are summed at once: a power of two that the stack has room for.
const CHUNK: u32 = 64;

/// The rest that is still to be summed, and the sum so far.
struct Chunks {
    skb: *mut __sk_buff,
    at: u32,
    left: u32,
    sum: u32,
}

impl Attempt for Chunks {
    #[inline(always)]
    fn once(&mut self) -> bool {
        let mut chunk = [0_u32; CHUNK as usize / 4];
        let left = self.left;
        if left == 0 {
            return true;
        }
        let last = if left > CHUNK { CHUNK } else { left } - 1;
        // The mask changes nothing, but the compiler must not know that: kernel 6.1 derives a bound
        // from the register that is masked, not from one that was compared with it and copied.
        let octets = (black_box(last) & (CHUNK - 1)) + 1;
        let place = chunk.as_mut_ptr();
        // SAFETY: `chunk` has room for that many bytes; the rest of it is zero.
        let sum = unsafe {
            if bpf_skb_load_bytes(self.skb.cast(), self.at, place.cast(), octets) != 0 {
                return true;
            }
            bpf_csum_diff(ptr::null_mut(), 0, place, CHUNK, self.sum)
        };
        self.sum = sum as u32;
        self.at += octets;
        self.left -= octets;
        false
    }
}

/// Turns a container's refused packet into the ICMP error about it, and sends the error back on the
/// device that the packet came from; returns whether it did. The packet has already been counted.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tc_refuse(skb: *mut __sk_buff) -> u32 {
    let Some(Some(refusal)) = resume(skb, |context| context.refuse()) else {
        return 0;
    };
    // The packet stays in place and becomes the quote, so a checksum that is still to be completed
    // stays where the kernel expects it.
    let made = unsafe {
        bpf_skb_adjust_room(skb, V4::REFUSAL as i32, BPF_ADJ_ROOM_MAC, 0) == 0
            && bpf_skb_change_tail(skb, refusal.octets() as u32, 0) == 0
    };
    let ctx = TcContext::new(skb);
    if !made || !refusal.write(&mut frame(&ctx)) {
        return 0;
    }
    set_kind(&ctx, refusal.mark);
    // SAFETY: a field of the context, and no pointers.
    unsafe { bpf_redirect((*skb).ifindex, 0) };
    1
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
        let _ = ctx.pull_data(if len < QUOTE { len } else { QUOTE });
    }
}

/// Sets the forwarder's bits of the mark.
#[inline(always)]
fn set_kind(ctx: &TcContext, kind: u32) {
    // SAFETY: a field of the context.
    let mark = unsafe { (*ctx.skb.skb).mark };
    ctx.set_mark(mark::with(mark, kind));
}

/// The frame's linear part.
#[inline(always)]
pub fn frame(ctx: &TcContext) -> Frame<'_> {
    // SAFETY: the context's own bounds; every helper that moves packet data is called before or
    // after the frame is used.
    unsafe { Frame::from_raw(ctx.data() as *mut u8, ctx.data_end() as *mut u8) }
}

impl Exit<V4> for Kernel<TcContext> {
    /// The kernel updates the transport checksum, because only the kernel knows whether the
    /// checksum is complete. The helper comes last because it invalidates the frame.
    #[inline(always)]
    fn edit(&self, frame: &mut Frame<'_>, edit: &Edit<V4>) {
        if !rewrite::headers(frame, edit, |register, octets| self.shift(register, octets))
            || !edit.transport
        {
            return;
        }
        let Some(at) = edit.checksum_at() else { return };
        let udp = edit.proto as u32 == proto::UDP;
        let mangled = if udp { BPF_F_MARK_MANGLED_0 as u64 } else { 0 };
        let skb = self.ctx.skb.skb;
        // SAFETY: the context is this program's; the kernel checks the offset.
        unsafe {
            if edit.address_delta != 0 {
                let flags = mangled | BPF_F_PSEUDO_HDR as u64;
                bpf_l4_csum_replace(skb, at as u32, 0, edit.address_delta as u64, flags);
            }
            if edit.port_delta != 0 {
                bpf_l4_csum_replace(skb, at as u32, 0, edit.port_delta as u64, mangled);
            }
        }
    }

    #[inline(always)]
    fn shift(&self, register: u32, octets: u16) -> u32 {
        steps::shift(register, octets as u32) as u32
    }

    #[inline(always)]
    fn mark(&self, kind: u32) {
        set_kind(&self.ctx, kind);
    }

    #[inline(always)]
    fn hash(&self, hash: u32) {
        // SAFETY: the context is this program's.
        unsafe { bpf_set_hash(self.ctx.skb.skb, hash) };
    }

    #[inline(always)]
    fn to_peer(&self, ifindex: u32) {
        // The frame was sent to the bridge's MAC address, so for the veth it would be another
        // station's.
        if unsafe { (*self.ctx.skb.skb).pkt_type } != PACKET_HOST {
            let _ = self.ctx.change_type(PACKET_HOST);
        }
        // SAFETY: no pointers.
        unsafe { bpf_redirect_peer(ifindex, 0) };
    }

    #[inline(always)]
    fn to_ingress(&self, ifindex: u32) {
        // SAFETY: no pointers.
        unsafe { bpf_redirect(ifindex, BPF_F_INGRESS as u64) };
    }

    #[inline(always)]
    fn to_neighbour(&self, ifindex: u32, next_hop: Be32) {
        set_kind(&self.ctx, mark::DONE);
        // SAFETY: plain integers, for which zero is a value.
        let mut params: bpf_redir_neigh = unsafe { zeroed() };
        params.nh_family = AF_INET;
        params.__bindgen_anon_1.ipv4_nh = next_hop.word();
        // SAFETY: the structure is as long as stated.
        unsafe {
            bpf_redirect_neigh(
                ifindex,
                &raw mut params,
                size_of::<bpf_redir_neigh>() as i32,
                0,
            )
        };
    }
}
