//! The mark that a packet carries on the kernel's path from one of our hooks to the next.
//!
//! Never leaves the network namespace, cannot be set from a container (the kernel clears marks
//! between namespaces), and survives `ip_fragment`: the tails of a datagram find their flow by it.

use crate::flow::Direction;

/// The bits that say it is ours.
pub const MASK: u32 = 0xf000_0000;
/// Ours.
pub const TAG: u32 = 0xb000_0000;
const REPLY: u32 = 0x0800_0000;
/// Of a datagram that was in pieces.
const APART: u32 = 0x0400_0000;
const INDEX: u32 = 0x03ff_ffff;
/// Ours, of no flow.
const OTHER: u32 = TAG | APART | INDEX;
/// Checked at a veth, for the host: the bridge's hook has nothing to add.
pub const HOST: u32 = OTHER;
/// Let through to a container that is not translated: the bridge's hook has nothing to add.
pub const ROUTED: u32 = OTHER - 2;
/// Translated: the outgoing device's hook has nothing to add.
pub const DONE: u32 = OTHER - 1;
/// A later piece of a datagram, whose first one decides.
pub const PIECE: u32 = OTHER - 3;
/// A piece of a datagram that is whole, on its way back to the hook that it was at first.
pub const BACK: u32 = OTHER - 4;
/// Let out of a network as it is: the outgoing device's hook has nothing to add.
pub const LEAVES: u32 = OTHER - 5;
/// Pieces on their way round: the low octet says where they were going.
const ROUND: u32 = OTHER & !0xffff;

/// Of a flow handed on.
#[inline(always)]
pub(super) const fn flow(index: u32, dir: Direction, apart: bool) -> u32 {
    TAG | (index & INDEX) | if dir == 0 { 0 } else { REPLY } | if apart { APART } else { 0 }
}

/// Of a piece that goes round to where it can be found by `rest`.
#[inline(always)]
pub(super) const fn round(rest: u32) -> u32 {
    ROUND | rest & 0xff
}

/// What [`round`] was told.
#[inline(always)]
pub(super) const fn of_round(mark: u32) -> Option<u32> {
    if mark & !0xff == ROUND {
        Some(mark & 0xff)
    } else {
        None
    }
}

/// Whether what was handed on was in pieces.
#[inline(always)]
pub(super) const fn was_apart(mark: u32) -> bool {
    mark & APART != 0
}

/// Whether it is ours.
#[inline(always)]
#[must_use]
pub const fn is_ours(mark: u32) -> bool {
    mark & MASK == TAG
}

/// The flow handed on, and the packet's direction.
#[inline(always)]
pub(super) const fn handed_on(mark: u32) -> (u32, Direction) {
    (mark & INDEX, (mark & REPLY != 0) as usize)
}
