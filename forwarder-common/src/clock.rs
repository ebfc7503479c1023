// SPDX-License-Identifier: MIT OR Apache-2.0
//! The coarse clock of the datapath: ticks of 2^24 nanoseconds.
/// A moment or a span of the coarse monotonic clock, in units of 2^24 ns (16.78 ms).
///
/// Wraps after 2.3 years; comparisons are right for spans of up to half of that.
pub type Ticks = u32;

/// Nanoseconds to ticks: a shift, so that the datapath needs no division.
#[inline(always)]
#[must_use]
pub const fn ticks(nanoseconds: u64) -> Ticks {
    (nanoseconds >> 24) as u32
}

/// Whole seconds to ticks, rounded down.
#[inline(always)]
#[must_use]
pub const fn seconds(seconds: u32) -> Ticks {
    ticks(seconds as u64 * 1_000_000_000)
}

/// Ticks to whole seconds, rounded down.
#[must_use]
pub const fn to_seconds(span: Ticks) -> u64 {
    ((span as u64) << 24) / 1_000_000_000
}

/// Whether `deadline` has been reached at `now`.
#[inline(always)]
#[must_use]
pub const fn reached(deadline: Ticks, now: Ticks) -> bool {
    now.wrapping_sub(deadline) as i32 >= 0
}
