// SPDX-License-Identifier: MIT OR Apache-2.0
//! Packets byte by byte: headers with finished checksums, and everything about them that may be
//! unusual.

use std::net::Ipv4Addr;

use harness::wire::sctp_checksum;

/// What the network header says.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    /// DSCP and ECN.
    pub(crate) tos: u8,
    /// Identification.
    pub(crate) id: u16,
    /// Must not be fragmented.
    pub(crate) df: bool,
    /// Time to live.
    pub(crate) ttl: u8,
    /// Protocol number.
    pub(crate) proto: u8,
    /// Source.
    pub(crate) src: Ipv4Addr,
    /// Destination.
    pub(crate) dst: Ipv4Addr,
    /// Options, a multiple of four bytes.
    pub(crate) options: Vec<u8>,
}

impl Head {
    /// The usual one.
    pub(crate) fn plain(proto: u8, src: Ipv4Addr, dst: Ipv4Addr) -> Self {
        Self {
            tos: 0,
            id: 0,
            df: true,
            ttl: 64,
            proto,
            src,
            dst,
            options: Vec::new(),
        }
    }
}

/// A packet: network header and transport.
pub(crate) fn ipv4(head: &Head, transport: &[u8]) -> Vec<u8> {
    let octets = 20 + head.options.len();
    let mut packet = vec![0x40 | (octets / 4) as u8, head.tos];
    packet.extend(((octets + transport.len()) as u16).to_be_bytes());
    packet.extend(head.id.to_be_bytes());
    packet.extend([u8::from(head.df) << 6, 0, head.ttl, head.proto, 0, 0]);
    packet.extend(head.src.octets());
    packet.extend(head.dst.octets());
    packet.extend(&head.options);
    reseal(&mut packet);
    packet.extend(transport);
    packet
}

/// Makes a network header's checksum right.
fn reseal(packet: &mut [u8]) {
    let octets = usize::from(packet[0] & 0xf) * 4;
    packet[10..12].fill(0);
    let checksum = !sum(&[&packet[..octets]]);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// Cuts a packet into fragments, whose transport ends at these offsets (multiples of eight).
pub(crate) fn cut(packet: &[u8], ends: &[usize]) -> Vec<Vec<u8>> {
    let octets = usize::from(packet[0] & 0xf) * 4;
    let (header, transport) = packet.split_at(octets);
    let mut begin = 0;
    let mut pieces = Vec::new();
    for end in ends.iter().copied().chain([transport.len()]) {
        pieces.push(piece(header, transport, begin, end));
        begin = end;
    }
    pieces
}

/// One fragment of a packet, from `begin` to `end` of its transport.
pub(crate) fn piece(header: &[u8], transport: &[u8], begin: usize, end: usize) -> Vec<u8> {
    let mut piece = header.to_vec();
    let more = u16::from(end < transport.len()) << 13;
    piece[2..4].copy_from_slice(&((header.len() + end - begin) as u16).to_be_bytes());
    piece[6..8].copy_from_slice(&(more | (begin / 8) as u16).to_be_bytes());
    reseal(&mut piece);
    piece.extend(&transport[begin..end]);
    piece
}

/// An address and a port.
pub(crate) type End = (Ipv4Addr, u16);

/// A UDP datagram, with a checksum or without.
pub(crate) fn udp(from: End, to: End, payload: &[u8], checked: bool) -> Vec<u8> {
    let words = [from.1, to.1, (8 + payload.len()) as u16, 0];
    let mut datagram: Vec<u8> = words.into_iter().flat_map(u16::to_be_bytes).collect();
    datagram.extend(payload);
    if checked {
        let checksum = match !transport_sum(17, from.0, to.0, &datagram) {
            0 => 0xffff,
            checksum => checksum,
        };
        datagram[6..8].copy_from_slice(&checksum.to_be_bytes());
    }
    datagram
}

/// What a TCP segment says beside its ports.
#[derive(Clone, Debug, Default)]
pub(crate) struct Segment {
    /// The flag byte.
    pub(crate) flags: u8,
    /// Sequence number.
    pub(crate) seq: u32,
    /// Acknowledgement number.
    pub(crate) ack: u32,
    /// Options, a multiple of four bytes.
    pub(crate) options: Vec<u8>,
    /// Payload.
    pub(crate) payload: Vec<u8>,
}

/// A TCP segment.
pub(crate) fn tcp(from: End, to: End, segment: &Segment) -> Vec<u8> {
    let mut octets = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    octets.extend(segment.seq.to_be_bytes());
    octets.extend(segment.ack.to_be_bytes());
    let words = 5 + segment.options.len() / 4;
    octets.extend([(words << 4) as u8, segment.flags, 0xff, 0xff, 0, 0, 0, 0]);
    octets.extend(&segment.options);
    octets.extend(&segment.payload);
    let checksum = !transport_sum(6, from.0, to.0, &octets);
    octets[16..18].copy_from_slice(&checksum.to_be_bytes());
    octets
}

/// An SCTP packet of one chunk.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    /// The packet's verification tag.
    pub(crate) tag: u32,
    /// The chunk's type.
    pub(crate) kind: u8,
    /// What it holds, a multiple of four bytes.
    pub(crate) content: Vec<u8>,
}

/// An SCTP packet.
pub(crate) fn sctp(from: End, to: End, chunk: &Chunk) -> Vec<u8> {
    let mut octets = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    octets.extend(chunk.tag.to_be_bytes());
    let length = (4 + chunk.content.len() as u16).to_be_bytes();
    octets.extend([0, 0, 0, 0, chunk.kind, 0, length[0], length[1]]);
    octets.extend(&chunk.content);
    let checksum = sctp_checksum(&octets);
    octets[8..12].copy_from_slice(&checksum);
    octets
}

/// An ICMP message: type and code, the word after the checksum, and the rest.
pub(crate) fn icmp(kind: [u8; 2], word: [u8; 4], rest: &[u8]) -> Vec<u8> {
    let mut message = [&kind[..], &[0, 0], &word, rest].concat();
    let checksum = !sum(&[&message]);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    message
}

/// An ICMP extension structure of one MPLS label object, as RFC 4884 and RFC 4950 have it.
pub(crate) fn extension() -> Vec<u8> {
    let mut octets = vec![0x20, 0, 0, 0, 0, 8, 1, 1, 0x12, 0x34, 0x51, 0x40];
    let checksum = !sum(&[&octets]);
    octets[2..4].copy_from_slice(&checksum.to_be_bytes());
    octets
}

/// The checksum's sum over a transport and its pseudo header.
pub(crate) fn transport_sum(proto: u8, src: Ipv4Addr, dst: Ipv4Addr, transport: &[u8]) -> u16 {
    let length = (transport.len() as u16).to_be_bytes();
    sum(&[
        &src.octets(),
        &dst.octets(),
        &[0, proto],
        &length,
        transport,
    ])
}

/// The Internet checksum's sum of parts; all but the last are of even length.
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
