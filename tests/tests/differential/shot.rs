// SPDX-License-Identifier: MIT OR Apache-2.0
//! A packet of the trace before either arm has named its ends, and the frames that it becomes.

use forwarder_testkit::checksum::sum;
use forwarder_testkit::packet::proto::{TCP, UDP};
use forwarder_testkit::packet::{Chunk, Packet, Segment};

use crate::flow::{Name, Pair};
use crate::place::{At, End, socket};

/// What a packet carries.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    /// A datagram, with a checksum or without.
    Udp(Vec<u8>, bool),
    /// A segment.
    Tcp(Segment),
    /// A packet of an association.
    Sctp(Chunk),
    /// An echo request or (`true`) its reply; its identifier is the port of the flow's originator.
    Echo(bool, u16, Vec<u8>),
    /// An error about another packet.
    Error(Box<Quote>),
    /// Of another protocol.
    Raw(u8, Vec<u8>),
}

/// An ICMP error, as far as it is about another packet.
#[derive(Clone, Debug)]
pub(crate) struct Quote {
    /// Type and code.
    pub(crate) kind: [u8; 2],
    /// The word after the checksum.
    pub(crate) word: u32,
    /// The packet.
    pub(crate) packet: Draft,
    /// How many bytes of its transport are quoted.
    pub(crate) length: usize,
    /// With extensions (RFC 4884), behind 128 bytes of quote.
    pub(crate) extended: bool,
}

/// What is wrong with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    /// Nothing.
    None,
    /// The transport's checksum.
    Transport,
    /// The network header's checksum.
    Header,
}

/// How a packet is cut.
#[derive(Clone, Debug)]
pub(crate) enum Pieces {
    /// Not at all.
    Whole,
    /// At these offsets; sent in this order, some twice or not at all.
    Cut(Vec<usize>, Vec<usize>),
    /// In two that overlap by eight bytes.
    Overlap(usize),
}

/// A packet by names.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    /// Source and destination.
    pub(crate) ends: Pair,
    /// DSCP and ECN.
    pub(crate) tos: u8,
    /// Must not be fragmented.
    pub(crate) df: bool,
    /// Time to live.
    pub(crate) ttl: u8,
    /// IP options.
    pub(crate) options: Vec<u8>,
    /// The rest.
    pub(crate) body: Body,
    /// What is wrong with it.
    pub(crate) damage: Damage,
    /// How it is cut.
    pub(crate) pieces: Pieces,
    /// Bytes behind its end, in the frame.
    pub(crate) trailer: usize,
    /// The station that the frame is for, instead of the host.
    pub(crate) station: Option<At>,
}

impl Draft {
    /// With the usual header.
    pub(crate) fn new(ends: Pair, body: Body) -> Self {
        Self {
            ends,
            tos: 0,
            df: true,
            ttl: 64,
            options: Vec::new(),
            body,
            damage: Damage::None,
            pieces: Pieces::Whole,
            trailer: 0,
            station: None,
        }
    }

    /// The packets that it becomes, by what each flow's server sees as its client.
    fn packets(&self, id: u16, seen: &dyn Fn(usize) -> End) -> Vec<Packet> {
        let whole = self.whole(id, seen);
        let length = whole.transport().len();
        // No fragment says that it must not be fragmented.
        let piece = |range| whole.clone().fragment(0).piece(range);
        match &self.pieces {
            Pieces::Whole => vec![whole],
            Pieces::Cut(ends, order) => {
                let begins = [0].into_iter().chain(ends.iter().copied());
                let ends = ends.iter().copied().chain([length]);
                let ranges: Vec<_> = begins.zip(ends).collect();
                let piece = |place: &usize| piece(ranges[*place].0..ranges[*place].1);
                order.iter().map(piece).collect()
            }
            Pieces::Overlap(at) => vec![piece(0..*at), piece(at - 8..length)],
        }
    }

