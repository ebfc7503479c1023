// SPDX-License-Identifier: MIT OR Apache-2.0
//! IP fragments, of which only a datagram's first one has ports.
//!
//! As in nf_nat, a datagram is reassembled before it is translated. The kernel's own reassembly
//! (`nf_defrag_ipv4`, which the agent switches on) waits for all fragments in any order, forgets
//! incomplete datagrams, and refuses overlapping fragments. Where the datagram leaves, the kernel
//! fragments it again (`ip_fragment`), so its fragments come out completely, in order, and one
//! right after the other.
//!
//! * **The destination is not translated**: the first fragment finds or creates its flow and gets
//!   the flow's mark, which the whole datagram inherits; later fragments get a mark that names no
//!   flow. At egress each fragment is translated by the mark (`snat_on_egress`).
//! * **The destination is the host's and will be translated**: the kernel would deliver the
//!   datagram to the host. So it is sent to a placeholder destination that belongs to nobody, whose
//!   route leads to the forwarder's defragmentation loopback device ([`defrag_out`]). There each
//!   fragment gets its real destination back and returns to the ingress on which it arrived. The
//!   first fragment is then processed like any packet. Later ones follow it ([`FragmentSeries`]):
//!   they take its ports and get the same verdict, but open no flow.

use crate::abi::{OUTSIDE, Tuple};
use crate::conntrack::quota;
use crate::context::{HookInput, PacketContext};
use crate::family::Address;
use crate::mark;
use crate::meta::{Meta, Side};
use crate::policy::owner::{Destination, destination};
use crate::reason::{Path, Reason};
use crate::subprograms::Steps;
use crate::wire::frame::Frame;
use crate::wire::header::Ip;
use crate::wire::parse::{Class, Packet};
use crate::wire::rewrite::Edit;
use crate::wire::series::FragmentSeries;

/// Processes a fragment that was just parsed. Returns the verdict, or `None` if the fragment goes
/// on; `packet` then has the tuple and the class by which it goes on.
#[inline(always)]
pub fn handle_fragment<F: Ip, T: Steps<F>>(
    frame: Frame<'_>,
    meta: &Meta,
    tables: &T,
    side: Side,
    packet: &mut Packet<F>,
) -> Option<Reason> {
    if let Some(reason) = identify(tables, meta.mark, packet) {
        return Some(reason);
    }
    if !packet.unassembled {
        return None;
    }
    PacketContext {
        frame,
        meta,
        tables,
        side,
        packet,
    }
    .reassemble()
}

/// Gives a fragment the tuple and the class by which the following steps process it. Returns the
/// verdict on a fragment that does not belong to the current series.
#[inline(always)]
fn identify<F: Ip, T: Steps<F>>(tables: &T, mark: u32, packet: &mut Packet<F>) -> Option<Reason> {
    if mark::kind(mark) != mark::DEFRAGMENTED {
        packet.unassembled = tables.settings().defrag_loopback != 0;
        if packet.unassembled && packet.first_fragment {
            packet.class = Class::of(packet.tuple.proto, F::ICMP);
        }
        return None;
    }
    tables.mark(mark::NONE);
    if packet.first_fragment {
        packet.class = Class::of(packet.tuple.proto, F::ICMP);
    }
    if !packet.later_fragment {
        tables.set_series(FragmentSeries::behind(packet));
        return None;
    }
    let series = tables.series();
    if !series.goes_on_with(packet) {
        return Some(Reason::Fragment);
    }
    packet.tuple = series.tuple;
    packet.class = series.class;
    // All fragments get the length of the first one, so that they take the same path: some on the
    // kernel path would wait for the others.
    packet.size = series.size;
    packet.options = series.options;
    tables.set_series(FragmentSeries::behind(packet));
    None
}

