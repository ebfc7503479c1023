// SPDX-License-Identifier: MIT OR Apache-2.0
//! The steps of the packet path that the hooks share: forward, create a flow, translate errors,
//! reassemble fragments, refuse.

pub mod create_flow;
pub(crate) mod egress;
pub(crate) mod followed;
pub mod forward;
pub mod fragments;
mod host_flows;
mod icmp_errors;
mod kernel_owned;
pub mod refuse;
mod route;
mod steer;
mod uplink;
