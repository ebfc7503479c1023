// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the agent, its shims and the command line say to each other, written once for both ends.
//!
//! The agent listens at a socket in its state directory ([`place`]). Each message is one line of
//! JSON ([`mod@line`]). A caller is either a shim, which stays connected ([`shim`]), or the command
//! line, which asks one question ([`query`]); the first line tells which.
//!
//! A shim of an earlier version may still be connected when the agent is replaced, so messages only
//! grow: no field and no variant changes its meaning.

pub mod line;
pub mod place;
mod port;
pub mod query;
pub mod shim;

pub use port::{HostPort, Proto};