    fn whole(&self, id: u16, seen: &dyn Fn(usize) -> End) -> Packet {
        let end = |name| match name {
            Name::Fixed(address, port) => (address, port),
            Name::Seen(flow) => seen(flow),
        };
        let packet = self
            .plain(id, end(self.ends.0), end(self.ends.1), seen)
            .options(&self.options)
            .tos(self.tos)
            .numbered(id)
            .ttl(self.ttl)
            .fragment(u16::from(self.df) << 14);
        let header = packet.bytes().len() - packet.transport().len();
        let field = match (self.damage, packet.protocol()) {
            (Damage::None, _) => return packet,
            (Damage::Header, _) => 10,
            (Damage::Transport, TCP) => header + 16,
            (Damage::Transport, UDP) => header + 6,
            (Damage::Transport, _) => header + 2,
        };
        packet.damaged(field)
    }

    /// With the usual network header.
    fn plain(&self, id: u16, from: End, to: End, seen: &dyn Fn(usize) -> End) -> Packet {
        let (source, destination) = (socket(from), socket(to));
        match &self.body {
            Body::Udp(payload, true) => Packet::udp(source, destination, payload),
            Body::Udp(payload, false) => Packet::udp(source, destination, payload).unsummed(),
            Body::Tcp(segment) => Packet::segment(source, destination, segment),
            Body::Sctp(chunk) => Packet::sctp(source, destination, chunk),
            Body::Echo(reply, number, payload) => {
                let name = if *reply { to.1 } else { from.1 };
                let (name, number) = (name.to_be_bytes(), number.to_be_bytes());
                let kind = [if *reply { 0 } else { 8 }, 0];
                Packet::icmp(from.0, to.0, kind, &[&name, &number, &payload[..]].concat())
            }
            Body::Raw(proto, bytes) => Packet::new(*proto, from.0, to.0, bytes),
            Body::Error(quote) => {
                let whole = quote.packet.whole(id, seen);
                let header = whole.bytes().len() - whole.transport().len();
                let length = whole.bytes().len().min(header + quote.length);
                let mut rest = whole.bytes()[..length].to_vec();
                let mut word = quote.word;
                if quote.extended {
                    rest.resize(128, 0);
                    rest.extend(extension());
                    // RFC 4884 section 4: the quote's length in words.
                    word = word & !0xff_0000 | (128 / 4) << 16;
                }
                Packet::error(from.0, to.0, quote.kind, word, &rest)
            }
        }
    }
}

/// An ICMP extension structure of one MPLS label object, as RFC 4884 and RFC 4950 have it.
fn extension() -> Vec<u8> {
    let mut bytes = vec![0x20, 0, 0, 0, 0, 8, 1, 1, 0x12, 0x34, 0x51, 0x40];
    let checksum = !sum(&[&bytes]);
    bytes[2..4].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

/// A packet that is sent.
#[derive(Clone, Debug)]
pub(crate) struct Shot {
    /// What it is, for people and for the list of known differences.
    pub(crate) label: String,
    /// Where it is sent.
    pub(crate) at: At,
    /// Its identification, by which it is known again: no other packet of a seed has it.
    pub(crate) tag: u16,
    /// The flow that it belongs to, or is about.
    pub(crate) flow: Option<usize>,
    /// The packet.
    pub(crate) draft: Draft,
    /// It is one that our path has to take.
    pub(crate) eligible: bool,
}

impl Shot {
    /// Its frames.
    pub(crate) fn frames(&self, seen: &dyn Fn(usize) -> End) -> Vec<Vec<u8>> {
        let station = self.draft.station.map(At::mac);
        let station = station.unwrap_or_else(|| self.at.host_mac());
        let packets = self.draft.packets(self.tag, seen);
        let frame = |packet: &Packet| {
            let trailer = vec![0xee; self.draft.trailer];
            [packet.frame(station, self.at.mac()), trailer].concat()
        };
        packets.iter().map(frame).collect()
    }
}
