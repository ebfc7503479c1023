// SPDX-License-Identifier: MIT OR Apache-2.0
//! The facts of a TCP segment that window tracking needs.

use crate::abi::{Direction, REPLY};
use crate::family::Family;
use crate::wire::parse::Packet;
use crate::wire::tcp::{self, FIN, Kind, SYN};

/// The scale of a side that offers none.
pub const NO_SCALE: u8 = 0xff;
/// The scale of a side whose options cannot be read.
pub const UNREAD: u8 = 0xfe;
/// The bits of a payload length.
const PAYLOAD: u32 = (1 << 24) - 1;
/// The length of the longest datagram.
const LONGEST: u32 = u16::MAX as u32;

/// The facts of a segment that window tracking needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Announced window, unscaled.
    pub win: u16,
    /// Bytes of payload, below 2^24. For a GSO or GRO packet, the payload of all segments together.
    pub payload: u32,
    /// FIN, SYN, RST and ACK.
    pub flags: u8,
    /// The result of [`window_scale::offered`](crate::conntrack::window_scale::offered).
    pub scale: u8,
    /// Whether the segment goes in the reply direction.
    pub reply: bool,
}

impl Segment {
    /// The segment of a packet with `len` bytes from the network header on. A first fragment counts
    /// as the longest datagram: an acknowledgement of the rest must pass.
    #[inline(always)]
    #[must_use]
    pub fn of<F: Family>(packet: &Packet<F>, len: u32, dir: Direction, scale: u8) -> Self {
        let len = if packet.more { LONGEST } else { len };
        Self {
            seq: packet.seq,
            ack: packet.ack,
            win: packet.window,
            payload: len.wrapping_sub(packet.headers as u32) & PAYLOAD,
            flags: packet.flags,
            scale,
            reply: dir == REPLY,
        }
    }

    /// Packs the segment into two words, because a BPF function takes plain numbers only.
    #[inline(always)]
    #[must_use]
    pub const fn pack(&self) -> [u64; 2] {
        let numbers = self.seq as u64 | (self.ack as u64) << 32;
        let sizes = self.win as u64 | (self.payload as u64) << 16;
        let facts = self.flags as u64 | (self.scale as u64) << 8 | (self.reply as u64) << 16;
        [numbers, sizes | facts << 40]
    }

    /// Unpacks a segment.
    #[inline(always)]
    #[must_use]
    pub const fn unpack([numbers, facts]: [u64; 2]) -> Self {
        Self {
            seq: numbers as u32,
            ack: (numbers >> 32) as u32,
            win: facts as u16,
            payload: (facts >> 16) as u32 & PAYLOAD,
            flags: (facts >> 40) as u8,
            scale: (facts >> 48) as u8,
            reply: (facts >> 56) & 1 != 0,
        }
    }

    /// Sequence number plus everything that counts in it: payload, SYN, FIN.
    #[inline(always)]
    pub(crate) const fn end(&self) -> u32 {
        let counts = self.payload + self.has(SYN) as u32 + self.has(FIN) as u32;
        self.seq.wrapping_add(counts)
    }

    #[inline(always)]
    pub(crate) const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    #[inline(always)]
    pub(crate) fn is(&self, kind: Kind) -> bool {
        tcp::kind(self.flags) as u8 == kind as u8
    }

    /// The index of the side that sent the segment, and that of the other side.
    #[inline(always)]
    pub(crate) const fn sides(&self) -> (usize, usize) {
        (self.reply as usize, !self.reply as usize)
    }
}
