// SPDX-License-Identifier: MIT OR Apache-2.0
//! Packet mark and hash: how a hook passes information about a packet to a later hook on the kernel
//! path.
//!
//! **Which bits belong to the forwarder.** The top four bits of the mark, [`MASK`], and nothing
//! else. They hold one of the eight kinds below. All other bits belong to others and stay unchanged
//! (Tailscale uses 0xff0000, the kubelet 0xc000, wg-quick 0xca6c). Values below 0x8 in the top four
//! bits do not belong to the forwarder either. The index and direction of a packet's flow are
//! stored in the packet's hash (`bpf_set_hash`).
//!
//! **How far they reach.** Within one network namespace: the kernel clears marks between
//! namespaces, so a container cannot set one. Mark and hash survive `ip_forward`, the kernel's
//! reassembly (the datagram has those of its first fragment) and `ip_fragment` (each fragment has
//! those of the datagram), so later fragments of a datagram find their flow.
//!
//! **Who can forge them.** A process on the host can set a mark (`SO_MARK`) but gains nothing: an
//! egress hook reads a mark only from packets that arrived on a device
//! (`Meta::kind`), which a process's own packets did not. A hash that somebody else
//! has changed leads to a flow whose tuple does not match; the packet is then treated as unmarked.

use crate::abi::Direction;

/// The bits of the mark that belong to the forwarder.
pub const MASK: u32 = 0xf000_0000;
/// No mark of the forwarder.
pub const NONE: u32 = 0;
/// Checked at a veth and going to the host: the bridge's hook passes it.
pub const HOST: u32 = 0x9000_0000;
/// Allowed to a container without translation: the bridge's hook passes it.
pub const ROUTED: u32 = 0xa000_0000;
/// Translated: the outgoing device's hook passes it.
pub const DONE: u32 = 0xb000_0000;
/// Passed to the kernel as a packet of a flow: the hash names the flow.
pub const FLOW: u32 = 0xc000_0000;
/// A later fragment of a datagram: the mark of the first fragment decides.
pub const FRAGMENT: u32 = 0xd000_0000;
/// A fragment of a reassembled datagram, on its way back to the hook where it first arrived.
pub const DEFRAGMENTED: u32 = 0xe000_0000;
/// A fragment on its way to the defragmentation loopback: the hash holds what its placeholder
/// destination does not.
pub const DEFRAG_LOOPBACK: u32 = 0xf000_0000;
/// Leaves its network without translation: the outgoing device's hook passes it.
pub const LEAVES: u32 = 0x8000_0000;
/// The bits that [`FLOW`], [`FRAGMENT`], [`DEFRAGMENTED`] and [`DEFRAG_LOOPBACK`] have in common and
/// no other kind has. Only the forwarder translates these packets, partly before the kernel path and partly
/// after it.
pub const UNTRACKED_BITS: u32 = 0xc000_0000;

/// Hash: the packet goes in the reply direction.
const REPLY: u32 = 0x8000_0000;
/// Hash: the packet's datagram arrived in fragments.
const FRAGMENTED: u32 = 0x4000_0000;
/// Hash: the flow's index.
const INDEX: u32 = 0x3fff_ffff;
/// Hash of a fragment on the defragmentation loopback: the low byte holds part of its destination.
const REST: u32 = 0x726f_7500;

/// A mark with the forwarder's bits set to `kind`.
#[inline(always)]
#[must_use]
pub const fn with(mark: u32, kind: u32) -> u32 {
    mark & !MASK | kind
}

/// The forwarder's bits of a mark; [`NONE`] if they hold no kind.
#[inline(always)]
#[must_use]
pub const fn kind(mark: u32) -> u32 {
    if mark >= LEAVES { mark & MASK } else { NONE }
}

/// The hash of a flow's packet that is passed to the kernel.
#[inline(always)]
#[must_use]
pub const fn encode_hash(index: u32, dir: Direction, fragmented: bool) -> u32 {
    index & INDEX | if dir == 0 { 0 } else { REPLY } | if fragmented { FRAGMENTED } else { 0 }
}

/// Whether a packet that was passed to the kernel arrived in fragments.
#[inline(always)]
pub(super) const fn was_fragmented(hash: u32) -> bool {
    hash & FRAGMENTED != 0
}

/// The index of the flow of a packet that was passed to the kernel, and the packet's direction.
#[inline(always)]
pub(super) const fn decode_hash(hash: u32) -> (u32, Direction) {
    (hash & INDEX, (hash & REPLY != 0) as usize)
}

/// The hash of a fragment that is sent to the defragmentation loopback; `rest` is the part of its
/// destination that the placeholder does not hold.
#[inline(always)]
pub(super) const fn defrag_loopback(rest: u32) -> u32 {
    REST | rest & 0xff
}

/// The `rest` that [`defrag_loopback`] stored, if the hash is one of its.
#[inline(always)]
pub(super) const fn decode_defrag_loopback(hash: u32) -> Option<u32> {
    if hash & !0xff == REST {
        Some(hash & 0xff)
    } else {
        None
    }
}
