// SPDX-License-Identifier: MIT OR Apache-2.0
//! IPv4 packets, byte by byte: built by hand with correct checksums, and checked as a receiver
//! does.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context as _, Result, ensure};

use crate::capture::{Capture, Frame};

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// EtherType of IPv4.
const IPV4: [u8; 2] = [0x08, 0x00];
/// Bytes of an IPv4 header without options.
const HEADER: usize = 20;
/// Bytes of a UDP or an ICMP header.
const SHORT: usize = 8;

/// Protocol numbers.
pub mod proto {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// Returns the checksum of an SCTP packet, as it is in its header: a CRC32c, byte by byte, over
/// everything but itself.
#[must_use]
pub fn sctp_checksum(transport: &[u8]) -> [u8; 4] {
    let octets = [&transport[..8], &[0; 4], &transport[12..]].concat();
    let crc = octets.into_iter().fold(!0_u32, |crc, octet| {
        (0..8).fold(crc ^ u32::from(octet), |crc, _| {
            crc >> 1 ^ if crc & 1 == 0 { 0 } else { 0x82f6_3b78 }
        })
    });
    (!crc).to_le_bytes()
}

/// An IPv4 packet, beginning with its network header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet(Vec<u8>);

impl Packet {
    /// Builds a packet of any protocol; TTL 64, no options.
    #[must_use]
    pub fn new(protocol: u8, from: Ipv4Addr, to: Ipv4Addr, transport: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[0] = 0x45;
        bytes[4..6].copy_from_slice(&[0x12, 0x34]);
        bytes[8..10].copy_from_slice(&[64, protocol]);
        bytes[12..16].copy_from_slice(&from.octets());
        bytes[16..20].copy_from_slice(&to.octets());
        bytes.extend(transport);
        Self(bytes).sealed()
    }

    /// Builds a UDP datagram.
    #[must_use]
    pub fn udp(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Self {
        let length = (SHORT + payload.len()) as u16;
        let words = [from.port(), to.port(), length, 0];
        let mut transport: Vec<u8> = words.into_iter().flat_map(u16::to_be_bytes).collect();
        transport.extend(payload);
        Self::new(proto::UDP, *from.ip(), *to.ip(), &transport)
    }

    /// Builds an SCTP packet of one chunk, by its type and content.
    #[must_use]
    pub fn sctp(from: SocketAddrV4, to: SocketAddrV4, kind: u8, content: &[u8]) -> Self {
        let mut transport = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
        let length = (4 + content.len() as u16).to_be_bytes();
        transport.extend([1, 2, 3, 4, 0, 0, 0, 0, kind, 0, length[0], length[1]]);
        transport.extend(content);
        Self::new(proto::SCTP, *from.ip(), *to.ip(), &transport)
    }

    /// Builds a TCP segment without payload.
    #[must_use]
    pub fn tcp(from: SocketAddrV4, to: SocketAddrV4, flags: u8) -> Self {
        Self::segment(from, to, flags, (1, 0), b"")
    }

    /// Builds a TCP segment with these numbers: sequence and acknowledgement.
    #[must_use]
    pub fn segment(
        from: SocketAddrV4,
        to: SocketAddrV4,
        flags: u8,
        (seq, ack): (u32, u32),
        payload: &[u8],
    ) -> Self {
        let mut transport = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
        transport.extend(seq.to_be_bytes());
        transport.extend(ack.to_be_bytes());
        transport.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        transport.extend(payload);
        Self::new(proto::TCP, *from.ip(), *to.ip(), &transport)
    }

    /// Returns a TCP segment's flags, sequence number and acknowledgement number.
    #[must_use]
    pub fn numbers(&self) -> Option<(u8, u32, u32)> {
        let transport = self.transport();
        let word = |at: usize| {
            Some(u32::from_be_bytes(
                transport.get(at..at + 4)?.try_into().ok()?,
            ))
        };
        let flags = *transport.get(13)?;
        (self.protocol() == proto::TCP).then_some((flags, word(4)?, word(8)?))
    }

    /// Builds an ICMP message: type, code, and the bytes after the checksum.
    #[must_use]
    pub fn icmp(from: Ipv4Addr, to: Ipv4Addr, kind: [u8; 2], body: &[u8]) -> Self {
        let transport = [&kind, &[0, 0], body].concat();
        Self::new(proto::ICMP, from, to, &transport)
    }

    /// Builds an ICMP error (type and code) that quotes a packet; `word` is between the checksum
    /// and the quote.
    #[must_use]
    pub fn error(from: Ipv4Addr, to: Ipv4Addr, kind: [u8; 2], word: u32, quoted: &[u8]) -> Self {
        Self::icmp(from, to, kind, &[&word.to_be_bytes(), quoted].concat())
    }

    /// Sets another time to live.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.0[8] = ttl;
        self.sealed()
    }

