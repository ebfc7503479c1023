// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connection tracking: the life of a flow, TCP and SCTP states, timeouts, quotas.

pub mod flow;
pub mod flow_operation;
pub mod quota;
pub mod ring;
pub mod sctp;
pub mod sweep;
pub mod timeouts;
pub mod window;
pub mod window_scale;
