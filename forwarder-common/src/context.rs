// SPDX-License-Identifier: MIT OR Apache-2.0
//! A packet at a hook: what the steps of the packet path work on.

use crate::family::Family;
use crate::meta::{Meta, Side};
use crate::reason::Reason;
use crate::wire::frame::Frame;
use crate::wire::header::Ip;
use crate::wire::parse::{Packet, parse};

/// A packet at one of the forwarder's hooks: the arguments of every step.
///
/// A hook calls the larger steps ([`Steps`](crate::subprograms::Steps)) itself; a step does not call
/// another one, because BPF has 512 bytes of stack for a whole call chain.
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

/// What a hook starts from.
pub struct HookInput<'a, T> {
    /// The packet's bytes.
    pub frame: Frame<'a>,
    /// What the hook knows besides the bytes.
    pub meta: &'a Meta,
    /// Flow table, configuration, host and output.
    pub tables: &'a T,
}

impl<T> Clone for HookInput<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for HookInput<'_, T> {}

impl<'a, T> HookInput<'a, T> {
    /// Parses the packet.
    #[inline(always)]
    pub(crate) fn parse<F: Ip>(&self, packet: &mut Packet<F>) -> Result<(), Reason> {
        parse(&self.frame, self.meta.l3 as usize, packet)
    }

    /// The packet, once it is parsed.
    #[inline(always)]
    pub(crate) fn context<F: Family>(
        self,
        side: Side,
        packet: &'a Packet<F>,
    ) -> PacketContext<'a, F, T> {
        PacketContext {
            frame: self.frame,
            meta: self.meta,
            tables: self.tables,
            side,
            packet,
        }
    }
}
