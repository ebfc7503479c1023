// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! What the agent tells the programs.

use aya_ebpf::EbpfContext;
use aya_ebpf::maps::lpm_trie::Key;
use forwarder_common::abi::{
    AllowedKey, Device, Endpoint, IngressKey, LinkKey, MasqueradeKey, Network, PortKey, Published,
    ServerKey, Settings, TrustKey,
};
use forwarder_common::environment::{BaseConfiguration, Configuration};
use forwarder_common::family::{Be32, V4};

use super::Kernel;
use crate::maps::{
    ALLOWED_SOURCES, DEVICES, ENDPOINT_SLOTS, ENDPOINTS, HOST_ADDRESSES, INGRESS, LINKS, MAPPINGS,
    MASQ_ADDRESSES, NETWORKS, PUBLISHED, SEEN_AS, SETTINGS, SUBNETS, TRUSTED,
};

impl<C: EbpfContext> BaseConfiguration for Kernel<C> {
    #[inline(always)]
    fn settings(&self) -> Settings {
        SETTINGS.get(0).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn device(&self, ifindex: u32) -> Option<Device> {
        // SAFETY: the element is copied at once; the agent replaces whole elements.
        unsafe { DEVICES.get(ifindex) }.copied()
    }
}

impl<C: EbpfContext> Configuration<V4> for Kernel<C> {
    #[inline(always)]
    fn network(&self, bridge: u32) -> Option<Network<V4>> {
        // SAFETY: as for `device`.
        unsafe { NETWORKS.get(bridge) }.copied()
    }

    #[inline(always)]
    fn subnet(&self, addr: Be32) -> Option<u32> {
        SUBNETS.get(Key::new(32, addr)).copied()
    }

    #[inline(always)]
    fn is_local(&self, addr: Be32) -> bool {
        HOST_ADDRESSES.get(Key::new(32, addr)).is_some()
    }

    #[inline(always)]
    fn published(&self, key: &PortKey<V4>) -> Option<Published<V4>> {
        // SAFETY: as for `device`.
        unsafe { PUBLISHED.get(key) }.copied()
    }

    #[inline(always)]
    fn seen_as(&self, key: &ServerKey<V4>) -> u32 {
        // SAFETY: as for `device`.
        unsafe { SEEN_AS.get(key) }.copied().unwrap_or_default()
    }

    #[inline(always)]
    fn trusts(&self, key: TrustKey) -> bool {
        TRUSTED.get_ptr(key).is_some()
    }

    #[inline(always)]
    fn linked(&self, key: &LinkKey<V4>) -> bool {
        LINKS.get_ptr(key).is_some()
    }

    #[inline(always)]
    fn ingress(&self, key: IngressKey<V4>) -> u32 {
        INGRESS.get(Key::new(64, key)).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn allowed(&self, key: AllowedKey<V4>) -> u32 {
        ALLOWED_SOURCES
            .get(Key::new(64, key))
            .copied()
            .unwrap_or_default()
    }

    #[inline(always)]
    fn endpoint_slot(&self, addr: Be32) -> Option<u32> {
        // SAFETY: as for `device`.
        unsafe { ENDPOINT_SLOTS.get(addr) }.copied()
    }

    #[inline(always)]
    fn endpoint(&self, slot: u32) -> Option<&Endpoint<V4>> {
        ENDPOINTS.get(slot)
    }

    #[inline(always)]
    fn mapping(&self, slot: u32) -> u32 {
        MAPPINGS.get(slot).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn source(&self, ifindex: u32, next_hop: Be32) -> Option<Be32> {
        MASQ_ADDRESSES
            .get(Key::new(64, MasqueradeKey { ifindex, next_hop }))
            .copied()
    }
}
