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
const INDEX: u32 = 0x07ff_ffff;
/// Checked at a veth, for the host: the bridge's hook has nothing to add.
pub const HOST: u32 = TAG | INDEX;
/// Let through to a container that is not translated: the bridge's hook has nothing to add.
pub const ROUTED: u32 = TAG | (INDEX - 2);
/// Translated: the outgoing device's hook has nothing to add.
pub const DONE: u32 = TAG | (INDEX - 1);

/// Of a flow handed on.
#[inline(always)]
pub(super) const fn flow(index: u32, dir: Direction) -> u32 {
    TAG | (index & INDEX) | if dir == 0 { 0 } else { REPLY }
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
