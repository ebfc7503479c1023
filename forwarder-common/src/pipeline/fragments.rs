// SPDX-License-Identifier: MIT OR Apache-2.0
//! A packet's story, in fragments: fragments, of which only a datagram's first one has ports.
//!
//! They are not translated before they are whole, as in nf_nat: the kernel's own reassembly
//! (`nf_defrag_ipv4`, which the agent has switched on) waits for all of them, in whatever order they
//! come, forgets what stays incomplete, and refuses what overlaps. What it hands on it cuts again
//! where it leaves, so that it comes out complete, in order, and at once.
//!
//! * **Onward**, where the destination stays as it is: the first fragment finds or makes its flow and
//!   carries the flow's mark, which the whole datagram inherits; the others carry a mark that leads
//!   nowhere. On its way out each fragment is translated by the mark (`snat_on_egress`).
//! * **Round**, where the destination is the host's and will be another one: the kernel would keep
//!   the datagram. So it is sent to a destination that is nobody's, whose route leads to a device
//!   of ours ([`defrag_out`]). There each fragment is given its destination back and returns to the
//!   ingress that it came by. The first one goes as any packet, the others follow it ([`FragmentSeries`]):
//!   with its ports they meet the same fate, but open no flow.

use super::owner::{Destination, destination};
use super::{Meta, PacketContext, Side, Steps, mark};
use crate::abi::{OUTSIDE, Tuple};
use crate::family::{Address, Be16, Family};
use crate::frame::Frame;
use crate::parse::{Class, Packet};
use crate::quota;
use crate::reason::{Path, Reason};
use crate::rewrite::Edit;

/// The datagram whose fragments are returning at the moment: they come one right after the other, on
/// one CPU.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FragmentSeries<F: Family> {
    /// The first fragment's tuple.
    pub tuple: Tuple<F>,
    /// The datagram's identification.
    pub id: Be16,
    /// Where the next fragment has to begin; 0 is no train.
    pub next: u16,
    /// How long the first fragment was.
    pub size: u16,
    /// What it was.
    pub class: Class,
    /// Whether it had options.
    pub options: bool,
}

impl<F: Family> FragmentSeries<F> {
    /// The train behind a fragment; none behind the last one, or where it would be too long.
    #[inline(always)]
    fn behind(packet: &Packet<F>) -> Self {
        let next = packet.offset as u32 + (packet.len - packet.network()) as u32;
        let goes_on = packet.more && next <= u16::MAX as u32;
        Self {
            tuple: packet.tuple,
            id: packet.id,
            next: if goes_on { next as u16 } else { 0 },
            size: packet.size,
            class: packet.class,
            options: packet.options,
        }
    }

    /// Whether a fragment is the next one.
    #[inline(always)]
    fn goes_on_with(&self, packet: &Packet<F>) -> bool {
        let Tuple {
            src, dst, proto, ..
        } = packet.tuple;
        self.next != 0
            && self.next == packet.offset
            && self.id == packet.id
            && self.tuple.src == src
            && self.tuple.dst == dst
            && self.tuple.proto == proto
    }
}

/// A fragment that was just read: the reason, where nothing is left to do. One that goes on, does so as
/// what `packet` says by now.
#[inline(always)]
pub fn handle_fragment<F: Family, T: Steps<F>>(
    frame: Frame<'_>,
    meta: &Meta,
    tables: &T,
    side: Side,
    packet: &mut Packet<F>,
) -> Option<Reason> {
    if let Some(reason) = name(tables, meta.mark, packet) {
        return Some(reason);
    }
    if !packet.apart {
        return None;
    }
    PacketContext {
        frame,
        meta,
        tables,
        side,
        packet,
    }
    .piece()
}

