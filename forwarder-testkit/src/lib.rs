// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the tests of several crates share. Only tests and fuzzers depend on this crate.
//!
//! - [`model`] is a host in plain memory. The packet logic runs on it as it runs on the kernel's
//!   maps. The tests of `forwarder-common`, the parity test and the fuzzers use it.

#[expect(
    missing_docs,
    reason = "fields and constants are those of the packet logic, which documents them"
)]
pub mod model;
