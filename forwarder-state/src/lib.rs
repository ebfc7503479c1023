// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the agent knows and wants, as plain data and pure functions: no I/O, no clock, no tokio, no
//! aya. The agent, the tests and the fuzzers use this crate alike.
//!
//! # From updates to changes
//!
//! 1. [`host_state`] holds what Docker and the kernel report. Updates go in by
//!    [`HostState::apply`](host_state::HostState::apply).
//! 2. [`desired`] derives from it what the kernel should hold, a
//!    [`DesiredState`](desired_state::DesiredState). [`overrides`] are the administrator's settings;
//!    the crate's access lists say which client may reach which port.
//! 3. [`diff`] compares that with what the kernel holds. The result is a list of
//!    [`Change`](diff::Change)s of which every prefix is safe.
//!
//! [`notices`] is what an operator wants to read about the changes that were applied.
//!
//! [`others`] is what other software has configured on this host, as far as it concerns containers'
//! packets.

mod acl;
pub mod address;
pub mod connections;
pub mod desired;
pub mod desired_state;
pub mod diff;
mod generation;
pub mod host_state;
pub mod notices;
pub mod others;
pub mod overrides;
pub mod own_rules;
pub mod port_key;
