// SPDX-License-Identifier: MIT OR Apache-2.0
//! Followed flows: connections that the kernel tracks, translates and judges by all rules of the
//! host, and whose packets take the fast path in between.
//!
//! The agent creates such a flow once the kernel knows the connection for certain
//! ([`flow_operation::follow`](crate::conntrack::flow_operation::follow)), with the kernel's own
//! translation. What begins or ends a connection, and whatever the fast path cannot finish, goes to
//! the kernel untouched. So does, for each direction, the first packet after every
//! [`LET_OUT`](timeouts::LET_OUT): only if it comes out again where a packet of this direction has to
//! come out, the next ones may overtake the kernel. A rule that drops them, a route that leads them
//! elsewhere, a connection that the kernel has forgotten therefore hold for the flow at once, whoever
//! made them and however, and with no agent alive. The kernel sees a part of the packets only, so the
//! agent tells it how long an idle connection lives.

use crate::abi::{OUTSIDE, device, others};
use crate::clock::Ticks;
use crate::conntrack::flow::{self, Hit};
use crate::conntrack::timeouts;
use crate::context::PacketContext;
use crate::environment::BaseConfiguration;
use crate::meta::Side;
use crate::reason::Reason;
use crate::subprograms::Steps;
use crate::tracking::tcp::State;
use crate::wire::header::Ip;
use crate::wire::parse::Class;
use crate::wire::{proto, tcp};

/// Whether any flow is followed.
#[inline(always)]
pub(crate) fn are_there<T: BaseConfiguration>(tables: &T) -> bool {
    tables.settings().others & others::FOLLOWED != 0
}

impl<F: Ip, T: Steps<F>> PacketContext<'_, F, T> {
    /// Whether a packet of a followed flow may take the fast path: it neither begins nor ends
    /// anything, and the kernel has just let a packet of its direction out.
    #[inline(always)]
    pub(super) fn may_overtake(&self, hit: &Hit<'_, F>, now: Ticks) -> bool {
        let is_ordinary = match self.packet.tuple.proto {
            proto::TCP => {
                tcp::kind(self.packet.flags) as u8 == tcp::Kind::Ack as u8
                    && hit.flow_state.state() == State::Established as u8
            }
            _ => true,
        };
        let let_out = hit.flow.let_out(hit.dir).get();
        is_ordinary && now.wrapping_sub(let_out) < timeouts::LET_OUT && self.is_for_gateway(hit)
    }

    /// Whether the packet is a reset. Whether it is a valid one, the kernel has to know: of a
    /// connection that has gone far past it, the windows are not known here either.
    #[inline(always)]
    pub(super) fn resets(&self) -> bool {
        self.packet.tuple.proto == proto::TCP && self.packet.flags & tcp::RST != 0
    }

    /// Whether a container's frame is for its network's bridge, and not for another router on it.
    #[inline(always)]
    fn is_for_gateway(&self, hit: &Hit<'_, F>) -> bool {
        if self.side as u8 == Side::Outside as u8 {
            return true;
        }
        let from = hit.flow.next_hops[(hit.dir ^ 1) & 1].slot();
        let Some(endpoint) = self.tables.endpoint(from) else {
            return false;
        };
        let [.., a, b, c, d, e, f] = endpoint.macs;
        self.frame.read::<[u8; 6]>(0) == Some([a, b, c, d, e, f])
    }

    /// Whether the kernel has forwarded the packet: the host has not sent it, and no bridge has
    /// switched it, behind which any container may send in anybody's name.
    #[inline(always)]
    fn is_forwarded(&self) -> bool {
        let from = self.tables.device(self.meta.ingress_ifindex);
        from.is_some_and(|from| {
            matches!(from.kind, device::OUTSIDE | device::OTHER | device::BRIDGE)
        })
    }

    /// Notes that the kernel lets a packet of a followed flow out. `None` if the packet belongs to no
    /// such flow. A packet that leaves by another device than the fast path would send it to proves
    /// nothing about the fast path.
    #[inline(always)]
    pub fn let_out(&mut self) -> Option<Reason> {
        if self.packet.class as u8 != Class::Flow as u8 {
            return None;
        }
        let hit = flow::find(self.tables, &self.packet.tuple.reversed())?;
        if !hit.flow_state.is_followed() {
            return None;
        }
        if !self.is_forwarded() {
            return Some(Reason::Admitted);
        }
        let dir = (hit.dir ^ 1) & 1;
        let towards = &hit.flow.next_hops[dir];
        let ifindex = match towards.slot() {
            OUTSIDE if towards.generation.get() == 0 => 0,
            OUTSIDE => hit.flow.ifindex.get(),
            slot => self.tables.endpoint(slot)?.ifindex,
        };
        if ifindex == self.meta.ifindex {
            hit.flow.let_out(dir).set(self.tables.now());
        }
        Some(Reason::Admitted)
    }
}
