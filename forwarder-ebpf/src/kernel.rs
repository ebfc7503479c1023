// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! Implements the packet logic's interface to the kernel, the traits of
//! [`environment`](forwarder_common::environment), through maps and helpers: one module for what the
//! agent configures, the flow table, routes, sockets, the runtime, and IPv6. `output.rs` implements
//! how packets leave.

mod configuration;
mod flow_table;
mod ipv6;
mod routes;
mod runtime;
mod sockets;

use forwarder_common::reason::Reason;

use crate::maps::REASONS;

/// The kernel's maps and helpers, as seen by one run of a program.
pub struct Kernel<C> {
    /// The program's context.
    pub ctx: C,
}

/// Counts a packet under its reason.
#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(counter) = REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own element; a program is not preempted by another one of its kind.
        unsafe { *counter += 1 };
    }
}
