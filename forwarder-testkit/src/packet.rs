// SPDX-License-Identifier: MIT OR Apache-2.0
//! IPv4 packets: built with right checksums, changed field by field, cut, put together, and checked
//! as a receiver does. A builder of a crate writes well-formed packets only; half of what tests send
//! is none.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;

use crate::checksum::{self, sum};

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// EtherType of IPv4.
const IPV4: [u8; 2] = [0x08, 0x00];
/// Bytes of an IPv4 header without options, and of a TCP header.
const HEADER: usize = 20;
/// Bytes of a UDP or an ICMP header.
const SHORT: usize = 8;
/// Bytes of an SCTP header.
const SCTP_HEADER: usize = 12;
/// The fragment word's flags and its offset, which counts eight bytes.
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;

/// Protocol numbers, as they are in a header.
pub mod proto {
    use forwarder_common::wire::proto;

    /// ICMP.
    pub const ICMP: u8 = proto::ICMP as u8;
    /// TCP.
    pub const TCP: u8 = proto::TCP as u8;
    /// UDP.
    pub const UDP: u8 = proto::UDP as u8;
    /// SCTP.
    pub const SCTP: u8 = proto::SCTP as u8;
}

/// What a TCP segment says beside its ports.
#[derive(Debug, Clone)]
pub struct Segment {
    /// The flag byte.
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Window.
    pub window: u16,
    /// Options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// Payload.
    pub payload: Vec<u8>,
}

impl Default for Segment {
    fn default() -> Self {
        Self {
            flags: 0,
            seq: 0,
            ack: 0,
            window: 0xffff,
            options: Vec::new(),
            payload: Vec::new(),
        }
    }
}

impl Segment {
    /// The usual header: flags, sequence and acknowledgement number, payload.
    #[must_use]
    pub fn new(flags: u8, (seq, ack): (u32, u32), payload: &[u8]) -> Self {
        Self {
            flags,
            seq,
            ack,
            payload: payload.to_vec(),
            ..Self::default()
        }
    }
}

/// An SCTP packet's tag and its one chunk.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// The packet's verification tag.
    pub tag: u32,
    /// The chunk's type.
    pub kind: u8,
    /// What it holds.
    pub content: Vec<u8>,
}

impl Chunk {
    /// A chunk in a packet with any tag.
    #[must_use]
    pub fn new(kind: u8, content: &[u8]) -> Self {
        Self {
            tag: 0x0102_0304,
            kind,
            content: content.to_vec(),
        }
    }
}

/// An IPv4 packet, beginning with its network header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet(Vec<u8>);

impl Packet {
    /// Builds a packet of any protocol, with the transport's checksum if it is known here; TTL 64,
    /// no options, may be fragmented.
    #[must_use]
    pub fn new(protocol: u8, from: Ipv4Addr, to: Ipv4Addr, transport: &[u8]) -> Self {
        let mut packet = Self::unsealed(protocol, from, to, transport);
        seal(&mut packet.0);
        packet
    }

