// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent: keeps the BPF maps and programs equal to what Docker and the kernel say.
//!
//! The programs decide about packets by themselves, with an agent or without. What they cannot know
//! is which networks, containers and published ports there are, and which devices they should be
//! on. The agent tells them. It remembers nothing of what it did: each round observes what the
//! kernel holds, derives what it should hold, and carries out the difference. A first start, a
//! crash, drift and the steady state are this one path.
//!
//! # Where to begin
//!
//! Begin with [`daemon`]: one event enum, one loop. A round itself is in `agent.rs`.
//!
//! # From news to the kernel
//!
//! 1. [`watch`] reads Docker, netlink, the shims and the configuration file, and sends
//!    [`Update`](world::Fact)s.
//! 2. [`host_state`] holds what the updates say, as plain data.
//! 3. [`desired`] derives from it the [`tables`] that the kernel should hold. [`rules`] are what
//!    the administrator overrides, [`others`] what other software on this host has set up.
//! 4. [`diff`] compares them with what the kernel holds: a list of operations of which every prefix
//!    is safe.
//! 5. [`datapath`] reads and changes the kernel: maps, links, pins, flow operations.
//!
//! [`host_state`], [`desired`], [`diff`] and [`tables`] are pure: no I/O, no clock. [`watch`] and
//! [`datapath`] do the I/O, and only [`datapath`] names aya.
//!
//! # People and shims
//!
//! [`cli`] has one file for each verb, and [`report`] makes what they show. [`control`] is the
//! socket by which they ask the agent; the shims that dockerd starts use it too, and [`shims`]
//! tracks which of them waits for what. [`config`] reads settings, [`preflight`] judges whether
//! this kernel, host and Docker will do, and [`lock`] admits one agent per network namespace.

mod acl;
mod agent;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod desired;
pub mod desired_state;
pub mod diff;
mod exhaustion;
pub mod host_state;
pub mod lock;
pub mod others;
pub mod overrides;
pub mod plain;
pub mod preflight;
pub mod report;
pub mod shims;
mod stop;
pub mod trusted;
pub mod uplinks;
pub mod watch;
