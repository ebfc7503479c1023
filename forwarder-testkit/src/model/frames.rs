// SPDX-License-Identifier: MIT OR Apache-2.0
//! Builds frames field by field, and recomputes their checksums completely: the reference for the
//! incremental updates.

use forwarder_common::abi::Tuple;
use forwarder_common::family::{Be16, Be32, V4};
use forwarder_common::wire::proto;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;

pub const ECHO_REPLY: u8 = 0;
pub const UNREACHABLE: u8 = 3;
pub const ECHO_REQUEST: u8 = 8;
pub const TIME_EXCEEDED: u8 = 11;

/// An address.
pub const fn ip(a: u8, b: u8, c: u8, d: u8) -> Be32 {
    Be32::from_octets([a, b, c, d])
}

/// The fields of a frame that is to be built.
#[derive(Clone, Debug)]
pub struct Spec {
    pub tuple: Tuple<V4>,
    pub macs: [u8; 12],
    pub flags: u8,
    pub kind: u8,
    pub hops: u8,
    pub options: Vec<u8>,
    /// The network header's fragment word: flags and offset.
    pub fragment: u16,
    pub payload: Vec<u8>,
    /// TCP: sequence number, acknowledgement number, window.
    pub numbers: (u32, u32, u16),
    /// TCP options, a multiple of four bytes.
    pub tcp_options: Vec<u8>,
    /// UDP without a checksum, SCTP with one that is still to be computed.
    pub unsummed: bool,
}

impl Spec {
    fn new(proto: u32, src: (Be32, u16), dst: (Be32, u16)) -> Self {
        let (sport, dport) = (Be16::new(src.1), Be16::new(dst.1));
        Self {
            tuple: Tuple {
                src: src.0,
                dst: dst.0,
                sport,
                dport,
                proto,
            },
            macs: [0; 12],
            flags: 0,
            kind: 0,
            hops: 64,
            options: Vec::new(),
            fragment: 0x4000,
            payload: b"payload.".to_vec(),
            numbers: (2, 2, 0x1000),
            tcp_options: Vec::new(),
            unsummed: false,
        }
    }

    /// A segment without payload. The numbers are those of a valid connection: each side's SYN has
    /// sequence number 1, all later segments have 2.
    pub fn tcp(src: (Be32, u16), dst: (Be32, u16), flags: u8) -> Self {
        let seq = if flags & SYN == 0 { 2 } else { 1 };
        Self {
            flags,
            payload: Vec::new(),
            numbers: (seq, 2, 0x1000),
            ..Self::new(proto::TCP, src, dst)
        }
    }

    /// Sets sequence number, acknowledgement number and window.
    pub fn numbers(self, seq: u32, ack: u32, window: u16) -> Self {
        Self {
            numbers: (seq, ack, window),
            ..self
        }
    }

    /// Adds a window scale to the TCP options.
    pub fn scale(self, scale: u8) -> Self {
        Self {
            tcp_options: vec![2, 4, 5, 0xb4, 1, 3, 3, scale],
            ..self
        }
    }

    pub fn udp(src: (Be32, u16), dst: (Be32, u16)) -> Self {
        Self::new(proto::UDP, src, dst)
    }

    /// SCTP with one chunk of this type; the payload is its content.
    pub fn sctp(src: (Be32, u16), dst: (Be32, u16), chunk: u8) -> Self {
        Self {
            kind: chunk,
            ..Self::new(proto::SCTP, src, dst)
        }
    }

    pub fn ping(src: Be32, dst: Be32, id: u16) -> Self {
        Self {
            kind: ECHO_REQUEST,
            ..Self::new(proto::ICMP, (src, id), (dst, 0))
        }
    }

    pub fn pong(src: Be32, dst: Be32, id: u16) -> Self {
        Self {
            kind: ECHO_REPLY,
            ..Self::new(proto::ICMP, (src, 0), (dst, id))
        }
    }

    /// An ICMP query other than echo, or its reply, depending on the type.
    pub fn query(kind: u8, src: Be32, dst: Be32, id: u16) -> Self {
        let query = u16::from(kind - (kind + 1) % 2);
        let (sport, dport) = if kind % 2 == 1 {
            (id, query)
        } else {
            (query, id)
        };
        Self {
            kind,
            ..Self::new(proto::ICMP, (src, sport), (dst, dport))
        }
    }

    /// An ICMP error that quotes the first `octets` bytes of a packet.
    pub fn error(kind: u8, src: Be32, dst: Be32, packet: &[u8], octets: usize) -> Self {
        let quoted = packet[..octets.min(packet.len())].to_vec();
        Self {
            kind,
            payload: quoted,
            ..Self::new(proto::ICMP, (src, 0), (dst, 0))
        }
    }