    /// Builds the same with the transport's bytes as they are: a fragment, or anything invalid.
    #[must_use]
    pub fn unsealed(protocol: u8, from: Ipv4Addr, to: Ipv4Addr, transport: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[0] = 0x45;
        bytes[4..6].copy_from_slice(&[0x12, 0x34]);
        bytes[8..10].copy_from_slice(&[64, protocol]);
        bytes[12..16].copy_from_slice(&from.octets());
        bytes[16..20].copy_from_slice(&to.octets());
        bytes.extend(transport);
        Self(bytes).resealed()
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

    /// Builds a TCP segment without payload.
    #[must_use]
    pub fn tcp(from: SocketAddrV4, to: SocketAddrV4, flags: u8) -> Self {
        Self::segment(from, to, &Segment::new(flags, (1, 0), b""))
    }

    /// Builds any TCP segment.
    #[must_use]
    pub fn segment(from: SocketAddrV4, to: SocketAddrV4, segment: &Segment) -> Self {
        let mut transport = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
        transport.extend(segment.seq.to_be_bytes());
        transport.extend(segment.ack.to_be_bytes());
        let words = (HEADER + segment.options.len()) / 4;
        transport.extend([(words << 4) as u8, segment.flags]);
        transport.extend(segment.window.to_be_bytes());
        transport.extend([0; 4]);
        transport.extend(&segment.options);
        transport.extend(&segment.payload);
        Self::new(proto::TCP, *from.ip(), *to.ip(), &transport)
    }

    /// Builds an SCTP packet.
    #[must_use]
    pub fn sctp(from: SocketAddrV4, to: SocketAddrV4, chunk: &Chunk) -> Self {
        let mut transport = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
        transport.extend(chunk.tag.to_be_bytes());
        let length = (4 + chunk.content.len() as u16).to_be_bytes();
        transport.extend([0, 0, 0, 0, chunk.kind, 0, length[0], length[1]]);
        transport.extend(&chunk.content);
        Self::new(proto::SCTP, *from.ip(), *to.ip(), &transport)
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

    /// Sets DSCP and ECN.
    #[must_use]
    pub fn tos(mut self, tos: u8) -> Self {
        self.0[1] = tos;
        self.resealed()
    }

    /// Sets another time to live.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.0[8] = ttl;
        self.resealed()
    }

    /// Sets another identification, which distinguishes its fragments from others.
    #[must_use]
    pub fn numbered(mut self, number: u16) -> Self {
        self.put(4, number);
        self.resealed()
    }

    /// Sets the flag don't fragment.
    #[must_use]
    pub fn dont_fragment(self) -> Self {
        self.fragment(DONT_FRAGMENT)
    }

    /// Sets the fragment word: flags and offset.
    #[must_use]
    pub fn fragment(mut self, word: u16) -> Self {
        self.put(6, word);
        self.resealed()
    }

    /// Adds IP options, a multiple of four bytes.
    #[must_use]
    pub fn options(mut self, options: &[u8]) -> Self {
        self.0.splice(HEADER..HEADER, options.iter().copied());
        self.0[0] += (options.len() / 4) as u8;
        self.resealed()
    }

    /// Leaves the transport's checksum out: none in UDP, and in SCTP one that the device is to
    /// compute.
    #[must_use]
    pub fn unsummed(mut self) -> Self {
        if let Some(field) = transport_checksum(&self.0) {
            self.0[field].fill(0);
        }
        self
    }

    /// Damages a byte, and corrects nothing.
    #[must_use]
    pub fn damaged(mut self, at: usize) -> Self {
        self.0[at] ^= 0x55;
        self
    }

    /// Corrects the header's length and checksum.
    fn resealed(mut self) -> Self {
        self.put(2, self.0.len() as u16);
        seal_header(&mut self.0);
        self
    }

    /// Returns the packet in an Ethernet frame.
    #[must_use]
    pub fn frame(&self, to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
        [&to, &from, &IPV4[..], &self.0].concat()
    }

    /// Returns the packet in a frame: `None` if it has another protocol, or is tagged or truncated.
    #[must_use]
    pub fn in_frame(frame: &[u8]) -> Option<Self> {
        if frame.get(12..ETHERNET)? == IPV4 {
            Self::read(&frame[ETHERNET..])
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

    /// Returns all its bytes for good.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Returns the bytes after its network header.
    #[must_use]
    pub fn transport(&self) -> &[u8] {
        &self.0[self.header()..]
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
            Some(bytes) => u16::from_be_bytes([bytes[0], bytes[1]]),
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
        is_fragment(&self.0)
    }

    /// Returns where its transport begins in that of the datagram of which it is a fragment.
    #[must_use]
    pub fn offset(&self) -> usize {
        usize::from(self.word(6) & OFFSET) * 8
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
        parts.sort_by_key(|part| part.offset());
        let (first, last) = (parts.first()?, parts.last()?);
        let mut whole = first.0[..first.header()].to_vec();
        for part in &parts {
            (part.offset() + first.header() == whole.len())
                .then(|| whole.extend(part.transport()))?;
        }
        let whole = Self(whole).fragment(first.word(6) & DONT_FRAGMENT);
        (last.word(6) & MORE_FRAGMENTS == 0).then_some(whole)
    }

    /// Splits it into fragments with this number of payload bytes each, a multiple of eight; in
    /// order.
    #[must_use]
    pub fn cut(&self, length: usize) -> Vec<Self> {
        let end = self.transport().len();
        let begins = (0..end).step_by(length);
        begins
            .map(|begin| self.piece(begin..end.min(begin + length)))
            .collect()
    }

    /// Returns one fragment of it, which has these bytes of its transport; the first is a multiple
    /// of eight.
    #[must_use]
    pub fn piece(&self, range: Range<usize>) -> Self {
        let transport = self.transport();
        let more = if range.end < transport.len() {
            MORE_FRAGMENTS
        } else {
            0
        };
        let word = self.word(6) | more | (range.start / 8) as u16;
        let header = &self.0[..self.header()];
        Self([header, &transport[range]].concat()).fragment(word)
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

    /// Checks what a receiver checks: the header's checksum, that of the transport if the packet is
    /// no fragment, and both of a quoted packet as far as it reaches.
    ///
    /// # Errors
    /// Says which checksum is wrong.
    pub fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(is_header_right(&self.0), "header checksum of {self:?}");
        let whole = usize::from(self.word(2)) == self.0.len() && !self.is_fragment();
        anyhow::ensure!(
            !whole || is_transport_right(&self.0),
            "transport checksum of {self:?}"
        );
        self.quoted().map_or(Ok(()), |quoted| quoted.check())
    }

    fn header(&self) -> usize {
        header(&self.0)
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
}

/// Writes the network header's checksum, if the header is complete.
pub fn seal_header(packet: &mut [u8]) {
    let length = header(packet);
    if length < HEADER || packet.len() < length {
        return;
    }
    packet[10..12].fill(0);
    let checksum = !sum(&[&packet[..length]]);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// Writes the transport's checksum, if there is one.
pub fn seal(packet: &mut [u8]) {
    let Some(field) = transport_checksum(packet) else {
        return;
    };
    if packet[9] == proto::SCTP {
        let crc = checksum::sctp(&packet[header(packet)..]);
        packet[field].copy_from_slice(&crc);
        return;
    }
    packet[field.clone()].fill(0);
    let checksum = !transport_sum(packet);
    // In UDP, zero means that there is no checksum.
    let none = checksum == 0 && packet[9] == proto::UDP;
    let checksum = if none { 0xffff } else { checksum };
    packet[field].copy_from_slice(&checksum.to_be_bytes());
}

/// Whether every checksum of a packet is right, by complete recomputation; a quoted packet's are not
/// looked at, and SCTP's may be left to the device.
#[must_use]
pub fn sums_up(packet: &[u8]) -> bool {
    let offloaded = || {
        let field = transport_checksum(packet);
        packet[9] == proto::SCTP && field.is_some_and(|field| packet[field] == [0; 4])
    };
    // A fragment's transport checksum covers bytes of other fragments.
    is_header_right(packet) && (is_fragment(packet) || offloaded() || is_transport_right(packet))
}

fn header(packet: &[u8]) -> usize {
    usize::from(packet[0] & 0xf) * 4
}

fn is_fragment(packet: &[u8]) -> bool {
    u16::from_be_bytes([packet[6], packet[7]]) & (MORE_FRAGMENTS | OFFSET) != 0
}

fn is_header_right(packet: &[u8]) -> bool {
    packet
        .get(..header(packet))
        .is_some_and(|header| sum(&[header]) == 0xffff)
}

/// Whether a transport's checksum is right, or there is none.
#[must_use]
pub fn is_transport_right(packet: &[u8]) -> bool {
    let Some(field) = transport_checksum(packet) else {
        return true;
    };
    match packet[9] {
        proto::SCTP => packet[field] == checksum::sctp(&packet[header(packet)..]),
        proto::UDP if packet[field.clone()] == [0, 0] => true,
        _ => transport_sum(packet) == 0xffff,
    }
}

/// Where a transport's checksum is in a packet.
fn transport_checksum(packet: &[u8]) -> Option<Range<usize>> {
    let (at, bytes, least) = match packet[9] {
        proto::ICMP => (2, 2, SHORT),
        proto::TCP => (16, 2, HEADER),
        proto::UDP => (6, 2, SHORT),
        proto::SCTP => (8, 4, SCTP_HEADER),
        _ => return None,
    };
    let begin = header(packet) + at;
    (packet.len() >= header(packet) + least).then_some(begin..begin + bytes)
}

/// The sum over a transport, and over its pseudo header unless it is ICMP.
fn transport_sum(packet: &[u8]) -> u16 {
    let transport = &packet[header(packet)..];
    if packet[9] == proto::ICMP {
        return sum(&[transport]);
    }
    let length = (transport.len() as u16).to_be_bytes();
    sum(&[&packet[12..20], &[0, packet[9]], &length, transport])
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    const A: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 18, 1, 1), 1000);
    const B: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(172, 17, 0, 2), 80);

    /// A packet that is made here has valid checksums, and one wrong byte in it is detected.
    #[test]
    fn one_wrong_byte_is_detected() {
        let udp = Packet::udp(A, B, b"odd").options(&[1, 1, 1, 0]).ttl(1);
        let error = Packet::error(*B.ip(), *A.ip(), [11, 0], 0, udp.bytes());
        let chunk = Chunk {
            tag: 7,
            kind: 1,
            content: vec![1; 16],
        };
        for packet in [
            &udp,
            &Packet::tcp(A, B, 2),
            &error,
            &Packet::sctp(A, B, &chunk),
        ] {
            packet.check().unwrap();
            assert!(sums_up(packet.bytes()));
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

    /// A reader that was written elsewhere finds in a packet what it was built of.
    #[test]
    fn other_reader_finds_the_same_fields() {
        let segment = Segment {
            flags: 0x12,
            seq: 7,
            ack: 9,
            window: 300,
            options: vec![1, 1, 1, 0],
            payload: b"payload".to_vec(),
        };
        let packet = Packet::segment(A, B, &segment)
            .options(&[1, 1, 1, 0])
            .numbered(77)
            .tos(8)
            .ttl(3)
            .dont_fragment();
        let read = SlicedPacket::from_ip(packet.bytes()).unwrap();
        let Some(NetSlice::Ipv4(network)) = &read.net else {
            panic!("{read:?}")
        };
        let header = network.header().to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        let addresses = [header.source, header.destination].map(Ipv4Addr::from);
        assert_eq!(addresses, [*A.ip(), *B.ip()]);
        assert_eq!((header.identification, header.time_to_live), (77, 3));
        assert!(header.dont_fragment && !header.more_fragments);
        let Some(TransportSlice::Tcp(tcp)) = &read.transport else {
            panic!("{read:?}")
        };
        assert_eq!((tcp.source_port(), tcp.destination_port()), (1000, 80));
        assert_eq!((tcp.syn(), tcp.ack(), tcp.fin()), (true, true, false));
        assert_eq!((tcp.sequence_number(), tcp.window_size()), (7, 300));
        assert_eq!(
            (tcp.acknowledgment_number(), tcp.payload()),
            (9, &b"payload"[..])
        );
        let checksum = tcp.calc_checksum_ipv4(header.source, header.destination);
        assert_eq!(checksum, Ok(tcp.checksum()));
    }

    /// Fragments add up to the packet that was cut, unless one is missing.
    #[test]
    fn fragments_add_up_unless_one_is_missing() {
        let all = Packet::udp(A, B, &[7; 100]).options(&[1, 1, 1, 0]);
        let parts = [64..108, 0..32, 32..64].map(|range| all.piece(range));
        assert!(parts.iter().all(Packet::is_fragment));
        assert_eq!(parts.each_ref().map(Packet::offset), [64, 0, 32]);
        assert_eq!(all.whole(&parts).as_ref(), Some(&all));
        assert_eq!(all.whole(&all.cut(48)).as_ref(), Some(&all));
        for missing in 0..3 {
            let mut left = parts.to_vec();
            left.remove(missing);
            assert_eq!(all.whole(&left), None, "{missing}");
        }
        assert_eq!(all.clone().numbered(7).whole(&parts), None);
    }

    #[test]
    fn built_packet_is_read_back() {
        let udp = Packet::udp(A, B, b"odd").options(&[1, 1, 1, 0]);
        assert_eq!(
            (udp.ends(), udp.hops(), udp.is_fragment()),
            ((A, B), 64, false)
        );
        let error = Packet::error(*B.ip(), *A.ip(), [3, 4], 1300, &udp.bytes()[..32]);
        assert_eq!(error.error_kind(), Some([3, 4]));
        assert_eq!(error.quoted().unwrap().ends(), (A, B));
        error.check().unwrap();
        let frame = [&udp.frame([1; 6], [2; 6])[..], &[0; 9]].concat();
        assert_eq!(Packet::in_frame(&frame), Some(udp));
    }
}
