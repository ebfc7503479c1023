// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who may send what to whom: a container's own addresses, networks, lists of clients, links.

pub mod access;
pub mod classify;
pub mod ipv6;
pub mod neighbour;
pub mod owner;
pub mod sender;
