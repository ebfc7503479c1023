// SPDX-License-Identifier: MIT OR Apache-2.0
//! The Internet checksum and its incremental update (RFC 1071, RFC 1624).
//!
//! A *delta* is the folded ones' complement difference `new - old` of the words that change. It is
//! computed once per flow and added to the checksum of every packet. Words are taken as they lie in
//! memory: the ones' complement sum is independent of byte order (RFC 1071 section 2).

use crate::family::Be16;

/// Folds a sum of 16-bit words to 16 bits, with end-around carry.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Folds a sum of less than 2^16 32-bit words to 16 bits, with end-around carry.
#[inline(always)]
#[must_use]
pub const fn fold_wide(sum: u64) -> u16 {
    // At most 2^32 + 2^16, so its two halves are a valid sum of words for `fold`.
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    fold((sum & 0xffff) as u32 + (sum >> 16) as u32)
}

/// The delta that turns a sum with the words `old` into one with the words `new`: both are unfolded
/// sums of at most 2^15 words. If nothing changes, the delta is 0, not the equivalent 0xffff.
#[inline(always)]
#[must_use]
pub const fn delta(old: u32, new: u32) -> u16 {
    let delta = fold(new + (!fold(old) as u32));
    if delta == 0xffff { 0 } else { delta }
}

/// The delta of the opposite change.
#[inline(always)]
#[must_use]
pub const fn opposite(delta: u16) -> u16 {
    if delta == 0 { 0 } else { !delta }
}

/// Adds two deltas.
#[inline(always)]
#[must_use]
pub const fn add(a: u16, b: u16) -> u16 {
    fold(a as u32 + b as u32)
}

/// A checksum field after its data changed by `delta`: `HC' = ~(~HC + m' - m)` (RFC 1624, eqn. 3).
#[inline(always)]
#[must_use]
pub const fn update(field: Be16, delta: u16) -> Be16 {
    Be16::from_word(!fold((!field.word()) as u32 + delta as u32))
}

/// [`update`] for UDP: zero means "no checksum" and stays, a computed zero becomes 0xffff
/// (RFC 768).
#[inline(always)]
#[must_use]
pub const fn update_udp(field: Be16, delta: u16) -> Be16 {
    if field.word() == 0 {
        return field;
    }
    let new = update(field, delta);
    if new.word() == 0 {
        Be16::from_word(0xffff)
    } else {
        new
    }
}
