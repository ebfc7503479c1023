// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a hook knows about a packet besides the packet's bytes.

use crate::mark;

/// What a hook knows about a packet besides the packet's bytes.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    /// The device that the hook is attached to.
    pub ifindex: u32,
    /// Egress hooks: the device on which the packet arrived; 0 for packets that the host itself
    /// sends.
    pub ingress_ifindex: u32,
    /// Offset of the network header: 14 with an Ethernet header, 0 without.
    pub l3: u8,
    /// Transport payload per segment of a GSO packet; 0 for other packets.
    pub segment: u32,
    /// The socket buffer's mark.
    pub mark: u32,
    /// The socket buffer's hash.
    pub hash: u32,
}

impl Meta {
    /// The mark that an earlier hook of the forwarder set on a packet that now leaves. A packet
    /// that the host itself sends has passed no earlier hook, so its mark was set by a process and
    /// is ignored.
    #[inline(always)]
    pub(crate) fn kind(&self) -> u32 {
        if self.ingress_ifindex == 0 {
            mark::NONE
        } else {
            mark::kind(self.mark)
        }
    }
}

/// On which side of the forwarder a hook is attached.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// An outside device.
    Outside,
    /// The host's end of a container's veth pair.
    Veth,
    /// The bridge, for containers whose veth has no hook.
    Bridge,
    /// The bridge, for fragments of a container's datagram that return from the defragmentation
    /// loopback. The container's veth checked them when they first arrived.
    Defragmented,
}
