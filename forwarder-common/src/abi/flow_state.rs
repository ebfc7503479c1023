// SPDX-License-Identifier: MIT OR Apache-2.0
//! The state of a flow record in one word, and the ends of a flow.

use super::{HOST, NextHop, OUTSIDE};

/// A direction of a flow, as in nf_conntrack (`IP_CT_DIR_*`).
pub type Direction = usize;

/// The originator's packets.
pub const ORIGINAL: Direction = 0;
/// The answers.
pub const REPLY: Direction = 1;

/// The phase of a record.
mod phase {
    pub(super) const FREE: u8 = 0;
    pub(super) const LIVE: u8 = 1;
}

/// A record's generation, phase, conntrack state and flags in one word, so that one
/// compare-and-swap changes all of them.
///
/// From the low end: 32 bits of generation (`id`), 8 of TCP or SCTP state, 8 of phase, 8 of flags,
/// 8 of zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowState(pub u64);

impl FlowState {
    /// Flag: an answer was seen (`IPS_SEEN_REPLY`).
    pub const SEEN_REPLY: u8 = 1;
    /// Flag: a flood of new flows cannot evict the flow (`IPS_ASSURED`).
    pub const ASSURED: u8 = 2;
    /// Flag: the connection is the kernel's, and its packets take the fast path as long as the
    /// kernel lets them out.
    pub const FOLLOWED: u8 = 4;

    /// The state of a free record of this generation.
    #[inline(always)]
    #[must_use]
    pub fn free(id: u32) -> Self {
        Self::new(id, phase::FREE, 0, 0)
    }

    /// The state of a flow that begins.
    #[inline(always)]
    #[must_use]
    pub fn live(id: u32) -> Self {
        Self::new(id, phase::LIVE, 0, 0)
    }

    /// The state of a flow that follows a connection of the kernel, in this TCP state. The kernel has
    /// seen both ends.
    #[inline(always)]
    #[must_use]
    pub fn followed(id: u32, state: u8) -> Self {
        let flags = Self::SEEN_REPLY | Self::ASSURED | Self::FOLLOWED;
        Self::new(id, phase::LIVE, state, flags)
    }

    #[inline(always)]
    fn new(id: u32, phase: u8, state: u8, flags: u8) -> Self {
        Self(id as u64 | (state as u64) << 32 | (phase as u64) << 40 | (flags as u64) << 48)
    }

    /// The record's generation: changes each time the record is reused.
    #[inline(always)]
    #[must_use]
    pub const fn id(self) -> u32 {
        self.0 as u32
    }

    /// The number of the TCP or SCTP state.
    #[inline(always)]
    #[must_use]
    pub const fn state(self) -> u8 {
        (self.0 >> 32) as u8
    }

    #[inline(always)]
    const fn phase(self) -> u8 {
        (self.0 >> 40) as u8
    }

    #[inline(always)]
    const fn flags(self) -> u8 {
        (self.0 >> 48) as u8
    }

    /// Whether the record is in use.
    #[inline(always)]
    #[must_use]
    pub const fn is_live(self) -> bool {
        self.phase() == phase::LIVE
    }

    /// Whether the flow is assured: a flood of new flows cannot evict it (`IPS_ASSURED`).
    #[inline(always)]
    #[must_use]
    pub const fn is_assured(self) -> bool {
        self.flags() & Self::ASSURED != 0
    }

    /// Whether an answer was seen (`IPS_SEEN_REPLY`).
    #[inline(always)]
    #[must_use]
    pub const fn is_replied(self) -> bool {
        self.flags() & Self::SEEN_REPLY != 0
    }

    /// Whether the flow follows a connection of the kernel.
    #[inline(always)]
    #[must_use]
    pub const fn is_followed(self) -> bool {
        self.flags() & Self::FOLLOWED != 0
    }

    /// The same flow in this TCP or SCTP state, with more flags.
    #[inline(always)]
    #[must_use]
    pub fn with(self, state: u8, flags: u8) -> Self {
        Self::new(self.id(), self.phase(), state, self.flags() | flags)
    }

    /// The record after the flow's end, in the next generation.
    #[inline(always)]
    #[must_use]
    pub fn freed(self) -> Self {
        Self::new(self.id().wrapping_add(1), phase::FREE, 0, 0)
    }
}

/// One end of a flow that is about to be created.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    /// The endpoint's slot, [`OUTSIDE`] or [`HOST`].
    pub slot: u32,
    /// The endpoint's generation.
    pub generation: u32,
}

impl End {
    /// Everything outside.
    pub const OUTSIDE: Self = Self {
        slot: OUTSIDE,
        generation: 0,
    };
    /// The host itself.
    pub const HOST: Self = Self {
        slot: HOST,
        generation: 0,
    };

    /// The end that a next hop leads to.
    #[inline(always)]
    #[must_use]
    pub fn of(towards: &NextHop) -> Self {
        Self {
            slot: towards.slot(),
            generation: towards.generation.get(),
        }
    }
}