    /// A packet with this tuple, whatever its protocol; TCP with `flags`.
    pub fn of(tuple: Tuple<V4>, flags: u8) -> Self {
        let kind = if tuple.sport == Be16::new(0) {
            ECHO_REPLY
        } else {
            ECHO_REQUEST
        };
        Self {
            tuple,
            flags,
            kind,
            ..Self::new(tuple.proto, (tuple.src, 0), (tuple.dst, 0))
        }
    }

    /// Sets the destination and source MAC addresses.
    pub fn between(mut self, dst: [u8; 6], src: [u8; 6]) -> Self {
        self.macs[..6].copy_from_slice(&dst);
        self.macs[6..].copy_from_slice(&src);
        self
    }

    /// Sets the hop limit.
    pub fn hops(self, hops: u8) -> Self {
        Self { hops, ..self }
    }

    /// Adds a record-route option.
    pub fn options(self) -> Self {
        Self {
            options: vec![7, 7, 4, 0, 0, 0, 0, 0],
            ..self
        }
    }

    /// Sets the fragment word.
    pub fn fragment(self, fragment: u16) -> Self {
        Self { fragment, ..self }
    }

    /// Sets the length of the payload.
    pub fn payload(self, octets: usize) -> Self {
        Self {
            payload: (0..octets).map(|n| (n * 7) as u8).collect(),
            ..self
        }
    }

    /// The packet from its network header on.
    pub fn packet(&self) -> Vec<u8> {
        let Tuple {
            src,
            dst,
            sport,
            dport,
            proto,
        } = self.tuple;
        let ports = [sport.get().to_be_bytes(), dport.get().to_be_bytes()].concat();
        let tail = self.fragment & 0x1fff != 0;
        let mut transport = match proto {
            _ if tail => Vec::new(),
            proto::TCP => {
                let (seq, ack, window) = self.numbers;
                let (seq, ack, window) =
                    (seq.to_be_bytes(), ack.to_be_bytes(), window.to_be_bytes());
                let words = 5 + self.tcp_options.len() as u8 / 4;
                let middle = [words << 4, self.flags];
                let end = [0; 4];
                [
                    &ports[..],
                    &seq,
                    &ack,
                    &middle,
                    &window,
                    &end,
                    &self.tcp_options,
                ]
                .concat()
            }
            proto::UDP => {
                let len = (8 + self.payload.len()) as u16;
                [&ports[..], &len.to_be_bytes(), &[0, 0]].concat()
            }
            proto::ICMP => {
                let id = if matches!(self.kind, ECHO_REPLY | 14 | 16 | 18) {
                    dport
                } else {
                    sport
                };
                let id = id.get().to_be_bytes();
                vec![self.kind, 0, 0, 0, id[0], id[1], 0, 1]
            }
            proto::SCTP => {
                let len = (4 + self.payload.len() as u16).to_be_bytes();
                let chunk = [self.kind, 0, len[0], len[1]];
                [&ports[..], &[1, 2, 3, 4], &[0; 4], &chunk].concat()
            }
            _ => Vec::new(),
        };
        transport.extend_from_slice(&self.payload);
        let octets = 20 + self.options.len();
        let len = ((octets + transport.len()) as u16).to_be_bytes();
        let fragment = self.fragment.to_be_bytes();
        let mut packet = vec![
            0x40 | (octets / 4) as u8,
            0,
            len[0],
            len[1],
            0x12,
            0x34,
            fragment[0],
            fragment[1],
            self.hops,
            proto as u8,
            0,
            0,
        ];
        packet.extend_from_slice(&src.octets());
        packet.extend_from_slice(&dst.octets());
        packet.extend_from_slice(&self.options);
        seal_header(&mut packet);
        packet.extend_from_slice(&transport);
        if !(tail || self.unsummed && matches!(proto, proto::UDP | proto::SCTP)) {
            seal(&mut packet);
        }
        packet
    }

    /// The frame, Ethernet header included.
    pub fn build(&self) -> Vec<u8> {
        [&self.macs[..], &[0x08, 0x00], &self.packet()].concat()
    }
}

