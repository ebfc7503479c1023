// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! How packets leave a tcx or clsact program.

use core::mem::zeroed;

use aya_ebpf::bindings::{BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, bpf_redir_neigh};
use aya_ebpf::helpers::{
    bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_set_hash,
};
use aya_ebpf::programs::TcContext;
use forwarder_common::environment::{Output, SkbOutput};
use forwarder_common::family::{Be32, V4};
use forwarder_common::mark;
use forwarder_common::subprograms::Subprograms as _;
use forwarder_common::wire::frame::Frame;
use forwarder_common::wire::proto;
use forwarder_common::wire::rewrite::{self, Edit};

use crate::kernel::Kernel;
use crate::skb::set_kind;

const AF_INET: u32 = 2;
const PACKET_HOST: u32 = 0;

impl Output<V4> for Kernel<TcContext> {
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
    fn to_peer(&self, ifindex: u32) {
        // The frame was sent to the bridge's MAC address, so for the veth it would be another
        // station's.
        if unsafe { (*self.ctx.skb.skb).pkt_type } != PACKET_HOST {
            let _ = self.ctx.change_type(PACKET_HOST);
        }
        // SAFETY: no pointers.
        unsafe { bpf_redirect_peer(ifindex, 0) };
    }
}

impl SkbOutput<V4> for Kernel<TcContext> {
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