/// tcx egress of the defragmentation loopback device: fragments of reassembled datagrams.
#[inline(always)]
pub fn defrag_out<F: Ip, T: Steps<F>>(at: HookInput<'_, T>, packet: &mut Packet<F>) -> Reason {
    let HookInput {
        mut frame,
        meta,
        tables,
    } = at;
    let l3 = meta.l3 as usize;
    let (Some(rest), Ok(header)) = (
        mark::decode_defrag_loopback(meta.hash),
        F::header(&frame, l3),
    ) else {
        return Reason::Fragment;
    };
    if meta.kind() != mark::DEFRAG_LOOPBACK {
        return Reason::Fragment;
    }
    let Some(device) = tables.device(meta.ingress_ifindex) else {
        return Reason::DeviceUnknown;
    };
    packet.len = header.len;
    if let Some(slot) = tables.endpoint_slot(header.src) {
        quota::credit_fragment(tables, slot, header.len);
    }
    // The kernel's stack has checked the packet where it left; where it returns, only the device
    // checks the MAC address.
    let _ = frame.write(0, device.mac);
    F::readdress(
        &mut frame,
        l3,
        header.src,
        header.dst.decode_placeholder(rest),
        false,
    );
    tables.mark(mark::DEFRAGMENTED);
    tables.to_ingress(meta.ingress_ifindex);
    Reason::Whole
}

/// The steps for a fragment that arrives for the first time.
impl<F: Ip, T: Steps<F>> PacketContext<'_, F, T> {
    /// Sends a fragment to reassembly; `None` if it goes on like any packet.
    #[inline(always)]
    fn reassemble(&mut self) -> Option<Reason> {
        let Tuple { src, dst, .. } = self.packet.tuple;
        if self.side == Side::Outside {
            if src.is_loopback() || dst.is_loopback() {
                return Some(Reason::Loopback);
            }
            if self.tables.is_local(dst) {
                return Some(self.defrag_loopback());
            }
            let ifindex = self.meta.ifindex;
            if !self.packet.later_fragment
                || !matches!(
                    destination(self.tables, ifindex, &self.packet.tuple),
                    Destination::Network(_)
                )
            {
                return None;
            }
        } else {
            let verdict = match self.classify() {
                Some(reason) => Err(reason),
                // It leaves its network for an address of the host: to a published port.
                None => Ok(self.tables.is_local(dst)),
            };
            // The kernel would hold such a fragment until the others arrive, wherever it goes.
            let is_kept = match verdict {
                Ok(_) => true,
                Err(reason) => self.is_kept(reason),
            };
            if is_kept && !quota::charge_fragment(self.tables, self.charged(src), self.packet.len) {
                return Some(Reason::FragmentQuota);
            }
            let takes_detour = match verdict {
                Ok(takes_detour) => takes_detour,
                // To the host itself. A reassembled datagram returns through the loopback, and its
                // charge is given back there.
                Err(Reason::ToHost) if self.tables.is_local(dst) => true,
                Err(reason) => return Some(reason),
            };
            if takes_detour {
                return Some(self.defrag_loopback());
            }
            if !self.packet.later_fragment {
                return None;
            }
        }
        // A later fragment needs no more than this mark: the whole datagram inherits the mark of
        // the first one.
        self.tables.mark(mark::FRAGMENT);
        Some(Reason::Reassembled)
    }

    /// Whether the kernel holds a fragment with this verdict for reassembly: not if it is dropped,
    /// nor if a bridge switches it to one station.
    #[inline(always)]
    fn is_kept(&self, reason: Reason) -> bool {
        let to_group = self.frame.read::<u8>(0).is_some_and(|octet| octet & 1 != 0);
        reason.path() as u8 != Path::Drop as u8
            && (to_group || reason as u8 != Reason::Bridged as u8)
    }

    /// The slot that a container's fragment is charged to: its endpoint's, or its network's default
    /// endpoint while the endpoint is not known.
    #[inline(always)]
    fn charged(&self, src: F::Addr) -> u32 {
        if let Some(slot) = self.tables.endpoint_slot(src) {
            return slot;
        }
        let network = self
            .tables
            .device(self.meta.ifindex)
            .and_then(|device| self.tables.network(device.bridge));
        network.map_or(OUTSIDE, |network| network.default_endpoint)
    }

    /// Sends the fragment through the defragmentation loopback, where the kernel reassembles its
    /// datagram without delivering it.
    #[inline(always)]
    fn defrag_loopback(&mut self) -> Reason {
        let packet = self.packet;
        let (dst, rest) = packet.tuple.dst.encode_placeholder();
        // The detour costs a hop.
        F::lift(&mut self.frame, packet.l3 as usize);
        let edit = Edit {
            dst,
            transport: false,
            ..Edit::of(packet)
        };
        self.tables.edit(&mut self.frame, &edit);
        self.tables.mark(mark::DEFRAG_LOOPBACK);
        self.tables.hash(mark::defrag_loopback(rest));
        Reason::Reassembled
    }
}
