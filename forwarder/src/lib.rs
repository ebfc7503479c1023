//! The agent: keeps the BPF maps and programs equal to what Docker and the kernel say.
//!
//! Start reading in [`daemon`]: one event enum, one loop. `watch` brings facts in, [`world`] holds
//! them, [`desired`] says what the kernel should hold, [`diff`] what is missing, [`datapath`]
//! makes it so. `world`, `desired`, `diff` and `tables` are pure; `watch` and `datapath` do the
//! I/O, and only `datapath` names aya.

mod agent;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod desired;
pub mod diff;
mod exhaustion;
mod lists;
pub mod lock;
pub mod others;
pub mod plain;
pub mod preflight;
pub mod report;
pub mod rules;
pub mod shims;
mod stop;
pub mod tables;
pub mod trusted;
pub mod uplinks;
pub mod watch;
pub mod world;
