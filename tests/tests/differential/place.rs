// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where testers sit, and the addresses that both arms have in common.

use std::net::{Ipv4Addr, SocketAddrV4};

/// An address and a port.
pub(crate) type End = (Ipv4Addr, u16);

/// The same as a socket's address.
pub(crate) fn socket(end: End) -> SocketAddrV4 {
    SocketAddrV4::new(end.0, end.1)
}

/// A tester's place: the only device of its namespace that leads to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum At {
    /// Outside: every remote, neighbour or far away.
    Lan,
    /// The first container of network A.
    One,
    /// The second container of network A.
    Two,
    /// The container of network B, whose MTU is smaller.
    Other,
}

/// All places, in the order of their numbers.
pub(crate) const PLACES: [At; 4] = [At::Lan, At::One, At::Two, At::Other];
/// Those in containers.
pub(crate) const CONTAINERS: [At; 3] = [At::One, At::Two, At::Other];

/// The host's address towards the LAN.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 1);
/// What the host has as its gateway.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 2);
/// A neighbour of the host's.
pub(crate) const NEAR: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 50);
/// Another one, which nobody asked.
pub(crate) const STRANGER: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 51);
/// Behind the gateway.
pub(crate) const FAR: Ipv4Addr = Ipv4Addr::new(198, 19, 1, 9);
/// Behind the gateway, by a route of [`NARROW_MTU`].
pub(crate) const NARROW: Ipv4Addr = Ipv4Addr::new(198, 19, 7, 9);
/// The route's, in bytes.
pub(crate) const NARROW_MTU: u16 = 1300;
/// Network B's, in bytes.
pub(crate) const OTHER_MTU: u16 = 1400;
/// The hardware addresses of the host's devices: towards the LAN, networks A and B.
pub(crate) const UPLINK_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
const BRIDGE_MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 2, 1], [2, 0, 0, 0, 3, 1]];

/// A network of Docker's.
pub(crate) struct Net {
    /// Its name and its bridge's.
    pub(crate) name: &'static str,
    /// With its prefix length.
    pub(crate) subnet: &'static str,
    /// The bridge's hardware address.
    pub(crate) mac: [u8; 6],
    /// In bytes.
    pub(crate) mtu: u16,
}

/// Networks A and B.
pub(crate) const NETS: [Net; 2] = [
    Net {
        name: "brA",
        subnet: "172.28.1.0/24",
        mac: BRIDGE_MACS[0],
        mtu: 1500,
    },
    Net {
        name: "brB",
        subnet: "172.28.2.0/24",
        mac: BRIDGE_MACS[1],
        mtu: OTHER_MTU,
    },
];

/// Published ports by container: on the host, and inside; TCP and UDP.
pub(crate) const PUBLISHED: [(At, u16, u16); 4] = [
    (At::One, 8080, 80),
    (At::One, 8443, 8443),
    (At::Two, 8082, 82),
    (At::Other, 9090, 90),
];

impl At {
    /// Its tester's address; on the LAN, that of one of them.
    pub(crate) fn address(self) -> Ipv4Addr {
        match self {
            Self::Lan => NEAR,
            Self::One => Ipv4Addr::new(172, 28, 1, 11),
            Self::Two => Ipv4Addr::new(172, 28, 1, 12),
            Self::Other => Ipv4Addr::new(172, 28, 2, 11),
        }
    }

    /// Its tester's hardware address. On the LAN it is not the device's, so that the kernel there
    /// takes no notice; in containers it is the one that Docker makes of the address.
    pub(crate) fn mac(self) -> [u8; 6] {
        match self {
            Self::Lan => [2, 0, 0, 0, 1, 50],
            Self::One => [2, 0x42, 172, 28, 1, 11],
            Self::Two => [2, 0x42, 172, 28, 1, 12],
            Self::Other => [2, 0x42, 172, 28, 2, 11],
        }
    }

    /// The network of a container.
    pub(crate) fn net(self) -> Option<&'static Net> {
        match self {
            Self::Lan => None,
            Self::One | Self::Two => Some(&NETS[0]),
            Self::Other => Some(&NETS[1]),
        }
    }

    /// The host's hardware address that is seen here.
    pub(crate) fn host_mac(self) -> [u8; 6] {
        self.net().map_or(UPLINK_MAC, |net| net.mac)
    }

    /// Its name, and its container's.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::One => "one",
            Self::Two => "two",
            Self::Other => "other",
        }
    }
}

/// A hardware address as tools write it.
pub(crate) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
