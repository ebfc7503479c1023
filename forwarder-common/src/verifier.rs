// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the BPF verifier need not know. It walks through what is behind a branch once for each
//! combination of values that it can tell apart and that a later branch asks for, and these multiply.
//! A value that it has been made to forget is one case from there on.

use core::hint::black_box;

use crate::reason::Reason;

/// The same number, of which the verifier knows nothing any more. `any` is a number that it does not
/// know, such as the time.
#[inline(always)]
#[must_use]
pub fn forget(number: u32, any: u32) -> u32 {
    // The compiler must not see that the second operation reverses the first; the verifier takes each
    // result for any number.
    (number ^ any) ^ black_box(any)
}

/// The same reason, of which the verifier knows nothing any more: see [`forget`].
#[inline(always)]
#[must_use]
pub fn forget_reason(reason: Reason, any: u32) -> Reason {
    let number = forget(reason as u32, any);
    Reason::from_u8(number as u8).unwrap_or(Reason::NoEndpoint)
}