/// The source port, or the identifier of an echo request, of a packet after it has left.
pub fn left_by(packet: &[u8]) -> u16 {
    let l4 = usize::from(packet[0] & 15) * 4;
    let at = if u32::from(packet[9]) == proto::ICMP {
        l4 + 4
    } else {
        l4
    };
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

/// Cuts a packet into fragments of `octets` bytes of payload, a multiple of eight, with this
/// identification.
pub fn cut(packet: &[u8], octets: usize, number: u16) -> Vec<Vec<u8>> {
    let (header, payload) = packet.split_at(usize::from(packet[0] & 15) * 4);
    let chunks = payload.chunks(octets).enumerate();
    let is_fragment = |(nth, chunk): (usize, &[u8])| {
        let begin = nth * octets;
        let more = begin + chunk.len() < payload.len();
        let word = (begin / 8) as u16 | if more { 0x2000 } else { 0 };
        let mut is_fragment = [header, chunk].concat();
        let len = is_fragment.len() as u16;
        is_fragment[2..4].copy_from_slice(&len.to_be_bytes());
        is_fragment[4..6].copy_from_slice(&number.to_be_bytes());
        is_fragment[6..8].copy_from_slice(&word.to_be_bytes());
        is_fragment[10..12].fill(0);
        let sum = finish(sum(&is_fragment[..header.len()]));
        is_fragment[10..12].copy_from_slice(&sum.to_be_bytes());
        is_fragment
    };
    chunks.map(is_fragment).collect()
}

/// The ones' complement sum of 16-bit words, folded.
pub(super) fn sum(octets: &[u8]) -> u32 {
    let words = octets
        .chunks(2)
        .map(|word| u64::from(word[0]) << 8 | u64::from(word.get(1).copied().unwrap_or_default()));
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u32
}

fn finish(sum: u32) -> u16 {
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// The offset of the transport checksum, and what it covers besides the transport's own bytes.
fn place(packet: &[u8]) -> Option<(usize, Vec<u8>)> {
    let l4 = usize::from(packet[0] & 15) * 4;
    let len = ((packet.len() - l4) as u16).to_be_bytes();
    let pseudo = [&packet[12..20], &[0, packet[9]], &len].concat();
    Some(match u32::from(packet[9]) {
        proto::TCP => (l4 + 16, pseudo),
        proto::UDP => (l4 + 6, pseudo),
        proto::ICMP => (l4 + 2, Vec::new()),
        _ => return None,
    })
}

/// Writes the network header's checksum, if the header is complete.
pub fn seal_header(packet: &mut [u8]) {
    let octets = usize::from(packet[0] & 15) * 4;
    if octets < 20 || packet.len() < octets {
        return;
    }
    packet[10..12].fill(0);
    let checksum = finish(sum(&packet[..octets]));
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// A CRC32c, computed byte by byte.
pub fn crc32c(octets: impl IntoIterator<Item = u8>) -> u32 {
    !octets.into_iter().fold(!0, |crc, octet| {
        (0..8).fold(crc ^ u32::from(octet), |crc, _| {
            crc >> 1 ^ if crc & 1 == 0 { 0 } else { 0x82f6_3b78 }
        })
    })
}

/// An SCTP packet's checksum (RFC 9260 section 6.8), and its offset.
fn sctp(packet: &[u8]) -> Option<(usize, [u8; 4])> {
    let l4 = usize::from(packet[0] & 15) * 4;
    let at = l4 + 8;
    if u32::from(packet[9]) != proto::SCTP || packet.len() < at + 4 {
        return None;
    }
    let octets = [&packet[l4..at], &[0; 4], &packet[at + 4..]].concat();
    Some((at, crc32c(octets).to_le_bytes()))
}

/// Writes the transport checksum.
pub fn seal(packet: &mut [u8]) {
    if let Some((at, crc)) = sctp(packet) {
        packet[at..at + 4].copy_from_slice(&crc);
    }
    let Some((at, pseudo)) = place(packet) else {
        return;
    };
    packet[at..at + 2].fill(0);
    let l4 = usize::from(packet[0] & 15) * 4;
    let mut checksum = finish(sum(&[&pseudo, &packet[l4..]].concat()));
    if checksum == 0 && u32::from(packet[9]) == proto::UDP {
        checksum = 0xffff;
    }
    packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// Whether every checksum of a packet is correct, by complete recomputation.
pub fn sums_up(packet: &[u8]) -> bool {
    let l4 = usize::from(packet[0] & 15) * 4;
    if sum(&packet[..l4]) != 0xffff {
        return false;
    }
    // A fragment's transport checksum covers bytes of other fragments.
    if u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0 {
        return true;
    }
    if let Some((at, crc)) = sctp(packet) {
        return packet[at..at + 4] == crc || packet[at..at + 4] == [0; 4];
    }
    let Some((at, pseudo)) = place(packet) else {
        return true;
    };
    let unsummed = u32::from(packet[9]) == proto::UDP && packet[at..at + 2] == [0, 0];
    unsummed || sum(&[&pseudo, &packet[l4..]].concat()) == 0xffff
}
