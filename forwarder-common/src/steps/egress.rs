// SPDX-License-Identifier: MIT OR Apache-2.0
//! What leaves: the second half of the kernel path, and packets that no hook has passed.

use crate::abi::others;
use crate::conntrack::quota;
use crate::context::{HookInput, PacketContext};
use crate::environment::{Configuration, Routes};
use crate::family::Address;
use crate::mark;
use crate::meta::{Meta, Side};
use crate::policy::{access, owner};
use crate::reason::Reason;
use crate::steps::followed;
use crate::subprograms::Steps;
use crate::wire::checksum;
use crate::wire::frame::Frame;
use crate::wire::header::Ip;
use crate::wire::parse::{Class, Packet, parse};
use crate::wire::rewrite::Edit;

impl<F: Ip, T: Steps<F>> PacketContext<'_, F, T> {
    /// The second half of `pass_to_kernel`, at egress: translates the source.
    #[inline(always)]
    pub fn snat_on_egress(&mut self) -> Option<Reason> {
        let (index, dir) = mark::decode_hash(self.meta.hash);
        let packet = self.packet;
        let old = &packet.tuple;
        let of_a_flow = self.meta.kind() == mark::FLOW;
        if (!of_a_flow || mark::was_fragmented(self.meta.hash))
            && let Some(slot) = self.tables.endpoint_slot(old.src)
        {
            quota::credit_fragment(self.tables, slot, packet.len);
        }
        if !of_a_flow {
            return None;
        }
        let flow = self.tables.flow(index)?;
        let before = flow.tuples[dir & 1].get();
        let after = flow.tuples[(dir ^ 1) & 1].get();
        let fits = self.tables.flow_state(flow).is_live()
            && before.src == old.src
            && after.src == old.dst
            && before.proto == old.proto
            && (packet.later_fragment || before.sport == old.sport && after.sport == old.dport);
        if !fits {
            // An answer of the host to a marked packet inherits the mark; its source is not a
            // container's.
            let leaks = owner::of_a_container(self.tables, self.meta, old.src).is_some();
            return Some(if leaks {
                Reason::Untranslated
            } else {
                Reason::FromHost
            });
        }
        if self.is_inseparable(flow) {
            return Some(Reason::Fragment);
        }
        if after.dst == old.src && (packet.later_fragment || after.dport == old.sport) {
            self.tables.mark(mark::NONE);
            return Some(Reason::Admitted);
        }
        if self.side == Side::Outside
            && self.tables.settings().others & others::IPSEC != 0
            && access::is_protected(self.tables, old.dst)
        {
            return Some(Reason::Unprotected);
        }
        let sport = if packet.later_fragment {
            old.sport
        } else {
            after.dport
        };
        let edit = Edit {
            src: after.dst,
            sport,
            address_delta: checksum::delta(old.src.sum(), after.dst.sum()),
            port_delta: checksum::delta(old.sport.word() as u32, sport.word() as u32),
            ..Edit::of(packet)
        };
        self.tables.edit(&mut self.frame, &edit);
        self.tables.mark(mark::NONE);
        Some(Reason::Completed)
    }
}

/// The verdict on a leaving packet that cannot be parsed and therefore not be translated. The
/// kernel forwards by the network header alone, so a container's packet has to be dropped here.
#[inline(never)]
pub(crate) fn unread<F: Ip, T: Configuration<F> + Routes<F>>(
    frame: Frame<'_>,
    meta: &Meta,
    tables: &T,
    reason: Reason,
) -> Reason {
    let Ok(header) = F::header(&frame, meta.l3 as usize) else {
        return reason;
    };
    owner::of_a_container(tables, meta, header.src).unwrap_or(reason)
}

/// The verdict on a leaving packet that no hook has translated: a container's is dropped; the host's
/// own, and one that the kernel has given the host's address over Docker's rules, is translated where
/// a container's flow needs that.
#[inline(always)]
pub(crate) fn unmarked<F: Ip, T: Steps<F>>(context: &mut PacketContext<'_, F, T>) -> Reason {
    let (tables, meta) = (context.tables, context.meta);
    if followed::are_there(tables)
        && let Some(reason) = tables.let_out(context)
    {
        return reason;
    }
    if let Some(reason) = owner::of_a_container(tables, meta, context.packet.tuple.src) {
        return reason;
    }
    let is_hosts = meta.ingress_ifindex == 0
        || tables.has_kernel_rules() && tables.is_local(context.packet.tuple.src);
    if !is_hosts {
        return Reason::FromHost;
    }
    let translated = match context.packet.class {
        Class::Flow | Class::Portless => tables.translate_host_flow(context),
        Class::IcmpError => tables.restore_own_error(context),
        Class::Fragment | Class::Other | Class::Unreadable => None,
    };
    translated.unwrap_or(Reason::FromHost)
}

/// The host's own packet to a container. An ICMP error quotes the packet that the container sent; the
/// quote would show the translated destination, so it is translated back.
#[inline(always)]
pub(crate) fn to_container<F: Ip, T: Steps<F>>(
    at: HookInput<'_, T>,
    packet: &mut Packet<F>,
) -> Reason {
    let l3 = at.meta.l3 as usize;
    let may_quote = F::header(&at.frame, l3).is_ok_and(|header| header.proto == F::ICMP as u32)
        && parse(&at.frame, l3, packet).is_ok()
        && packet.class == Class::IcmpError;
    if !may_quote {
        return Reason::FromHost;
    }
    let tables = at.tables;
    let restored = tables.restore_own_error(&mut at.context(Side::Bridge, packet));
    restored.unwrap_or(Reason::FromHost)
}
