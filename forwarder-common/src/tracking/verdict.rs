// SPDX-License-Identifier: MIT OR Apache-2.0
//! What TCP tracking decides about a segment, in words that cross a function's border.

use crate::clock::Ticks;
use crate::reason::Reason;
use crate::tracking::tcp::State;

/// The verdict on a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The segment passes; the flow is now in this state and expires after this time.
    To(State, Ticks),
    /// The segment passes and changes nothing.
    Ignore,
    /// The segment is dropped and changes nothing.
    Refuse(Reason),
}

impl Verdict {
    /// Packs the verdict into one word.
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u64 {
        match self {
            Self::To(state, span) => (state as u64) << 8 | (span as u64) << 32,
            Self::Ignore => 1,
            Self::Refuse(Reason::TcpState) => 2,
            Self::Refuse(_) => 3,
        }
    }

    /// Unpacks a verdict.
    #[inline(always)]
    #[must_use]
    pub const fn unpack(word: u64) -> Self {
        match word & 3 {
            0 => Self::To(State::from_u8((word >> 8) as u8), (word >> 32) as Ticks),
            1 => Self::Ignore,
            2 => Self::Refuse(Reason::TcpState),
            _ => Self::Refuse(Reason::TcpWindow),
        }
    }
}

/// Whether sequence number `a` comes before `b` (RFC 9293 section 3.4).
#[inline(always)]
#[must_use]
pub const fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

#[inline(always)]
pub(crate) const fn after(a: u32, b: u32) -> bool {
    before(b, a)
}

/// The state transition of a segment, packed into one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transition(u64);

const INSIDE: u64 = 1 << 16;
const OPENING: u64 = 1 << 17;

impl Transition {
    /// From one state to another; `inside` if the windows need not be checked.
    #[inline(always)]
    #[must_use]
    pub const fn new(from: State, to: State, inside: bool) -> Self {
        let opening = from as u8 == State::SynSent as u8;
        let inside = if inside { INSIDE } else { 0 };
        let opening = if opening { OPENING } else { 0 };
        Self((to as u64) << 8 | inside | opening)
    }

    /// The packed word.
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u64 {
        self.0
    }

    /// Unpacks a transition.
    #[inline(always)]
    #[must_use]
    pub const fn unpack(word: u64) -> Self {
        Self(word)
    }

    /// Whether the windows need not be checked.
    #[inline(always)]
    pub(crate) const fn is_inside(self) -> bool {
        self.0 & INSIDE != 0
    }

    /// Whether the connection has only seen its first SYN.
    #[inline(always)]
    pub(crate) const fn is_opening(self) -> bool {
        self.0 & OPENING != 0
    }

    /// The state after the segment.
    #[inline(always)]
    pub(crate) const fn to(self) -> State {
        State::from_u8((self.0 >> 8) as u8)
    }
}

/// The result of [`prepare`](crate::conntrack::window::prepare).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PreCheck {
    /// The verdict is already clear: [`Verdict::Ignore`] or [`Verdict::Refuse`].
    Decided(Verdict),
    /// The transition that the segment causes if it is inside of its windows.
    Transition(Transition),
}

impl PreCheck {
    /// Packs the result into one word; a [`PreCheck::Decided`] has the same word as its
    /// [`Verdict`].
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u64 {
        match self {
            Self::Decided(verdict) => verdict.pack(),
            Self::Transition(transition) => transition.0,
        }
    }

    /// Unpacks a result.
    #[inline(always)]
    #[must_use]
    pub const fn unpack(word: u64) -> Self {
        if word & 3 != 0 {
            return Self::Decided(Verdict::unpack(word));
        }
        Self::Transition(Transition(word))
    }
}
