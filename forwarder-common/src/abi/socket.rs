// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host's sockets that were redirected to containers.

use crate::family::{Be16, Wide};

/// One end of a connection, as a socket names it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Peer {
    /// The address; an IPv4 address is mapped (`::ffff:0:0/96`).
    pub addr: Wide,
    /// The port.
    pub port: Be16,
    /// IP protocol number, host order.
    pub proto: u16,
}

/// A socket that was redirected to a container. An unconnected socket may have several peers.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SocketKey {
    /// The socket's cookie, which the kernel never reuses.
    pub cookie: u64,
    /// The container that the socket was redirected to.
    pub peer: Peer,
    /// Zero.
    pub reserved: u32,
}
