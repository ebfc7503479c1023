// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether a packet comes from where it may come from: from an address that a sender can have, from
//! the device behind which the opposite end of its flow is, and from the container's own MAC
//! address.

use crate::abi::{Endpoint, OUTSIDE, device};
use crate::conntrack::flow::Hit;
use crate::context::PacketContext;
use crate::environment::Configuration;
use crate::family::{Address, Family};
use crate::meta::Side;
use crate::policy::classify;

/// Whether an address is a martian source: reserved, or the host's own, so that no sender outside
/// can have it.
#[inline(always)]
pub(crate) fn is_martian<F: Family, T: Configuration<F>>(tables: &T, addr: F::Addr) -> bool {
    addr.is_unroutable() || addr.is_reserved() || addr.is_loopback() || tables.is_local(addr)
}

impl<F: Family, T: Configuration<F>> PacketContext<'_, F, T> {
    /// Whether the packet came from the device behind which the opposite end of its flow is.
    #[inline(always)]
    pub(crate) fn comes_from(&self, hit: &Hit<'_, F>) -> bool {
        let slot = hit.flow.next_hops[(hit.dir ^ 1) & 1].slot();
        if self.side == Side::Outside || slot == OUTSIDE {
            return self.side == Side::Outside && slot == OUTSIDE;
        }
        self.tables
            .endpoint(slot)
            .is_some_and(|endpoint| self.is_behind(endpoint))
    }

    /// Whether an endpoint is behind the device that the hook is attached to.
    #[inline(always)]
    pub(crate) fn is_behind(&self, endpoint: &Endpoint<F>) -> bool {
        classify::is_behind(self.tables, self.side, self.meta.ifindex, endpoint)
            && self.may_use_default_endpoint(endpoint)
    }

    /// Whether a container's frame has one of the container's own MAC addresses as source.
    #[inline(always)]
    pub(crate) fn sends_as_itself(&self) -> bool {
        self.side as u8 != Side::Veth as u8
            || self
                .tables
                .device(self.meta.ifindex)
                .is_none_or(|device| classify::sends_as_itself(&self.frame, &device))
    }

    /// Whether the sender may send in a flow of its network's default endpoint. A container whose
    /// endpoint is known may do so only with a source address that it is allowed to use besides its
    /// own.
    #[inline(always)]
    fn may_use_default_endpoint(&self, endpoint: &Endpoint<F>) -> bool {
        if endpoint.addr != F::Addr::ANY || self.side as u8 != Side::Veth as u8 {
            return true;
        }
        let (ifindex, source) = (self.meta.ifindex, self.packet.tuple.src);
        self.tables.device(ifindex).is_some_and(|device| {
            device.kind != device::NAMED_VETH
                || classify::is_allowed(self.tables, self.side, ifindex, device.bridge, source)
        })
    }
}
