// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! Atomic operations on words of map elements, by BPF's own instructions.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};

/// Replaces `old` by `new`; returns whether the word was `old`.
#[inline(always)]
pub unsafe fn compare_and_swap(word: *mut u64, old: u64, new: u64) -> bool {
    // SAFETY: as above.
    unsafe {
        atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word, old, new)
            .1
    }
}

/// Replaces `old` by `new`; returns the previous value, and whether that was `old`.
#[inline(always)]
pub unsafe fn exchange(word: *mut u32, old: u32, new: u32) -> (u32, bool) {
    // SAFETY: as above.
    unsafe {
        atomic_cxchg::<u32, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word, old, new)
    }
}

/// Adds a summand; returns the previous value.
#[inline(always)]
pub unsafe fn add(word: *mut u64, summand: u64) -> u64 {
    // SAFETY: as above.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(word, summand) }
}

/// Adds one; returns the previous value.
#[inline(always)]
pub unsafe fn increment(word: *mut u64) -> u64 {
    // SAFETY: as above.
    unsafe { add(word, 1) }
}
