// SPDX-License-Identifier: MIT OR Apache-2.0
//! Chooses where a flow's packet goes: straight to its target, or through the kernel where only the
//! kernel can finish it.

use crate::abi::{Endpoint, HOST, OUTSIDE, device, others};
use crate::clock::Ticks;
use crate::conntrack::flow::Hit;
use crate::conntrack::timeouts;
use crate::context::PacketContext;
use crate::environment::{FlowTable, Routes};
use crate::family::Family;
use crate::reason::{Path, Reason};
use crate::steps::route;
use crate::wire::parse::Class;
use crate::wire::proto;

/// Where a packet of a flow is sent: to a container, to a next hop, to the kernel, or nowhere.
pub(crate) enum Target<'a, F: Family> {
    /// Into a container.
    Peer(&'a Endpoint<F>),
    /// Out of a device to a next hop.
    Neighbour(u32, F::Addr),
    /// Through the kernel.
    Kernel(Reason),
    /// Nowhere.
    Refuse(Reason),
}

impl<'a, F: Family, T: FlowTable<F> + Routes<F>> PacketContext<'a, F, T> {
    /// Chooses where a flow's packet is sent: directly if the fast path can finish it, else through
    /// the kernel.
    #[inline(always)]
    pub(crate) fn steer(&self, hit: &Hit<'a, F>, now: Ticks) -> Target<'a, F> {
        let towards = &hit.flow.next_hops[hit.dir & 1];
        let slot = towards.slot();
        if slot == HOST {
            return Target::Kernel(Reason::HostFlow);
        }
        if slot != OUTSIDE {
            let Some(endpoint) = self.tables.endpoint(slot) else {
                return Target::Refuse(Reason::NoEndpoint);
            };
            if endpoint.ifindex == 0 {
                return Target::Kernel(Reason::NotHooked);
            }
            return match self.kernel_needed(endpoint.mtu) {
                None => Target::Peer(endpoint),
                Some(_) if !self.tables.exists(endpoint.ifindex) => {
                    Target::Refuse(Reason::TargetGone)
                }
                Some(reason) => Target::Kernel(reason),
            };
        }
        let settings = self.tables.settings();
        let stale = now.wrapping_sub(settings.heartbeat) > timeouts::HEARTBEAT;
        if stale || towards.generation.get() != settings.route_generation {
            match route::renew(self.tables, hit.flow, hit.dir, settings.route_generation) {
                None => {}
                Some(reason) if reason.path() as u8 == Path::Drop as u8 => {
                    return Target::Refuse(reason);
                }
                Some(reason) => return Target::Kernel(reason),
            }
        }
        let mtu = towards.mtu.get() as u32;
        if mtu == 0 {
            return Target::Kernel(Reason::NoEthernet);
        }
        match self.kernel_needed(mtu) {
            None => Target::Neighbour(hit.flow.ifindex.get(), hit.flow.next_hop.get()),
            Some(reason) => Target::Kernel(reason),
        }
    }

    /// Why a packet that the fast path could finish has to take the kernel path: IPsec policies, or
    /// traffic control that somebody else has set up on one of the devices.
    #[inline(always)]
    pub(crate) fn others_need_kernel(&self, way: &Target<'a, F>) -> Option<Reason> {
        let others = self.tables.settings().others & (others::SHAPED | others::IPSEC);
        if others == 0 || matches!(way, Target::Kernel(_) | Target::Refuse(_)) {
            return None;
        }
        if others & others::IPSEC != 0 {
            return Some(Reason::Ipsec);
        }
        let shaped = |ifindex, flag| {
            self.tables
                .device(ifindex)
                .is_some_and(|device| device.flags & flag != 0)
        };
        let out = match way {
            Target::Peer(endpoint) => shaped(endpoint.ifindex, device::flag::SHAPED_OUT),
            _ => false,
        };
        let is_shaped = out || shaped(self.meta.ifindex, device::flag::SHAPED_IN);
        is_shaped.then_some(Reason::Shaped)
    }

    /// Why the kernel has to finish a packet that goes to a device with this MTU.
    #[inline(always)]
    fn kernel_needed(&self, mtu: u32) -> Option<Reason> {
        let packet = self.packet;
        let segment = self.meta.segment;
        let size = if segment == 0 {
            packet.size as u32
        } else if packet.class as u8 == Class::Portless as u8 || packet.tuple.proto == proto::SCTP {
            // Only the kernel knows the size of the segments that it cuts this packet into.
            u32::MAX
        } else {
            packet.headers as u32 + segment
        };
        if packet.hops <= 1 {
            Some(Reason::HopLimit)
        } else if packet.unassembled {
            Some(Reason::Reassembled)
        } else if packet.options {
            Some(Reason::Options)
        } else if size > mtu {
            Some(Reason::TooBig)
        } else if self.meta.l3 == 0 {
            Some(Reason::NoEthernet)
        } else {
            None
        }
    }
}
