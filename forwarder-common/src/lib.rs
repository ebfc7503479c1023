// SPDX-License-Identifier: MIT OR Apache-2.0
//! The packet logic of the forwarder: what happens to a packet, for the kernel and for the host
//! from one source.
//!
//! A Docker host's bridge networks need translation, isolation and published ports. This crate
//! decides all of it, packet by packet, as `nf_conntrack`, `nf_nat` and Docker's rules would. The
//! crate `forwarder-ebpf` compiles it into eBPF programs; tests, fuzzers and Miri run the very same
//! code on a host.
//!
//! # Where to begin
//!
//! Begin with [`pipeline`]. It has one function for each program, and tells a packet's story from
//! top to bottom: parse it, look up its flow, send it on; or judge it, make a flow, and send it on.
//! Every packet ends in exactly one [`Reason`](reason::Reason).
//!
//! # What the story needs
//!
//! - **Bytes.** [`frame`] is the window onto a packet: each access is checked. [`parse`] reads a
//!   packet into a tuple and a few facts. [`rewrite`] writes an edit, [`icmp`] restores the packet
//!   that an ICMP error quotes, and [`checksum`] and [`crc`] keep checksums right without reading
//!   the payload.
//! - **Flows.** [`flow`] has a flow's life: found, made, promoted, expired, ended. [`tcp`],
//!   [`window`] and [`sctp`] say what a packet means for its connection, [`timeouts`] how long it
//!   lives then, and [`nat`] chooses the port of a translation.
//! - **Bounds.** [`quota`] says how much one container may open, and [`refusal`] tells a container
//!   that it is refused.
//! - **Other programs.** [`socket`] points the host's own sockets at containers. [`flow_operation`] ends
//!   and collects flows by hand, and [`event`] is what a watcher is told of flows.
//!
//! # What it stands on
//!
//! [`abi`] has the maps that programs and agent share: names, sizes, keys and values. [`tables`] is
//! the trait by which this crate reaches them, the clock, routes and sockets; the kernel implements
//! it over maps and helpers, the tests over plain memory. [`family`] makes all of it generic over
//! the address family.
//!
//! # Invariants
//!
//! No I/O, no aya, no allocation. Everything is checked before anything is written. Bytes that
//! leave this crate, towards a wire or a map, are in wire order.
#![no_std]

pub mod abi;
pub mod checksum;
pub mod crc;
pub mod event;
pub mod family;
pub mod flow;
pub mod flow_operation;
pub mod frame;
pub mod icmp;
pub mod nat;
pub mod parse;
pub mod pipeline;
pub mod quota;
pub mod reason;
pub mod refusal;
pub mod rewrite;
pub mod sctp;
pub mod socket;
pub mod tables;
pub mod tcp;
pub mod timeouts;
pub mod window;
