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
//! Begin with [`hooks`]. It has one function per program, and can be read from top to bottom: parse
//! the packet, look up its flow and forward it; or check it, create a flow and forward it. Every
//! packet ends in exactly one [`Reason`](reason::Reason).
//!
//! # Layers
//!
//! Each uses what is above it in this list, and nothing below.
//!
//! - **Data.** [`abi`] declares the maps that programs and agent share: names, sizes, keys and
//!   values. [`family`] makes everything generic over the address family. [`reason`], [`event`],
//!   [`dropped`], [`clock`], [`mark`], [`meta`] and [`attempt`] are small vocabularies;
//!   [`verifier`] keeps a program's proof short.
//! - **Bytes.** [`wire`] gives checked access to a frame, parses it into a tuple and a few facts,
//!   applies edits, restores the packet that an ICMP error quotes, and updates checksums without
//!   reading the payload.
//! - **Interface.** [`environment`] has the traits through which this crate reaches maps, clock,
//!   routes and sockets; the kernel side implements them with maps and helpers, the tests with plain
//!   memory. [`context`] is the packet at a hook, [`tracking`] has TCP's states and the words about a
//!   segment. [`subprograms`] lists what is a global function in the kernel.
//! - **Algorithms.** [`conntrack`] implements a flow's life, TCP and SCTP tracking, timeouts and
//!   quotas; [`nat`] chooses the port of a translation; [`policy`] decides who may send what to
//!   whom; [`socket`] redirects the host's own sockets to containers.
//! - **Steps.** [`steps`] forward a packet, create a flow, translate ICMP errors, reassemble
//!   fragments, and tell a container that it is refused.
//! - **Hooks.** [`hooks`], the story.
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
pub mod dropped;
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
pub mod tracking;
pub mod verifier;
pub mod wire;
