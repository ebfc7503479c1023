// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host's own flows: translates those whose port a container's flow already has, and records
//! those without ports, which cannot be translated.

use crate::abi::{End, HOST, ORIGINAL, REPLY};
use crate::conntrack::flow::{self, Hit, Plan};
use crate::context::PacketContext;
use crate::family::Address;
use crate::nat::Owner;
use crate::policy::access::Access;
use crate::reason::Reason;
use crate::subprograms::Steps;
use crate::wire::header::Ip;
use crate::wire::parse::Class;
use crate::wire::rewrite::Edit;
use crate::wire::{proto, tcp};

impl<F: Ip, T: Steps<F>> PacketContext<'_, F, T> {
    /// Translates a packet of the host whose answers would be taken for a container's flow: the
    /// host's flow gets another port, as nf_nat does for whichever flow comes later. `None` for all
    /// other packets.
    ///
    /// A packet without ports cannot be translated. Then the container's flow ends, and the host
    /// gets a flow of its own, which keeps a container from taking the tuple again. So does a
    /// connection that the kernel itself translates and that begins: its port is not a socket's, by
    /// which containers' flows see that it is taken.
    #[inline(always)]
    pub fn translate_host_flow(&mut self) -> Option<Reason> {
        let now = self.tables.now();
        let portless = self.packet.class as u8 == Class::Portless as u8;
        let is_hosts = |hit: &Hit<'_, F>| hit.flow.next_hops[REPLY].slot() == HOST;
        let hit = match self
            .current(now)
            .filter(|hit| hit.dir == ORIGINAL && is_hosts(hit))
        {
            Some(hit) => hit,
            None => {
                let answers = self.packet.tuple.reversed();
                let holder = flow::find(self.tables, &answers);
                let mut owner = Owner::Host;
                if portless {
                    if self.packet.tuple.dst.is_unroutable() {
                        return None;
                    }
                    if let Some(holder) = holder {
                        flow::end(self.tables, &holder);
                    }
                } else if holder.is_none() {
                    if self.meta.ingress_ifindex == 0 || !self.begins() {
                        return None;
                    }
                    if self.tables.flow_ref(&answers).is_some() {
                        return None;
                    }
                    owner = Owner::Remote;
                } else {
                    let holder = holder?;
                    // The packet is of the connection that is followed: the kernel translates it.
                    if holder.flow_state.is_followed() {
                        return None;
                    }
                    // In a flow without translation the packet is the originator's own.
                    if holder.dir != REPLY
                        || holder.flow.tuples[ORIGINAL].get() == self.packet.tuple
                        || !flow::is_current(self.tables, holder.flow, now)
                    {
                        return None;
                    }
                    // The container's flow came first and is no longer valid: the port belongs to a
                    // service of the host.
                    if self.access(holder.flow) as u8 == Access::PortTaken as u8 {
                        flow::end(self.tables, &holder);
                        return None;
                    }
                }
                let plan = Plan {
                    original: self.packet.tuple,
                    to: End::OUTSIDE,
                    from: End::HOST,
                    mapping: 0,
                    mapping_generation: 0,
                    uplink_mac: [0; 6],
                    policy: 0,
                };
                if let Err(reason) = self.make(&plan, answers, owner) {
                    // The host's own packets without ports, and what the kernel has translated, pass
                    // also without a record.
                    let passes = portless || owner == Owner::Remote;
                    return if passes { None } else { Some(reason) };
                }
                let hit = flow::find(self.tables, &self.packet.tuple)?;
                // What the kernel has chosen stays: somebody was faster.
                if owner == Owner::Remote && hit.flow.tuples[REPLY].get() != answers {
                    flow::end(self.tables, &hit);
                    return None;
                }
                hit
            }
        };
        if let Err(reason) = self.track(&hit, now) {
            return Some(reason);
        }
        if portless {
            return None;
        }
        let edit = Edit {
            hop: false,
            ..self.translate(&hit)
        };
        self.tables.edit(&mut self.frame, &edit);
        Some(Reason::HostFlow)
    }

    /// Whether a packet may be the first of its connection.
    #[inline(always)]
    fn begins(&self) -> bool {
        self.packet.tuple.proto != proto::TCP
            || tcp::kind(self.packet.flags) as u8 == tcp::Kind::Syn as u8
    }

    /// Records a packet without ports that a remote sends to the host, and that belongs to no flow
    /// of a container's. As long as the remote goes on, no container can take the tuple, not even
    /// if the host only listens and never sends (a mirror, a tunnel in one direction).
    ///
    /// Outside has opened such a flow, and pays for it. If there is no record left for it, or its
    /// source cannot be outside, the packet passes to the host without one. Always `None`: nothing
    /// here decides about the packet.
    #[inline(always)]
    pub fn record_for_host(&mut self) -> Option<Reason> {
        let tuple = self.packet.tuple;
        let hit = match flow::find(self.tables, &tuple) {
            Some(hit) => hit,
            None if !self.is_plausible() => return None,
            None => {
                let plan = Plan {
                    original: tuple,
                    to: End::HOST,
                    from: End::OUTSIDE,
                    mapping: 0,
                    mapping_generation: 0,
                    uplink_mac: [0; 6],
                    policy: 0,
                };
                self.make(&plan, tuple.reversed(), Owner::Remote).ok()?;
                flow::find(self.tables, &tuple)?
            }
        };
        // A flow of a container's that has gone is not renewed.
        if hit.flow.next_hops[hit.dir & 1].slot() == HOST {
            let _ = self.track(&hit, self.tables.now());
        }
        None
    }
}
