// SPDX-License-Identifier: MIT OR Apache-2.0
//! IPv6 packets with right checksums: UDP, TCP, and the messages of Neighbor Discovery.

use std::net::Ipv6Addr;

use crate::checksum::sum;
use crate::packet::proto;

/// An IPv6 packet without extension headers.
#[derive(Debug, Clone)]
pub struct Packet6 {
    /// The source.
    pub from: Ipv6Addr,
    /// The destination.
    pub to: Ipv6Addr,
    /// The next header's protocol number.
    pub protocol: u8,
    /// The bytes after the header, with a complete checksum.
    pub transport: Vec<u8>,
}

/// ICMPv6's protocol number.
const ICMPV6: u8 = 58;

impl Packet6 {
    /// Builds a UDP datagram.
    #[must_use]
    pub fn udp(from: (Ipv6Addr, u16), to: (Ipv6Addr, u16), payload: &[u8]) -> Self {
        let length = (8 + payload.len()) as u16;
        let words = [from.1, to.1, length, 0];
        let mut transport: Vec<u8> = words.into_iter().flat_map(u16::to_be_bytes).collect();
        transport.extend(payload);
        Self::sealed(from.0, to.0, proto::UDP, transport, 6)
    }

    /// Builds a TCP segment without payload.
    #[must_use]
    pub fn tcp(from: (Ipv6Addr, u16), to: (Ipv6Addr, u16), flags: u8) -> Self {
        let mut transport = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
        transport.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        Self::sealed(from.0, to.0, proto::TCP, transport, 16)
    }

    /// Builds an ICMPv6 message: type, code, and the bytes after the checksum.
    #[must_use]
    pub fn icmp(from: Ipv6Addr, to: Ipv6Addr, kind: [u8; 2], body: &[u8]) -> Self {
        let transport = [&kind, &[0, 0], body].concat();
        Self::sealed(from, to, ICMPV6, transport, 2)
    }

    /// Asks who has an address (RFC 4861), with the sender's hardware address as option.
    #[must_use]
    pub fn solicit(from: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr, mac: [u8; 6]) -> Self {
        let body = [&[0; 4][..], &target.octets(), &[1, 1], &mac].concat();
        Self::icmp(from, to, [135, 0], &body)
    }

    /// Says that an address is at a hardware address, overriding what is known.
    #[must_use]
    pub fn advertise(from: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr, mac: [u8; 6]) -> Self {
        let body = [&[0x60, 0, 0, 0][..], &target.octets(), &[2, 1], &mac].concat();
        Self::icmp(from, to, [136, 0], &body)
    }

    /// Says that the sender is a router, for half an hour.
    #[must_use]
    pub fn router(from: Ipv6Addr, to: Ipv6Addr, mac: [u8; 6]) -> Self {
        let head = [64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1];
        Self::icmp(from, to, [134, 0], &[&head[..], &mac].concat())
    }

    /// Says that `destination` is reached through `target`.
    #[must_use]
    pub fn redirect(from: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr, destination: Ipv6Addr) -> Self {
        let body = [&[0; 4][..], &target.octets(), &destination.octets()].concat();
        Self::icmp(from, to, [137, 0], &body)
    }

    fn sealed(
        from: Ipv6Addr,
        to: Ipv6Addr,
        protocol: u8,
        mut transport: Vec<u8>,
        checksum_at: usize,
    ) -> Self {
        let length = (transport.len() as u32).to_be_bytes();
        let pseudo = [
            &from.octets()[..],
            &to.octets(),
            &length,
            &[0, 0, 0, protocol],
        ]
        .concat();
        let checksum = !sum(&[&pseudo, &transport]);
        transport[checksum_at..checksum_at + 2].copy_from_slice(&checksum.to_be_bytes());
        Self {
            from,
            to,
            protocol,
            transport,
        }
    }

    /// Returns its bytes. The hop limit is 255, as Neighbor Discovery requires.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let length = (self.transport.len() as u16).to_be_bytes();
        let head = [0x60, 0, 0, 0, length[0], length[1], self.protocol, 255];
        let ends = [self.from.octets(), self.to.octets()].concat();
        [&head[..], &ends, &self.transport].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbour_discovery_checksums_are_finished() {
        let [from, to]: [Ipv6Addr; 2] = [1, 2].map(|n| Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, n));
        for packet in [
            Packet6::solicit(from, to, to, [4; 6]),
            Packet6::advertise(from, to, from, [4; 6]),
            Packet6::router(from, to, [4; 6]),
            Packet6::redirect(from, to, from, to),
            Packet6::udp((from, 1), (to, 2), b"odd"),
            Packet6::tcp((from, 1), (to, 2), 2),
        ] {
            let length = (packet.transport.len() as u32).to_be_bytes();
            let tail = [&length[..], &[0, 0, 0, packet.protocol]].concat();
            let pseudo = [&from.octets()[..], &to.octets(), &tail].concat();
            assert_eq!(sum(&[&pseudo, &packet.transport]), 0xffff, "{packet:?}");
        }
    }
}
