// SPDX-License-Identifier: MIT OR Apache-2.0
//! A packet at a hook: what the steps of the packet path work on.

use crate::family::Family;
use crate::meta::{Meta, Side};
use crate::wire::frame::Frame;
use crate::wire::parse::Packet;

/// A packet at one of the forwarder's hooks: the arguments of every step.
///
/// A hook calls the larger steps ([`Steps`](crate::subprograms::Steps)) itself; a step does not call another one, because BPF
/// has 512 bytes of stack for a whole call chain.
pub struct PacketContext<'a, F: Family, T> {
    /// The packet's bytes.
    pub frame: Frame<'a>,
    /// What the hook knows besides the bytes.
    pub meta: &'a Meta,
    /// Flow table, configuration, host and output.
    pub tables: &'a T,
    /// On which side the hook is attached.
    pub side: Side,
    /// The parsed packet.
    pub packet: &'a Packet<F>,
}
