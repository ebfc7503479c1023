// SPDX-License-Identifier: MIT OR Apache-2.0
//! A datagram whose fragments arrive one right after the other.

use crate::abi::Tuple;
use crate::family::{Be16, Family};
use crate::wire::parse::{Class, Packet};

/// The datagram whose fragments return from the defragmentation loopback at the moment: they arrive
/// one right after the other on one CPU.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FragmentSeries<F: Family> {
    /// The first fragment's tuple.
    pub tuple: Tuple<F>,
    /// The datagram's identification field.
    pub id: Be16,
    /// The offset at which the next fragment must begin; 0 for no series.
    pub next: u16,
    /// The length of the first fragment.
    pub size: u16,
    /// The class of the first fragment.
    pub class: Class,
    /// Whether the first fragment had IP options.
    pub options: bool,
}

impl<F: Family> FragmentSeries<F> {
    /// The series that expects the fragment behind this one; no series after the last fragment, or
    /// if the offset would be too large.
    #[inline(always)]
    pub fn behind(packet: &Packet<F>) -> Self {
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

    /// Whether a fragment is the expected one.
    #[inline(always)]
    pub fn goes_on_with(&self, packet: &Packet<F>) -> bool {
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
