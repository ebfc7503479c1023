// SPDX-License-Identifier: MIT OR Apache-2.0
//! Describes the model's packets field by field, in the types of the packet logic.

use std::net::SocketAddrV4;

use forwarder_common::abi::Tuple;
use forwarder_common::family::{Be16, Be32, V4};
use forwarder_common::wire::proto;

use crate::packet::{Chunk, Packet, Segment};

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

    /// An ICMP error that quotes the first `length` bytes of a packet.
    pub fn error(kind: u8, src: Be32, dst: Be32, packet: &[u8], length: usize) -> Self {
        let quoted = packet[..length.min(packet.len())].to_vec();
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
    pub fn payload(self, length: usize) -> Self {
        Self {
            payload: (0..length).map(|n| (n * 7) as u8).collect(),
            ..self
        }
    }

    /// The packet from its network header on.
    pub fn packet(&self) -> Vec<u8> {
        let packet = if self.fragment & 0x1fff == 0 {
            self.first()
        } else {
            let Tuple {
                src, dst, proto, ..
            } = self.tuple;
            let (from, to) = (src.octets().into(), dst.octets().into());
            Packet::unsealed(proto as u8, from, to, &self.payload)
        };
        packet
            .options(&self.options)
            .ttl(self.hops)
            .fragment(self.fragment)
            .into_bytes()
    }

    /// A packet that is none, or the first, of a datagram's fragments.
    fn first(&self) -> Packet {
        let Tuple {
            src,
            dst,
            sport,
            dport,
            proto,
        } = self.tuple;
        let from = SocketAddrV4::new(src.octets().into(), sport.get());
        let to = SocketAddrV4::new(dst.octets().into(), dport.get());
        let packet = match proto {
            proto::TCP => Packet::segment(from, to, &self.segment()),
            proto::UDP => Packet::udp(from, to, &self.payload),
            proto::SCTP => Packet::sctp(from, to, &Chunk::new(self.kind, &self.payload)),
            proto::ICMP => {
                let is_reply = matches!(self.kind, ECHO_REPLY | 14 | 16 | 18);
                let id = if is_reply { dport } else { sport };
                let id = id.get().to_be_bytes();
                let body = [&[id[0], id[1], 0, 1], &self.payload[..]].concat();
                Packet::icmp(*from.ip(), *to.ip(), [self.kind, 0], &body)
            }
            _ => Packet::new(proto as u8, *from.ip(), *to.ip(), &self.payload),
        };
        match proto {
            proto::UDP | proto::SCTP if self.unsummed => packet.unsummed(),
            _ => packet,
        }
    }

    fn segment(&self) -> Segment {
        let (seq, ack, window) = self.numbers;
        Segment {
            window,
            options: self.tcp_options.clone(),
            ..Segment::new(self.flags, (seq, ack), &self.payload)
        }
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

/// Cuts a packet into fragments of `length` bytes of payload, a multiple of eight, with this
/// identification.
///
/// # Panics
/// If it is no whole packet.
pub fn cut(packet: &[u8], length: usize, number: u16) -> Vec<Vec<u8>> {
    let packet = Packet::read(packet).expect("a whole packet");
    let pieces = packet.numbered(number).fragment(0).cut(length).into_iter();
    pieces.map(Packet::into_bytes).collect()
}