    /// Sets another identification, which distinguishes its fragments from others.
    #[must_use]
    pub fn numbered(mut self, number: u16) -> Self {
        self.put(4, number);
        self.sealed()
    }

    /// Sets the flag don't fragment.
    #[must_use]
    pub fn dont_fragment(mut self) -> Self {
        self.0[6] |= 0x40;
        self.sealed()
    }

    /// Adds IP options, a multiple of four bytes.
    #[must_use]
    pub fn options(mut self, options: &[u8]) -> Self {
        self.0.splice(HEADER..HEADER, options.iter().copied());
        self.0[0] += (options.len() / 4) as u8;
        self.sealed()
    }

    /// Corrects the length and all checksums.
    fn sealed(mut self) -> Self {
        let length = self.0.len() as u16;
        self.0[2..4].copy_from_slice(&length.to_be_bytes());
        let header = self.header();
        self.put(10, 0);
        self.put(10, !sum(&[&self.0[..header]]));
        if let Some(at) = self.checksum_at() {
            self.put(header + at, 0);
            let checksum = !self.transport_sum();
            // In UDP, zero means that there is no checksum.
            let none = checksum == 0 && self.protocol() == proto::UDP;
            self.put(header + at, if none { 0xffff } else { checksum });
        }
        if let Some(crc) = self.crc() {
            self.0[header + 8..header + 12].copy_from_slice(&crc);
        }
        self
    }

    /// Returns the packet in an Ethernet frame.
    #[must_use]
    pub fn frame(&self, to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
        [&to, &from, &IPV4[..], &self.0].concat()
    }

    /// Returns the packet in a frame: `None` if it has another protocol, or is tagged or truncated.
    #[must_use]
    pub fn of(frame: &Frame) -> Option<Self> {
        if frame.bytes.get(12..ETHERNET)? == IPV4 {
            Self::read(&frame.bytes[ETHERNET..])
        } else {
            None
        }
    }

    /// Returns the packet in a frame without link header; bytes after its end are dropped.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let length = usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]));
        let packet = Self(bytes.get(..length)?.to_vec());
        (bytes[0] >> 4 == 4 && length >= packet.header()).then_some(packet)
    }

    /// Returns all its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the bytes after its network header.
    #[must_use]
    pub fn transport(&self) -> &[u8] {
        &self.0[self.header()..]
    }

    /// Returns its source address.
    #[must_use]
    pub fn source(&self) -> Ipv4Addr {
        self.address(12)
    }

    /// Returns its destination address.
    #[must_use]
    pub fn destination(&self) -> Ipv4Addr {
        self.address(16)
    }

    /// Returns source and destination with the ports of TCP or UDP; 0 for truncated ports.
    #[must_use]
    pub fn ends(&self) -> (SocketAddrV4, SocketAddrV4) {
        let transport = self.transport();
        let port = |at: usize| match transport.get(at..at + 2) {
            Some(octets) => u16::from_be_bytes([octets[0], octets[1]]),
            None => 0,
        };
        (
            SocketAddrV4::new(self.source(), port(0)),
            SocketAddrV4::new(self.destination(), port(2)),
        )
    }

    /// Returns its protocol number.
    #[must_use]
    pub fn protocol(&self) -> u8 {
        self.0[9]
    }

    /// Returns its time to live.
    #[must_use]
    pub fn hops(&self) -> u8 {
        self.0[8]
    }

    /// Whether it is a fragment.
    #[must_use]
    pub fn is_fragment(&self) -> bool {
        self.word(6) & 0x3fff != 0
    }

