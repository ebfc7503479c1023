// SPDX-License-Identifier: MIT OR Apache-2.0
//! Forwards packets of established flows at XDP, into containers only.

use crate::conntrack::flow;
use crate::context::PacketContext;
use crate::environment::Devmap;
use crate::reason::Reason;
use crate::steps::steer::Target;
use crate::subprograms::Forwarding;
use crate::tracking::segment::NO_SCALE;
use crate::wire::header::Ip;
use crate::wire::parse::Class;
use crate::wire::{proto, tcp};

impl<F: Ip, T: Forwarding<F> + Devmap> PacketContext<'_, F, T> {
    /// Forwards the packet into its container. `None`: the packet goes on to the kernel unchanged.
    #[inline(always)]
    pub(crate) fn forward_at_uplink(&mut self) -> Option<Reason> {
        let (tables, packet) = (self.tables, self.packet);
        // The options of a SYN are read at tcx.
        if packet.class != Class::Flow
            || packet.len == 0
            || packet.tuple.proto != proto::UDP
                && (packet.tuple.proto != proto::TCP
                    || packet.flags & tcp::SYN != 0
                    || tables.settings().xdp_tcp == 0)
        {
            return None;
        }
        let hit = flow::find(tables, &packet.tuple)?;
        let now = tables.now();
        if self.frame.read::<[u8; 6]>(0)? != hit.flow.uplink_mac.get()
            || !flow::is_current(tables, hit.flow, now)
            || hit.flow_state.is_followed()
            || hit.flow.policy.get() != tables.settings().policy
            || !self.comes_from(&hit)
            || self.may_be_for_socket(&hit, now)
            || !self.is_intact()
        {
            return None;
        }
        let way = self.steer(&hit, now);
        let Target::Peer(endpoint) = way else {
            return None;
        };
        if self.others_need_kernel(&way).is_some() || !tables.takes_frames(endpoint.ifindex) {
            return None;
        }
        flow::track(tables, &hit, packet, packet.len as u32, NO_SCALE, now).ok()?;
        let translation = self.translate(&hit);
        if tables.flow_state(hit.flow).id() != hit.flow_state.id() {
            return None;
        }
        Some(self.deliver(translation, endpoint))
    }
}
