// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent: keeps the BPF maps and programs equal to what Docker and the kernel say.
//!
//! The programs decide about packets by themselves, with or without an agent. They cannot know
//! which networks, containers and published ports exist, and which devices they should be attached
//! to. The agent tells them. Each pass derives what the kernel should hold, compares that with what
//! it holds, and applies the difference. A first start, a crash, drift and the steady state take
//! this one path. The agent stores no record of its own actions: it reads everything at its start,
//! after an error and every few seconds, and in between remembers what it has applied since.
//!
//! # Where to begin
//!
//! Begin with [`daemon`]: one event enum, one loop. A sync is in `agent/sync.rs`.
//!
//! # From updates to the kernel
//!
//! 1. [`watch`] reads Docker, netlink, the shims and the configuration file, and sends
//!    [`Update`](forwarder_state::host_state::Update)s.
//! 2. [`forwarder_state`] applies them to its [`HostState`](forwarder_state::host_state::HostState),
//!    derives what the kernel should hold, and compares that with what it holds. The result is a
//!    list of [`Change`](forwarder_state::diff::Change)s of which every prefix is safe. That crate is
//!    pure: no I/O, no clock.
//! 3. [`datapath`] reads and changes the kernel: maps, links, pins, flow operations. Only this
//!    module uses aya. It and [`watch`] stand on `sys`, the kernel's interfaces that both need.
//!
//! # People and shims
//!
//! [`cli`] has one file for each verb, and [`report`] builds what the verbs show. [`control`] is
//! the socket by which they query the agent. The shims that dockerd starts use it too, and
//! [`shims`] tracks which shim waits for which reply. [`config`] reads settings, [`preflight`]
//! checks whether this kernel, host and Docker are suitable, and [`lock`] admits one agent per
//! network namespace. `logging` writes the log.

mod agent;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod datapath;
mod exhaustion;
mod hand_back;
pub mod lock;
mod logging;
pub mod plain;
pub mod preflight;
pub mod report;
pub mod shims;
mod stop;
mod sys;
pub mod trusted;
pub mod uplinks;
pub mod watch;
