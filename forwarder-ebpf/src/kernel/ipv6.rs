// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! Configuration, packet and routes for the IPv6 rules.

use core::mem::zeroed;
use core::ptr;

use aya_ebpf::bindings::{BPF_FIB_LKUP_RET_NO_NEIGH, bpf_fib_lookup};
use aya_ebpf::helpers::bpf_skb_load_bytes;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::TcContext;
use bytemuck::Pod;
use forwarder_common::abi::{
    AllowedKey6, Endpoint6, HostAddressKey6, IngressKey6, OwnerKey6, PortKey6, Published6,
};
use forwarder_common::family::Be128;
use forwarder_common::policy::ipv6::Host6;

use super::Kernel;
use crate::maps::{
    ALLOWED6, ENDPOINTS6, HOST_ADDRESSES6, INGRESS6, NETWORKS, OWNERS6, PUBLISHED6, SUBNETS6,
};

const AF_INET6: u8 = 10;

impl Host6 for Kernel<TcContext> {
    #[inline(always)]
    fn network_flags(&self, bridge: u32) -> Option<u32> {
        // SAFETY: the element is copied at once; the agent replaces whole elements.
        unsafe { NETWORKS.get(bridge) }.map(|network| network.flags)
    }

    #[inline(always)]
    fn network_policy(&self, bridge: u32) -> u32 {
        // SAFETY: as for `network_flags`.
        unsafe { NETWORKS.get(bridge) }.map_or(0, |network| network.policy)
    }

    #[inline(always)]
    fn subnet(&self, addr: Be128) -> Option<u32> {
        SUBNETS6.get(Key::new(128, addr)).copied()
    }

    #[inline(always)]
    fn is_local(&self, key: &HostAddressKey6) -> bool {
        HOST_ADDRESSES6.get_ptr(key).is_some()
    }

    #[inline(always)]
    fn owner(&self, key: &OwnerKey6) -> Option<u32> {
        // SAFETY: as for `network_flags`.
        unsafe { OWNERS6.get(key) }.copied()
    }

    #[inline(always)]
    fn endpoint(&self, veth: u32) -> Option<Endpoint6> {
        // SAFETY: as for `network_flags`.
        unsafe { ENDPOINTS6.get(veth) }.copied()
    }

    #[inline(always)]
    fn allowed(&self, key: &AllowedKey6) -> u32 {
        let word = ALLOWED6.get(Key::new(32 + 128, *key));
        word.copied().unwrap_or_default()
    }

    #[inline(always)]
    fn published(&self, key: &PortKey6) -> Option<Published6> {
        // SAFETY: as for `network_flags`.
        unsafe { PUBLISHED6.get(key) }.copied()
    }

    #[inline(always)]
    fn ingress(&self, key: &IngressKey6) -> u32 {
        let word = INGRESS6.get(Key::new(32 + 128, *key));
        word.copied().unwrap_or_default()
    }

    #[inline(always)]
    fn load<T: Pod>(&self, offset: u32) -> Option<T> {
        let mut value = T::zeroed();
        let place = ptr::from_mut(&mut value).cast();
        // SAFETY: `value` has room for that many bytes, and any bytes are a valid value.
        let outcome = unsafe {
            bpf_skb_load_bytes(
                self.ctx.skb.skb.cast(),
                offset,
                place,
                size_of::<T>() as u32,
            )
        };
        (outcome == 0).then_some(value)
    }

    #[inline(always)]
    fn route(&self, ifindex: u32, src: Be128, dst: Be128) -> Option<u32> {
        // SAFETY: plain integers, for which zero is a value.
        let mut params: bpf_fib_lookup = unsafe { zeroed() };
        params.family = AF_INET6;
        params.ifindex = ifindex;
        params.__bindgen_anon_3.ipv6_src = src.words();
        params.__bindgen_anon_4.ipv6_dst = dst.words();
        let outcome = self.look_up(&mut params, 0);
        let forwarded = outcome == 0 || outcome == BPF_FIB_LKUP_RET_NO_NEIGH as i64;
        forwarded.then_some(params.ifindex)
    }
}
