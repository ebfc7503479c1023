// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! Runs the XDP program: forwards packets of established flows before a socket buffer exists.

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::programs::XdpContext;
use forwarder_common::family::{Be16, Be32, Family, V4};
use forwarder_common::frame::Frame;
use forwarder_common::parse::Packet;
use forwarder_common::pipeline::{self, Meta, PacketContext, Side, Steps};
use forwarder_common::reason::Reason;
use forwarder_common::rewrite::{self, Edit, Exit};
use forwarder_common::window;

use crate::kernel::{Kernel, count};
use crate::steps;
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
    match pipeline::uplink(
        frame,
        &meta,
        &Kernel {
            ctx: XdpContext::new(ctx.ctx),
        },
    ) {
        Some(reason) => {
            count(reason);
            xdp_action::XDP_REDIRECT
        }
        None => xdp_action::XDP_PASS,
    }
}

/// At XDP every checksum is complete, and frames are forwarded into containers only.
impl Exit<V4> for Kernel<XdpContext> {
    #[inline(always)]
    fn edit(&self, frame: &mut Frame<'_>, edit: &Edit<V4>) {
        let _ = rewrite::headers(frame, edit, |register, octets| self.shift(register, octets))
            && rewrite::checksum(frame, edit);
    }

    #[inline(always)]
    fn shift(&self, register: u32, octets: u16) -> u32 {
        steps::shift(register, octets as u32) as u32
    }

    #[inline(always)]
    fn mark(&self, _: u32) {}

    #[inline(always)]
    fn hash(&self, _: u32) {}

    /// `takes_frames` has already prepared the redirect.
    #[inline(always)]
    fn to_peer(&self, _: u32) {}

    #[inline(always)]
    fn to_ingress(&self, _: u32) {}

    #[inline(always)]
    fn to_neighbour(&self, _: u32, _: Be32) {}
}

/// At XDP the program itself is the only step.
macro_rules! no_steps {
    ($($step:ident)+) => {
        impl Steps<V4> for Kernel<XdpContext> {
            #[inline(always)]
            fn handle_fragment(
                &self,
                _: Frame<'_>,
                _: &Meta,
                _: Side,
                _: &mut Packet<V4>,
            ) -> Option<Reason> {
                None
            }

            $(
                #[inline(always)]
                fn $step(&self, _: &mut PacketContext<'_, V4, Self>) -> Option<Reason> {
                    None
                }
            )+

            #[inline(always)]
            fn restore_crc(&self, _: &mut PacketContext<'_, V4, Self>, _: [u32; 2]) {}

            #[inline(always)]
            fn scale(&self, _: &PacketContext<'_, V4, Self>) -> u8 {
                window::UNREAD
            }

            #[inline(always)]
            fn sum(&self, _: &PacketContext<'_, V4, Self>) -> u16 {
                0
            }

            /// A frame is never longer than its header says.
            #[inline(always)]
            fn length(&self) -> u32 {
                0
            }
        }
    };
}

no_steps!(forward_established forward_icmp_error classify create_flow verify_source snat_on_egress translate_host_flow restore_own_error);
