// SPDX-License-Identifier: MIT OR Apache-2.0
//! A packet of the trace before either arm has named its ends, and the frames that it becomes.

use crate::flow::{ICMP, Name, Pair, SCTP, TCP, UDP};
use crate::forge::{self, Chunk, End, Head, Segment, cut, ipv4, piece};
use crate::place::At;

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
    pub(crate) octets: usize,
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
    fn packets(&self, id: u16, seen: &dyn Fn(usize) -> End) -> Vec<Vec<u8>> {
        let whole = self.whole(id, seen);
        let octets = usize::from(whole[0] & 0xf) * 4;
        match &self.pieces {
            Pieces::Whole => vec![whole],
            Pieces::Cut(ends, order) => {
                let pieces = cut(&whole, ends);
                order.iter().map(|place| pieces[*place].clone()).collect()
            }
            Pieces::Overlap(at) => {
                let (header, transport) = whole.split_at(octets);
                vec![
                    piece(header, transport, 0, *at),
                    piece(header, transport, at - 8, transport.len()),
                ]
            }
        }
    }

    fn whole(&self, id: u16, seen: &dyn Fn(usize) -> End) -> Vec<u8> {
        let end = |name| match name {
            Name::Fixed(address, port) => (address, port),
            Name::Seen(flow) => seen(flow),
        };
        let (from, to) = (end(self.ends.0), end(self.ends.1));
        let (proto, mut transport) = self.transport(id, from, to, seen);
        if self.damage == Damage::Transport {
            let at = match proto {
                TCP => 16,
                UDP => 6,
                _ => 2,
            };
            transport[at] ^= 0x55;
        }
        let head = Head {
            tos: self.tos,
            id,
            df: self.df,
            ttl: self.ttl,
            options: self.options.clone(),
            ..Head::plain(proto, from.0, to.0)
        };
        let mut packet = ipv4(&head, &transport);
        if self.damage == Damage::Header {
            packet[10] ^= 0x55;
        }
        packet
    }

    fn transport(&self, id: u16, from: End, to: End, seen: &dyn Fn(usize) -> End) -> (u8, Vec<u8>) {
        match &self.body {
            Body::Udp(payload, checked) => (UDP, forge::udp(from, to, payload, *checked)),
            Body::Tcp(segment) => (TCP, forge::tcp(from, to, segment)),
            Body::Sctp(chunk) => (SCTP, forge::sctp(from, to, chunk)),
            Body::Echo(reply, number, payload) => {
                let name = if *reply { to.1 } else { from.1 };
                let (name, number) = (name.to_be_bytes(), number.to_be_bytes());
                let word = [name[0], name[1], number[0], number[1]];
                let kind = [if *reply { 0 } else { 8 }, 0];
                (ICMP, forge::icmp(kind, word, payload))
            }
            Body::Raw(proto, octets) => (*proto, octets.clone()),
            Body::Error(quote) => {
                let whole = quote.packet.whole(id, seen);
                let header = usize::from(whole[0] & 0xf) * 4;
                let mut rest = whole[..whole.len().min(header + quote.octets)].to_vec();
                let mut word = quote.word.to_be_bytes();
                if quote.extended {
                    rest.resize(128, 0);
                    rest.extend(forge::extension());
                    // RFC 4884 section 4: the quote's length in words.
                    word[1] = 128 / 4;
                }
                (ICMP, forge::icmp(quote.kind, word, &rest))
            }
        }
    }
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
        let header = [&station[..], &self.at.mac(), &[8, 0]].concat();
        let packets = self.draft.packets(self.tag, seen);
        let frame = |packet: Vec<u8>| {
            let trailer = vec![0xee; self.draft.trailer];
            [&header[..], &packet, &trailer].concat()
        };
        packets.into_iter().map(frame).collect()
    }
}
