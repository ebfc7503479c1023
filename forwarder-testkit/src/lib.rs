// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the tests of several crates share. Only tests and fuzzers depend on this crate.
//!
//! - [`packet`] and [`packet6`] build and check packets, [`checksum`] has the reference of all checksums, and
//!   [`rng`] is the one generator of random numbers. The harness of the host tests uses them, too.
//! - [`model`] is a host in plain memory. The packet logic runs on it as it runs on the kernel's
//!   maps. The tests of `forwarder-common`, the parity test and the fuzzers use it.
//! - `laws` (feature `plans`) has what every plan of `forwarder_state::diff` is held to, and a
//!   generator of states. The tests of `forwarder-state` and a fuzzer use it.

pub mod checksum;
#[cfg(feature = "plans")]
pub mod laws;
#[expect(
    missing_docs,
    reason = "fields and constants are those of the packet logic, which documents them"
)]
pub mod model;
pub mod packet;
pub mod packet6;
pub mod rng;
