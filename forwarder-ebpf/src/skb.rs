// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! What tcx and clsact programs read from and set in their context, a socket buffer.

use aya_ebpf::programs::TcContext;
use forwarder_common::mark;
use forwarder_common::meta::Meta;
use forwarder_common::wire::frame::Frame;

#[inline(always)]
pub fn meta(ctx: &TcContext, l3: u8) -> Meta {
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

/// Sets the forwarder's bits of the mark.
#[inline(always)]
pub fn set_kind(ctx: &TcContext, kind: u32) {
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
