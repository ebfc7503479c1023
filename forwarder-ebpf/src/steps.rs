// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! The steps of the packet path as global functions: the verifier proves each once, by itself.
//! `forwarder_common::subprograms` lists them.

use core::hint::black_box;
use core::ptr;

use aya_ebpf::bindings::{__sk_buff, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC};
use aya_ebpf::helpers::{
    bpf_csum_diff, bpf_redirect, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_load_bytes,
};
use aya_ebpf::programs::TcContext;
use forwarder_common::attempt::Attempt;
use forwarder_common::context::PacketContext;
use forwarder_common::environment::Runtime as _;
use forwarder_common::family::V4;
use forwarder_common::for_each_step;
use forwarder_common::meta::{Meta, Side};
use forwarder_common::reason::Reason;
use forwarder_common::steps::fragments;
use forwarder_common::subprograms::{NO_REASON, Steps, Word};
use forwarder_common::wire::checksum;
use forwarder_common::wire::frame::Frame;
use forwarder_common::wire::header::Ip as _;
use forwarder_common::wire::parse::Packet;

use crate::kernel::Kernel;
use crate::maps::{PASSING, Passing};
use crate::skb::{frame, meta, set_kind};

type TcPacketContext<'a> = PacketContext<'a, V4, Kernel<TcContext>>;

macro_rules! global_functions {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) $(-> $out:ty)?;)+) => {
        #[expect(unused_parens, reason = "the result is a list of at most one type")]
        mod global {
            use super::{NO_REASON, Word, __sk_buff, resume};

            $(
                $(#[$doc])*
                #[unsafe(no_mangle)]
                #[inline(never)]
                pub extern "C" fn $name(
                    skb: *mut __sk_buff
                    $(, $arg: <$type as Word>::Number)*
                ) -> <($($out)?) as Word>::Number {
                    resume(skb, |context| context.$name($(Word::unpack($arg)),*))
                        .map_or(NO_REASON, Word::pack)
                }
            )+
        }

        impl Steps<V4> for Kernel<TcContext> {
            $(
                #[inline(always)]
                fn $name(&self, _: &mut TcPacketContext<'_> $(, $arg: $type)*) $(-> $out)? {
                    Word::unpack(global::$name(self.ctx.skb.skb $(, $arg.pack())*))
                }
            )+

            #[inline(always)]
            fn enter(&self, side: Side) {
                if let Some(passing) = PASSING.get_ptr_mut(0) {
                    // SAFETY: this CPU's own element.
                    unsafe { (*passing).side = side };
                }
            }

            #[inline(always)]
            fn handle_fragment(
                &self,
                _: Frame<'_>,
                _: &Meta,
                _: Side,
                packet: &mut Packet<V4>,
            ) -> Option<Reason> {
                let passing = PASSING.get_ptr_mut(0)?;
                let reason = Word::unpack(handle_fragment(self.ctx.skb.skb));
                // SAFETY: the same element, which contains the packet; volatile, because the
                // compiler does not know that the call has changed it.
                packet.class = unsafe { (&raw const (*passing).packet.class).read_volatile() };
                reason
            }

            #[inline(always)]
            fn sum(&self, _: &TcPacketContext<'_>) -> u16 {
                sum(self.ctx.skb.skb) as u16
            }

            #[inline(always)]
            fn length(&self) -> u32 {
                self.ctx.len()
            }
        }
    };
}

for_each_step!(global_functions);

/// [`fragments::handle_fragment`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn handle_fragment(skb: *mut __sk_buff) -> u32 {
    let Some(passing) = PASSING.get_ptr_mut(0) else {
        return None::<Reason>.pack();
    };
    let ctx = TcContext::new(skb);
    // SAFETY: this CPU's own element; the calling hook does not access it in the meantime.
    let Passing { packet, side, l3 } = unsafe { &mut *passing };
    let meta = meta(&ctx, *l3);
    let kernel = Kernel {
        ctx: TcContext::new(skb),
    };
    fragments::handle_fragment(frame(&ctx), &meta, &kernel, *side, packet).pack()
}

/// Runs a step inside of a global function. Only the context and the content of [`PASSING`] cross
/// the call.
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

/// [`Steps::sum`], in chunks: a long packet is not completely linear.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sum(skb: *mut __sk_buff) -> u32 {
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
pub extern "C" fn refuse(skb: *mut __sk_buff) -> u32 {
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
