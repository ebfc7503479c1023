//! The packet brain: what happens to a packet, for the kernel and for the host from one source.
//!
//! Start reading in [`pipeline`]: it tells a packet's story from top to bottom. The rest is what
//! the story needs: [`frame`] and [`parse`] read bytes, [`flow`], [`tcp`], [`window`] and [`nat`]
//! decide (so does [`sctp`]), [`rewrite`] and [`icmp`] write, with [`checksum`] and [`crc`]; [`quota`] bounds what one container may open, and [`refusal`] tells
//! it so. [`socket`] is a story of its own, without packets; so is [`errand`], and [`event`] is what is
//! told of flows. [`abi`] is what the programs and the agent share in maps;
//! [`tables`] is the door through which the brain reaches them.
//!
//! **Invariants.** No I/O, no aya, no allocation. Everything is checked before anything is
//! written. Bytes that leave this crate, towards a wire or a map, are in wire order.
#![no_std]

pub mod abi;
pub mod checksum;
pub mod crc;
pub mod errand;
pub mod event;
pub mod family;
pub mod flow;
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
