// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames built by a test, with complete checksums: UDP and TCP over IPv4 in Ethernet.

use std::net::{Ipv4Addr, SocketAddrV4};

const ETHERTYPE: [u8; 2] = [0x08, 0x00];
const TCP: u8 = 6;
const UDP: u8 = 17;

/// The headers of a frame; a test changes what is to be unusual.
#[derive(Debug, Clone)]
pub struct Craft {
    /// Hardware addresses, the destination's first.
    pub macs: [[u8; 6]; 2],
    /// Source address and port.
    pub from: SocketAddrV4,
    /// Destination address and port.
    pub to: SocketAddrV4,
    /// Time to live.
    pub ttl: u8,
    /// IP options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// The header's flags and fragment offset: `0x4000` is don't fragment, `0x2000` more fragments.
    pub fragment: u16,
}

impl Craft {
    /// Returns the usual headers: TTL 64, no options, may be fragmented.
    #[must_use]
    pub fn new(macs: [[u8; 6]; 2], from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Self {
        Self {
            macs,
            from: SocketAddrV4::new(from.0, from.1),
            to: SocketAddrV4::new(to.0, to.1),
            ttl: 64,
            options: Vec::new(),
            fragment: 0,
        }
    }

    /// Returns the same headers with another source port.
    #[must_use]
    pub fn from_port(&self, port: u16) -> Self {
        let mut other = self.clone();
        other.from.set_port(port);
        other
    }

    /// Builds a UDP datagram's frame.
    #[must_use]
    pub fn udp(&self, payload: &[u8]) -> Vec<u8> {
        let length = word(8 + payload.len());
        let header = [
            self.from.port().to_be_bytes(),
            self.to.port().to_be_bytes(),
            length,
            [0; 2],
        ];
        self.frame(UDP, [&header.concat(), payload].concat(), 6)
    }

    /// Builds a TCP segment's frame, without options: flags as in the header's flag byte (SYN is 2,
    /// RST 4, ACK 16).
    #[must_use]
    pub fn tcp(&self, flags: u8, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut header = [self.from.port().to_be_bytes(), self.to.port().to_be_bytes()].concat();
        header.extend(sequence.to_be_bytes());
        header.extend([0, 0, 0, 0, 5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        self.frame(TCP, [&header, payload].concat(), 16)
    }

    /// Puts the headers before a transport's bytes, whose checksum is at `checksum_at`.
    fn frame(&self, protocol: u8, mut transport: Vec<u8>, checksum_at: usize) -> Vec<u8> {
        let words = 5 + self.options.len() / 4;
        let mut ip = vec![0x40 | words as u8, 0];
        ip.extend(word(words * 4 + transport.len()));
        ip.extend([0, 7]);
        ip.extend(self.fragment.to_be_bytes());
        ip.extend([self.ttl, protocol, 0, 0]);
        ip.extend(self.from.ip().octets());
        ip.extend(self.to.ip().octets());
        let pseudo = [&ip[12..20], &[0, protocol], &word(transport.len())].concat();
        ip.extend(&self.options);
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum);
        let sum = checksum(&[&pseudo[..], &transport].concat());
        transport[checksum_at..checksum_at + 2].copy_from_slice(&sum);
        [self.macs.as_flattened(), &ETHERTYPE, &ip, &transport].concat()
    }
}

fn word(length: usize) -> [u8; 2] {
    (length as u16).to_be_bytes()
}

/// Returns the Internet checksum, in wire order.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let pair = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
    let mut sum: u32 = bytes.chunks(2).map(pair).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checksums are finished also over options and odd lengths.
    #[test]
    fn checksums_cover_options_and_odd_lengths() {
        let mut craft = Craft::new(
            [[2; 6], [4; 6]],
            (Ipv4Addr::new(198, 18, 1, 2), 40_000),
            (Ipv4Addr::new(198, 18, 1, 1), 80),
        );
        craft.options = vec![1, 1, 1, 0];
        let frame = craft.udp(b"odd");
        let (ip, udp) = (&frame[14..38], &frame[38..]);
        assert_eq!((ip[0], ip[3], udp.len()), (0x46, 35, 11));
        // The sum over a header with its checksum is zero.
        assert_eq!(checksum(ip), [0, 0]);
        let pseudo = [&ip[12..20], &[0, 17, 0, 11], udp].concat();
        assert_eq!(checksum(&pseudo), [0, 0]);
        let segment = craft.tcp(2, 7, b"");
        let pseudo = [&segment[26..34], &[0, 6, 0, 20], &segment[38..]].concat();
        assert_eq!(checksum(&pseudo), [0, 0]);
    }
}