    /// Returns the datagram that this packet and the fragments among `packets` with its addresses
    /// and identification make up; `None` while a fragment is missing.
    #[must_use]
    pub fn whole(&self, packets: &[Self]) -> Option<Self> {
        let own = |packet: &&Self| {
            packet.is_fragment()
                && packet.0[4..6] == self.0[4..6]
                && packet.0[12..20] == self.0[12..20]
        };
        let mut parts: Vec<_> = packets.iter().filter(own).collect();
        parts.sort_by_key(|part| part.word(6) & 0x1fff);
        let (first, last) = (parts.first()?, parts.last()?);
        let mut whole = first.0[..first.header()].to_vec();
        for part in &parts {
            let at = usize::from(part.word(6) & 0x1fff) * 8;
            (at + first.header() == whole.len()).then(|| whole.extend(part.transport()))?;
        }
        let mut whole = Self(whole);
        whole.put(2, whole.0.len() as u16);
        whole.put(6, first.word(6) & 0x4000);
        whole.put(10, 0);
        whole.put(10, !sum(&[&whole.0[..whole.header()]]));
        (last.word(6) & 0x2000 == 0).then_some(whole)
    }

    /// Splits it into fragments with this number of payload bytes each, a multiple of eight; in
    /// order.
    #[must_use]
    pub fn cut(&self, octets: usize) -> Vec<Self> {
        let header = self.header();
        let pieces = self.0[header..].chunks(octets);
        let last = pieces.len() - 1;
        let piece = |(number, payload): (usize, &[u8])| {
            let more = if number < last { 0x2000 } else { 0 };
            let place = self.word(6) | more | (number * octets / 8) as u16;
            let mut piece = Self([&self.0[..header], payload].concat());
            piece.put(2, piece.0.len() as u16);
            piece.put(6, place);
            piece.put(10, 0);
            piece.put(10, !sum(&[&piece.0[..header]]));
            piece
        };
        pieces.enumerate().map(piece).collect()
    }

    /// Returns type and code if it is an ICMP error.
    #[must_use]
    pub fn error_kind(&self) -> Option<[u8; 2]> {
        let transport = self.transport();
        let first = (self.protocol() == proto::ICMP && transport.len() >= SHORT + HEADER)
            .then(|| [transport[0], transport[1]])?;
        matches!(first[0], 3 | 4 | 5 | 11 | 12).then_some(first)
    }

    /// Returns the packet that it quotes if it is an ICMP error: the beginning of a packet,
    /// truncated somewhere.
    #[must_use]
    pub fn quoted(&self) -> Option<Self> {
        self.error_kind()?;
        Some(Self(self.transport()[SHORT..].to_vec()))
    }

    /// Checks what a receiver checks: the header's checksum, that of TCP, UDP or ICMP if the packet
    /// is no fragment, and both of a quoted packet as far as it reaches.
    ///
    /// # Errors
    /// The first checksum that is wrong.
    pub fn check(&self) -> Result<()> {
        let header = self.0.get(..self.header()).context("the header is cut")?;
        ensure!(sum(&[header]) == 0xffff, "IP checksum of {self:?}");
        let whole = usize::from(self.word(2)) == self.0.len();
        if let Some(at) = self.checksum_at().filter(|_| whole && !self.is_fragment()) {
            let none = self.protocol() == proto::UDP && self.word(header.len() + at) == 0;
            ensure!(
                none || self.transport_sum() == 0xffff,
                "transport checksum of {self:?}"
            );
        }
        if let Some(crc) = self.crc().filter(|_| whole && !self.is_fragment()) {
            let right = self.transport()[8..12] == crc;
            ensure!(right, "SCTP's checksum of {self:?}");
        }
        self.quoted()
            .map_or(Ok(()), |quoted| quoted.check().context("quoted"))
    }

    fn header(&self) -> usize {
        usize::from(self.0[0] & 0xf) * 4
    }

    fn address(&self, at: usize) -> Ipv4Addr {
        Ipv4Addr::new(self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3])
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.0[at], self.0[at + 1]])
    }

    fn put(&mut self, at: usize, word: u16) {
        self.0[at..at + 2].copy_from_slice(&word.to_be_bytes());
    }

    /// Returns the offset of the transport's checksum in it.
    fn checksum_at(&self) -> Option<usize> {
        let (at, header) = match self.protocol() {
            proto::ICMP => (2, SHORT),
            proto::TCP => (16, HEADER),
            proto::UDP => (6, SHORT),
            _ => return None,
        };
        (self.transport().len() >= header).then_some(at)
    }

    /// Returns the correct checksum of SCTP (RFC 9260 section 6.8).
    fn crc(&self) -> Option<[u8; 4]> {
        let transport = self.transport();
        let sctp = self.protocol() == proto::SCTP && transport.len() >= 12;
        sctp.then(|| sctp_checksum(transport))
    }

    fn transport_sum(&self) -> u16 {
        let transport = self.transport();
        if self.protocol() == proto::ICMP {
            return sum(&[transport]);
        }
        let length = (transport.len() as u16).to_be_bytes();
        sum(&[&self.0[12..20], &[0, self.protocol()], &length, transport])
    }
}

