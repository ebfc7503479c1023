// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! Atomic operations on words of map elements: BPF's own instructions.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};

/// Replaces `old` by `new`; whether it was `old`.
///
/// # Safety
/// `word` is aligned and points into a live map element.
#[inline(always)]
pub unsafe fn compare_and_swap(word: *mut u64, old: u64, new: u64) -> bool {
    // SAFETY: as above.
    unsafe {
        atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word, old, new)
            .1
    }
}

/// Replaces `old` by `new`: what the word was, and whether that was `old`.
///
/// # Safety
/// `word` is aligned and points into a live map element.
#[inline(always)]
pub unsafe fn exchange(word: *mut u32, old: u32, new: u32) -> (u32, bool) {
    // SAFETY: as above.
    unsafe {
        atomic_cxchg::<u32, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word, old, new)
    }
}

/// Adds; the value before.
///
/// # Safety
/// `word` is aligned and points into a live map element.
#[inline(always)]
pub unsafe fn add(word: *mut u64, summand: u64) -> u64 {
    // SAFETY: as above.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(word, summand) }
}

/// Adds one; the value before.
///
/// # Safety
/// As for [`add`].
#[inline(always)]
pub unsafe fn increment(word: *mut u64) -> u64 {
    // SAFETY: as above.
    unsafe { add(word, 1) }
}
