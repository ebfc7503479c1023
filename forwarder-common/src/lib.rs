// SPDX-License-Identifier: MIT OR Apache-2.0
//! The forwarder's packet logic: what happens to a packet, in one source for the kernel and for
//! hosts.
//!
//! A Docker host's bridge networks need translation, isolation and published ports. This crate
//! decides all of it, packet by packet, as `nf_conntrack`, `nf_nat` and Docker's rules would. The
//! crate `forwarder-ebpf` compiles it into eBPF programs; tests, fuzzers and Miri run the same code
//! on a host.
//!
//! # Where to begin
//!
//! Begin with [`pipeline`]. It has one function per program, and can be read from top to bottom:
//! parse the packet, look up its flow and forward it; or check it, create a flow and forward it.
//! Every packet ends in exactly one [`Reason`](reason::Reason).
//!
//! # What the pipeline uses
//!
//! - **Bytes.** [`frame`] gives checked access to a packet. [`parse`] reads a packet into a tuple
//!   and a few facts. [`rewrite`] applies an edit, [`icmp`] restores the packet that an ICMP error
//!   quotes, and [`checksum`] and [`crc`] update checksums without reading the payload.
//! - **Flows.** [`flow`] implements the flow lifecycle: find, create, assure, expire and end.
//!   [`tcp`], [`window`] and [`sctp`] track connections, [`timeouts`] says how long a flow lives,
//!   and [`nat`] chooses the port of a translation.
//! - **Limits.** [`quota`] limits what one container may open, and [`refusal`] tells a container
//!   that it is refused.
//! - **Other programs.** [`socket`] redirects the host's own sockets to containers.
//!   [`flow_operation`] deletes and collects flows on request, and [`event`] is what a watcher of
//!   flows receives.
//!
//! # Foundations
//!
//! [`abi`] declares the maps that programs and agent share: names, sizes, keys and values.
//! [`tables`] is the trait through which this crate reaches the maps, the clock, routes and
//! sockets. The kernel side implements it with maps and helpers, the tests with plain memory.
//! [`family`] makes everything generic over the address family.
//!
//! # Invariants
//!
//! No I/O, no aya, no allocation. Everything is checked before anything is written. Bytes that
//! leave this crate, for the wire or for a map, are in wire order.
#![no_std]

pub mod abi;
pub mod attempt;
pub mod clock;
pub mod conntrack;
pub mod context;
pub mod environment;
pub mod event;
pub mod family;
pub mod hooks;
pub mod mark;
pub mod meta;
pub mod nat;
pub mod policy;
pub mod reason;
pub mod socket;
pub mod steps;
pub mod subprograms;
pub mod wire;