/// Returns the Internet checksum's sum of parts; all but the last have even length.
pub(crate) fn sum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Whether Docker gives an address to containers in these tests.
#[must_use]
pub fn is_private(address: Ipv4Addr) -> bool {
    address.octets()[0] == 172 && address.octets()[1] & 0xf0 == 16
}

impl Capture {
    /// Returns all packets that arrived at the device until now, or that its own namespace sent.
    ///
    /// # Errors
    /// The device has gone.
    pub fn packets(&self, outgoing: bool) -> Result<Vec<Packet>> {
        let frames = self.frames()?;
        let wanted = frames.iter().filter(|frame| frame.outgoing == outgoing);
        Ok(wanted.filter_map(|frame| self.packet(frame)).collect())
    }

    /// Checks what a host's neighbour expects: no packet that arrived has a container's source, not
    /// even as a quote's destination if the quoted packet was for a container; and all checksums
    /// are correct.
    ///
    /// Checksums of the host's own packets are complete only if its device does not offload them.
    ///
    /// # Errors
    /// The first packet that is wrong.
    pub fn audit(&self, checksums: bool) -> Result<()> {
        for packet in self.packets(false)? {
            let mut addresses = vec![packet.source(), packet.destination()];
            if let Some(quoted) = packet.quoted() {
                addresses.extend([quoted.source(), quoted.destination()]);
            }
            let leak = addresses.iter().any(|address| is_private(*address));
            ensure!(!leak, "a container's address leaves in {packet:?}");
            if checksums {
                packet.check()?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 18, 1, 1), 1000);
    const B: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(172, 17, 0, 2), 80);

    /// A packet that is made here has valid checksums, and one wrong byte in it is detected.
    #[test]
    fn one_wrong_byte_is_detected() {
        let udp = Packet::udp(A, B, b"odd").options(&[1, 1, 1, 0]).ttl(1);
        let error = Packet::error(*B.ip(), *A.ip(), [11, 0], 0, udp.bytes());
        for packet in [&udp, &Packet::tcp(A, B, 2), &error] {
            packet.check().unwrap();
            for at in 0..packet.bytes().len() {
                let mut wrong = packet.clone();
                wrong.0[at] ^= 0x10;
                // Version and header length say which bytes to check at all.
                assert!(
                    at == 0 || at == 2 || at == 3 || wrong.check().is_err(),
                    "{at}"
                );
            }
        }
    }

    /// Fragments add up to the packet that was cut, unless one is missing.
    #[test]
    fn fragments_add_up_unless_one_is_missing() {
        let all = Packet::udp(A, B, &[7; 100]).options(&[1, 1, 1, 0]);
        let cut = |from: usize, to: usize, more: u16| {
            let mut bytes = all.0[..24].to_vec();
            bytes.extend(&all.transport()[from..to]);
            let mut part = Packet(bytes);
            part.put(6, more << 13 | (from / 8) as u16);
            part
        };
        let parts = [cut(64, 108, 0), cut(0, 32, 1), cut(32, 64, 1)];
        assert_eq!(all.whole(&parts).as_ref(), Some(&all));
        for missing in 0..3 {
            let mut left = parts.to_vec();
            left.remove(missing);
            assert_eq!(all.whole(&left), None, "{missing}");
        }
        assert_eq!(all.clone().numbered(7).whole(&parts), None);
    }

    #[test]
    fn crafted_packet_is_read_back() {
        let udp = Packet::udp(A, B, b"odd").options(&[1, 1, 1, 0]);
        assert_eq!(
            (udp.ends(), udp.hops(), udp.is_fragment()),
            ((A, B), 64, false)
        );
        let error = Packet::error(*B.ip(), *A.ip(), [3, 4], 1300, &udp.bytes()[..32]);
        assert_eq!(error.error_kind(), Some([3, 4]));
        assert_eq!(error.quoted().unwrap().ends(), (A, B));
        error.check().unwrap();
        let frame = Frame {
            bytes: [&udp.frame([1; 6], [2; 6])[..], &[0; 9]].concat(),
            outgoing: false,
            at: std::time::SystemTime::UNIX_EPOCH,
        };
        assert_eq!(Packet::of(&frame), Some(udp));
    }
}
