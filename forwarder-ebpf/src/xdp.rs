// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! Runs the XDP program: forwards packets of established flows before a socket buffer exists.

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::programs::XdpContext;
use forwarder_common::context::HookInput;
use forwarder_common::environment::{Devmap, Output};
use forwarder_common::family::{Be16, Family, V4};
use forwarder_common::hooks;
use forwarder_common::meta::Meta;
use forwarder_common::subprograms::Subprograms as _;
use forwarder_common::wire::frame::Frame;
use forwarder_common::wire::rewrite::{self, Edit};

use crate::kernel::{Kernel, count};
use crate::maps::XDP_DEVMAP;
use crate::tc::ETHERNET;

const ETHERTYPE: usize = 12;

/// Redirects the frame of an established flow into its container; passes all other frames
/// unchanged.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> u32 {
    // SAFETY: the context's own bounds; no helper below moves packet data.
    let frame = unsafe { Frame::from_raw(ctx.data() as *mut u8, ctx.data_end() as *mut u8) };
    if frame.read(ETHERTYPE) != Some(Be16::new(V4::ETHERTYPE)) {
        return xdp_action::XDP_PASS;
    }
    let ifindex = ctx.ingress_ifindex() as u32;
    let meta = Meta {
        ifindex,
        ingress_ifindex: 0,
        l3: ETHERNET as u8,
        segment: 0,
        mark: 0,
        hash: 0,
    };
    let kernel = Kernel {
        ctx: XdpContext::new(ctx.ctx),
    };
    let input = HookInput {
        frame,
        meta: &meta,
        tables: &kernel,
    };
    match hooks::uplink(input) {
        Some(reason) => {
            count(reason);
            xdp_action::XDP_REDIRECT
        }
        None => xdp_action::XDP_PASS,
    }
}

/// At XDP every checksum is complete, and frames are forwarded into containers only.
impl Output<V4> for Kernel<XdpContext> {
    #[inline(always)]
    fn edit(&self, frame: &mut Frame<'_>, edit: &Edit<V4>) {
        let _ = rewrite::headers(frame, edit, |register, octets| self.shift(register, octets))
            && rewrite::checksum(frame, edit);
    }

    /// `takes_frames` has already prepared the redirect.
    #[inline(always)]
    fn to_peer(&self, _: u32) {}
}

impl Devmap for Kernel<XdpContext> {
    #[inline(always)]
    fn takes_frames(&self, ifindex: u32) -> bool {
        // The call prepares the redirect before anything is written, and the redirect takes effect
        // only if the program returns it: one lookup both detects a missing entry in time and sends
        // the frame.
        XDP_DEVMAP
            .redirect(ifindex, xdp_action::XDP_PASS as u64)
            .is_ok()
    }
}
