// SPDX-License-Identifier: MIT OR Apache-2.0
//! What windows ask of a segment, and how its options are read.

use core::hint::black_box;

use crate::family::Family;
use crate::flow::{Direction, REPLY};
use crate::frame::Frame;
use crate::parse::Packet;
use crate::tables::{Attempt, Tables};
use crate::tcp::{self, FIN, Kind, SYN};

/// The scale of a side that does not offer any.
pub const NO_SCALE: u8 = 0xff;
/// The scale of a side whose options cannot be read.
pub const UNREAD: u8 = 0xfe;
/// The largest scale (RFC 7323 section 2.3).
const MAX_SCALE: u8 = 14;
/// Steps of a walk: more than the bytes of all options.
const OPTIONS: u32 = 42;
/// An option's kind: the end of all.
const LAST: u8 = 0;
/// An option's kind, all of it: nothing.
const PADDING: u8 = 1;
/// An option's kind and length: window scale.
const SCALE: u8 = 3;
/// The bits of a payload's length.
const PAYLOAD: u32 = (1 << 24) - 1;
/// No datagram is longer.
const LONGEST: u32 = u16::MAX as u32;
/// TCP's header without options.
const FIXED: u8 = 20;

/// The window scale that a SYN offers, [`NO_SCALE`], or [`UNREAD`].
#[inline(always)]
#[must_use]
pub fn scale<F: Family, T: Tables<F>>(tables: &T, frame: Frame<'_>, packet: &Packet<F>) -> u8 {
    let mut walk = Walk {
        frame,
        at: packet.l4.wrapping_add(FIXED),
        end: (packet.l3 as u16).wrapping_add(packet.headers) as u8,
        found: UNREAD,
        offered: NO_SCALE,
    };
    tables.attempt(OPTIONS, &mut walk);
    walk.found
}

/// A walk through options. Places are bytes, which the verifier knows the bounds of: headers end
/// before 14 + 60 + 60.
struct Walk<'a> {
    frame: Frame<'a>,
    at: u8,
    end: u8,
    /// What the walk found once it is over.
    found: u8,
    /// What was offered so far.
    offered: u8,
}

impl Attempt for Walk<'_> {
    /// Looks at one option; whether it was the last.
    #[inline(always)]
    fn once(&mut self) -> bool {
        let left = self.end.wrapping_sub(self.at);
        // A last byte can only be padding.
        if self.at >= self.end || left < 2 {
            self.found = self.offered;
            return true;
        }
        // Opaque, so that what is compared with the frame's end is what is read.
        let place = black_box(self.at) as usize;
        let Some([kind, len]) = self.frame.read::<[u8; 2]>(place) else {
            return true;
        };
        if kind == PADDING {
            self.at = self.at.wrapping_add(1);
            return false;
        }
        if kind == LAST || len < 2 || len > left {
            self.found = self.offered;
            return true;
        }
        if kind == SCALE && len == 3 {
            let place = black_box(self.at) as usize;
            let Some([_, _, scale]) = self.frame.read::<[u8; 3]>(place) else {
                return true;
            };
            self.offered = if scale > MAX_SCALE { MAX_SCALE } else { scale };
        }
        self.at = self.at.wrapping_add(len);
        false
    }
}

/// A segment, as far as windows go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement.
    pub ack: u32,
    /// Window as announced.
    pub win: u16,
    /// Bytes of payload, below 2^24. Of a segment that is yet to be cut (GSO), or was put together
    /// (GRO), it is the whole's.
    pub payload: u32,
    /// FIN, SYN, RST and ACK.
    pub flags: u8,
    /// What [`scale()`] says.
    pub scale: u8,
    /// An answer to the originator.
    pub reply: bool,
}

impl Segment {
    /// A packet's of `len` bytes from the network header on. One whose rest follows in other fragments
    /// is taken to be as long as it can be: what acknowledges the rest must pass.
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

    /// In two words: a BPF function takes plain numbers only.
    #[inline(always)]
    #[must_use]
    pub const fn pack(&self) -> [u64; 2] {
        let numbers = self.seq as u64 | (self.ack as u64) << 32;
        let sizes = self.win as u64 | (self.payload as u64) << 16;
        let facts = self.flags as u64 | (self.scale as u64) << 8 | (self.reply as u64) << 16;
        [numbers, sizes | facts << 40]
    }

    /// Out of them.
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

    /// Sequence number plus all that it counts: payload, SYN, FIN.
    #[inline(always)]
    pub(super) const fn end(&self) -> u32 {
        let counts = self.payload + self.has(SYN) as u32 + self.has(FIN) as u32;
        self.seq.wrapping_add(counts)
    }

    #[inline(always)]
    pub(super) const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    #[inline(always)]
    pub(super) fn is(&self, kind: Kind) -> bool {
        tcp::kind(self.flags) as u8 == kind as u8
    }

    /// The sides that sent it and that it is for.
    #[inline(always)]
    pub(super) const fn sides(&self) -> (usize, usize) {
        (self.reply as usize, !self.reply as usize)
    }
}
