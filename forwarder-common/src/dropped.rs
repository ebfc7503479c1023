// SPDX-License-Identifier: MIT OR Apache-2.0
//! Dropped packets, as somebody who watches sees them.

use crate::clock::Ticks;

/// The number of bytes of a packet that are shown at most: all headers that say whose it is.
pub const SHOWN: usize = 96;

/// The lengths of which the longest that the packet has is shown. The kernel copies all of a length
/// or nothing.
pub const LENGTHS: [u32; 8] = [SHOWN as u32, 74, 60, 54, 42, 34, 28, 20];

/// Set in [`DroppedPacket::vlan`] if the packet has a tag.
pub const TAGGED: u32 = 1 << 16;

/// A dropped packet.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DroppedPacket {
    /// When it was dropped.
    pub at: Ticks,
    /// The index of the device at which it was dropped.
    pub ifindex: u32,
    /// The number of its [`Reason`](crate::reason::Reason).
    pub reason: u32,
    /// Its length in bytes, link header included.
    pub len: u32,
    /// Offset of the network header: 0 on a device without Ethernet.
    pub l3: u32,
    /// The control information of its VLAN tag with [`TAGGED`], or 0 if it has none.
    pub vlan: u32,
    /// The number of bytes that are shown; 0 for a packet that is shorter than all of [`LENGTHS`].
    pub shown: u32,
    /// Its first bytes. Those behind `shown` have no meaning.
    pub bytes: [u8; SHOWN],
}

/// No padding.
const _: () = assert!(size_of::<DroppedPacket>() == 7 * 4 + SHOWN);