/// What a fragment is to the steps that follow: the reason, where it is none.
#[inline(always)]
fn name<F: Family, T: Steps<F>>(tables: &T, mark: u32, packet: &mut Packet<F>) -> Option<Reason> {
    if mark::kind(mark) != mark::BACK {
        packet.apart = tables.settings().defrag_loopback != 0;
        if packet.apart && packet.named {
            packet.class = Class::of(packet.tuple.proto, F::ICMP);
        }
        return None;
    }
    tables.mark(mark::NONE);
    if packet.named {
        packet.class = Class::of(packet.tuple.proto, F::ICMP);
    }
    if !packet.tail {
        tables.set_series(FragmentSeries::behind(packet));
        return None;
    }
    let series = tables.series();
    if !series.goes_on_with(packet) {
        return Some(Reason::Fragment);
    }
    packet.tuple = series.tuple;
    packet.class = series.class;
    // All of them go the same way: some of the kernel's would wait for the others.
    packet.size = series.size;
    packet.options = series.options;
    tables.set_series(FragmentSeries::behind(packet));
    None
}

/// tcx egress of the device that what is nobody's is routed to: whole datagrams in fragments.
#[inline(always)]
pub fn defrag_out<F: Family, T: Steps<F>>(
    mut frame: Frame<'_>,
    meta: &Meta,
    tables: &T,
    packet: &mut Packet<F>,
) -> Reason {
    let l3 = meta.l3 as usize;
    let (Some(rest), Ok(header)) = (mark::of_round(meta.hash), F::header(&frame, l3)) else {
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
        quota::return_piece(tables, slot, header.len);
    }
    // Checked by the kernel's stack where it left; nobody looks at it where it returns but the
    // device itself.
    let _ = frame.write(0, device.mac);
    F::readdress(
        &mut frame,
        l3,
        header.src,
        header.dst.decode_placeholder(rest),
        false,
    );
    tables.mark(mark::BACK);
    tables.to_ingress(meta.ingress_ifindex);
    Reason::Whole
}

/// A fragment that comes for the first time.
impl<F: Family, T: Steps<F>> PacketContext<'_, F, T> {
    /// Sends a fragment where it becomes whole: `None` for one that goes on as any packet.
    #[inline(always)]
    fn piece(&mut self) -> Option<Reason> {
        let Tuple { src, dst, .. } = self.packet.tuple;
        if self.side == Side::Outside {
            if src.is_loopback() || dst.is_loopback() {
                return Some(Reason::Loopback);
            }
            if self.tables.is_local(dst) {
                return Some(self.defrag_loopback());
            }
            let ifindex = self.meta.ifindex;
            if !self.packet.tail
                || !matches!(
                    destination(self.tables, ifindex, &self.packet.tuple),
                    Destination::Network(_)
                )
            {
                return None;
            }
        } else {
            let fate = match self.classify() {
                Some(reason) => Err(reason),
                // Out of its network by the host's own address: published there.
                None => Ok(self.tables.is_local(dst)),
            };
            // Whatever the kernel would keep until the rest comes, wherever it goes.
            let is_kept = match fate {
                Ok(_) => true,
                Err(reason) => self.is_kept(reason),
            };
            if is_kept && !quota::charge_piece(self.tables, self.charged(src), self.packet.len) {
                return Some(Reason::FragmentQuota);
            }
            let goes_round = match fate {
                Ok(goes_round) => goes_round,
                // For the host itself. What is whole comes back, and so does what it was charged.
                Err(Reason::ToHost) if self.tables.is_local(dst) => true,
                Err(reason) => return Some(reason),
            };
            if goes_round {
                return Some(self.defrag_loopback());
            }
            if !self.packet.tail {
                return None;
            }
        }
        // Worth nothing without the first one, whose mark the whole datagram gets.
        self.tables.mark(mark::PIECE);
        Some(Reason::Reassembled)
    }

    /// Whether the kernel keeps a fragment that goes on for this reason: not what is dropped, nor what
    /// a bridge switches to one station.
    #[inline(always)]
    fn is_kept(&self, reason: Reason) -> bool {
        let to_group = self.frame.read::<u8>(0).is_some_and(|octet| octet & 1 != 0);
        reason.path() as u8 != Path::Drop as u8
            && (to_group || reason as u8 != Reason::Bridged as u8)
    }

    /// The slot that a container's fragment is charged to: its endpoint's, or its network's own while
    /// the endpoint is not known.
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

    /// On a way on which the kernel puts it together and does not keep it.
    #[inline(always)]
    fn defrag_loopback(&mut self) -> Reason {
        let packet = self.packet;
        let (dst, rest) = packet.tuple.dst.encode_placeholder();
        // The way round costs a hop.
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
