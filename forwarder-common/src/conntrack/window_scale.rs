// SPDX-License-Identifier: MIT OR Apache-2.0
//! Parses the options of a SYN for the window scale that it offers (RFC 7323).

use core::hint::black_box;

use crate::attempt::Attempt;
use crate::environment::Runtime;
use crate::family::Family;
use crate::tracking::segment::{NO_SCALE, UNREAD};
use crate::wire::frame::Frame;
use crate::wire::parse::Packet;

/// The largest scale (RFC 7323 section 2.3).
const MAX_SCALE: u8 = 14;
/// Steps to walk through the options: more than all options can have bytes.
const OPTIONS: u32 = 42;
/// Option kind: end of option list.
const LAST: u8 = 0;
/// Option kind: no-operation.
const PADDING: u8 = 1;
/// Option kind: window scale.
const SCALE: u8 = 3;
/// Bytes of a TCP header without options.
const FIXED: u8 = 20;

/// The window scale that a SYN offers, [`NO_SCALE`] if it offers none, or [`UNREAD`] if its options
/// cannot be read.
#[inline(always)]
#[must_use]
pub fn offered<F: Family, T: Runtime>(tables: &T, frame: Frame<'_>, packet: &Packet<F>) -> u8 {
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

/// A walk through TCP options. Offsets are bytes, whose bounds the verifier knows: headers end
/// before 14 + 60 + 60.
struct Walk<'a> {
    frame: Frame<'a>,
    at: u8,
    end: u8,
    /// The result, once the walk is over.
    found: u8,
    /// The scale offered so far.
    offered: u8,
}

impl Attempt for Walk<'_> {
    /// Reads one option; returns whether it was the last.
    #[inline(always)]
    fn once(&mut self) -> bool {
        let left = self.end.wrapping_sub(self.at);
        // A single last byte can only be padding.
        if self.at >= self.end || left < 2 {
            self.found = self.offered;
            return true;
        }
        // `black_box`, so that the offset that is compared with the frame's end is the one that is
        // read.
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
