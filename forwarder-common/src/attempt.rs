// SPDX-License-Identifier: MIT OR Apache-2.0
//! Operations that are repeated a bounded number of times: the verifier checks one step, not all.
/// An operation that may be tried several times.
pub trait Attempt {
    /// Tries once; returns whether it succeeded.
    fn once(&mut self) -> bool;
}
