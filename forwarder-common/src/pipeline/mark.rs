// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a packet carries on the kernel's path from one of our hooks to the next: our bits of its
//! mark, and its hash.
//!
//! **Which bits are ours.** The top four of the mark, [`MASK`], and nothing else: they say what one
//! hook tells the next (one of the eight kinds below). Every other bit is others' and stays as it is
//! (Tailscale has 0xff0000, the kubelet 0xc000, wg-quick 0xca6c). Values below 0x8 in our four bits
//! are not ours either. The index of a packet's flow and its direction travel in the packet's hash
//! (`bpf_set_hash`).
//!
//! **How far they go.** Not out of the network namespace: the kernel clears marks between
//! namespaces, so that a container cannot set one. Both survive `ip_forward`, the kernel's
//! reassembly (the datagram has what its first fragment had) and `ip_fragment` (each fragment has what the
//! datagram had), so that the tails of a datagram find their flow.
//!
//! **Who can set them.** A process of the host can (`SO_MARK`), and gains nothing: a hook on the way
//! out heeds a mark only on what came by a device ([`Meta::kind`](super::Meta)), which a process's
//! own packets have not. A hash that somebody has changed leads to a flow whose tuple does not
//! match, and then the packet is as good as unmarked.

use crate::flow::Direction;

/// Our bits of the mark.
pub const MASK: u32 = 0xf000_0000;
/// Nothing of ours.
pub const NONE: u32 = 0;
/// Checked at a veth, for the host: the bridge's hook has nothing to add.
pub const HOST: u32 = 0x9000_0000;
/// Let through to a container that is not translated: the bridge's hook has nothing to add.
pub const ROUTED: u32 = 0xa000_0000;
/// Translated: the outgoing device's hook has nothing to add.
pub const DONE: u32 = 0xb000_0000;
/// Of a flow, handed on: the hash leads to it.
pub const FLOW: u32 = 0xc000_0000;
/// A later fragment of a datagram, whose first one decides.
pub const PIECE: u32 = 0xd000_0000;
/// A fragment of a datagram that is whole, on its way back to the hook that it was at first.
pub const BACK: u32 = 0xe000_0000;
/// Fragments on their way round: the hash says where they were going.
pub const DEFRAG_LOOPBACK: u32 = 0xf000_0000;
/// Let out of a network as it is: the outgoing device's hook has nothing to add.
pub const LEAVES: u32 = 0x8000_0000;
/// What [`FLOW`], [`PIECE`], [`BACK`] and [`DEFRAG_LOOPBACK`] have in common, and no other kind: their packets
/// are translated by us alone, in part before the kernel's path and in part behind it.
pub const OURS_ALONE: u32 = 0xc000_0000;

/// Hash: the packet is an answer.
const REPLY: u32 = 0x8000_0000;
/// Hash: of a datagram that was in fragments.
const APART: u32 = 0x4000_0000;
/// Hash: the flow's index.
const INDEX: u32 = 0x3fff_ffff;
/// Hash of what goes round: a byte of an address below this.
const REST: u32 = 0x726f_7500;

/// A mark with our bits set to `kind`.
#[inline(always)]
#[must_use]
pub const fn with(mark: u32, kind: u32) -> u32 {
    mark & !MASK | kind
}

/// Our bits of a mark, [`NONE`] if they say nothing.
#[inline(always)]
#[must_use]
pub const fn kind(mark: u32) -> u32 {
    if mark >= LEAVES { mark & MASK } else { NONE }
}

/// The hash of a flow's packet that is handed on.
#[inline(always)]
#[must_use]
pub const fn encode_hash(index: u32, dir: Direction, apart: bool) -> u32 {
    index & INDEX | if dir == 0 { 0 } else { REPLY } | if apart { APART } else { 0 }
}

/// Whether what was handed on was in fragments.
#[inline(always)]
pub(super) const fn was_apart(hash: u32) -> bool {
    hash & APART != 0
}

/// The flow handed on, and the packet's direction.
#[inline(always)]
pub(super) const fn decode_hash(hash: u32) -> (u32, Direction) {
    (hash & INDEX, (hash & REPLY != 0) as usize)
}

/// The hash of a fragment that goes round to where it can be found by `rest`.
#[inline(always)]
pub(super) const fn defrag_loopback(rest: u32) -> u32 {
    REST | rest & 0xff
}

/// What [`defrag_loopback`] was told.
#[inline(always)]
pub(super) const fn of_round(hash: u32) -> Option<u32> {
    if hash & !0xff == REST {
        Some(hash & 0xff)
    } else {
        None
    }
}
