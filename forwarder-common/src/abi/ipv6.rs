// SPDX-License-Identifier: MIT OR Apache-2.0
//! Keys and values of the IPv6 maps.

use crate::family::{Be16, Be128};

/// One of the host's own IPv6 addresses.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct HostAddressKey6 {
    /// The address.
    pub addr: Be128,
    /// The device of a link-local address; else 0.
    pub ifindex: u32,
}

/// An IPv6 address of a container.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct OwnerKey6 {
    /// The address: the one that Docker assigned, or the link-local one that follows from the MAC
    /// address.
    pub addr: Be128,
    /// The bridge on which the address is valid.
    pub bridge: u32,
}

/// The IPv6 endpoint behind a veth.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Endpoint6 {
    /// The address that Docker assigned, or [`Be128::ANY`].
    pub addr: Be128,
    /// The container's MAC address, or zeros if it is not known.
    pub mac: [u8; 6],
    /// Zero.
    pub reserved: u16,
}

/// Key of a port published on an IPv6 address of the host: the address and port that a client
/// connects to.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PortKey6 {
    /// The host's address, or any.
    pub addr: Be128,
    /// The host's port.
    pub port: Be16,
    /// IP protocol number, host order.
    pub proto: u16,
}

/// Which clients may use a port published on IPv6. docker-proxy serves the port.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Published6 {
    /// The list of clients that may use the port, or 0 for all.
    pub policy: u32,
    /// The bridges of the networks that the port may lead to, whose lists are checked too; 0 for
    /// none.
    pub bridges: [u32; 2],
}

/// Key of the lists of IPv6 clients: as [`IngressKey`](super::IngressKey).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct IngressKey6 {
    /// The list; 0 for none.
    pub list: u32,
    /// The client.
    pub client: Be128,
}

/// Key of the IPv6 sources that containers may use besides their own: as
/// [`AllowedKey`](super::AllowedKey), without [`allowed::ROUTES`](super::allowed::ROUTES).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct AllowedKey6 {
    /// A container's veth, or a network's bridge.
    pub device: u32,
    /// The source.
    pub source: Be128,
}
