// SPDX-License-Identifier: MIT OR Apache-2.0
//! Parses a packet: from a frame to a tuple and the few facts that the pipeline needs.

use bytemuck::{Pod, Zeroable};

use crate::abi::Tuple;
use crate::family::{Be16, Be32, Family};
use crate::reason::Reason;
use crate::wire::frame::Frame;
use crate::wire::header::{Header, Ip};
use crate::wire::{proto, tcp};

/// How the pipeline handles a packet.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Class {
    /// A packet that cannot be translated.
    #[default]
    Other,
    /// TCP, UDP, SCTP or an ICMP query with its complete transport header: has a tuple.
    Flow,
    /// A protocol without ports, such as GRE and ESP: has a tuple of addresses.
    Portless,
    /// A fragment; its tuple is complete only in the first one.
    Fragment,
    /// An ICMP error, which quotes another packet.
    IcmpError,
    /// The network header is valid, the transport header is not: has both addresses, but no ports.
    Unreadable,
}

impl Class {
    /// Whether packets of this class may belong to a flow.
    #[inline(always)]
    #[must_use]
    pub const fn has_tuple(self) -> bool {
        matches!(self, Self::Flow | Self::Portless)
    }

    /// The class of an unfragmented packet of this protocol.
    #[inline(always)]
    #[must_use]
    pub const fn of(protocol: u32, icmp: u8) -> Self {
        if proto::is_portless(protocol, icmp as u32) {
            Self::Portless
        } else {
            Self::Flow
        }
    }
}

/// A parsed packet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Packet<F: Family> {
    /// Addresses, ports and protocol. Ports are zero if there are none.
    pub tuple: Tuple<F>,
    /// The class.
    pub class: Class,
    /// Offset of the network header. A byte: the BPF stack is small, and the verifier knows a
    /// byte's bounds.
    pub l3: u8,
    /// Offset of the transport header.
    pub l4: u8,
    /// Length from the network header on, by the header: see [`Header::len`].
    pub len: u16,
    /// The length that is compared with the MTU: the packet's, or that of its datagram's first
    /// fragment, which the later ones have to follow.
    pub size: u16,
    /// Bytes of network and transport header together.
    pub headers: u16,
    /// The remaining hop limit (TTL).
    pub hops: u8,
    /// TCP's flag byte, or the type of SCTP's first chunk; else 0.
    pub flags: u8,
    /// TCP's sequence number.
    pub seq: u32,
    /// TCP's acknowledgement number.
    pub ack: u32,
    /// TCP's announced window, unscaled.
    pub window: u16,
    /// Whether there are IP options.
    pub options: bool,
    /// Whether it is a later fragment, which has no transport header.
    pub later_fragment: bool,
    /// Whether it is a fragment.
    pub is_fragment: bool,
    /// Whether it is a first fragment with a complete transport header, and so has a flow's tuple.
    pub first_fragment: bool,
    /// Whether it is a fragment that was not reassembled yet: set by the pipeline.
    pub unassembled: bool,
    /// Whether it is a fragment and more fragments follow.
    pub more: bool,
    /// The identification field: which datagram a fragment belongs to.
    pub id: Be16,
    /// The fragment offset, in bytes.
    pub offset: u16,
    /// Whether it is the reply to an ICMP query, which never opens a flow.
    pub answer: bool,
}

/// Source and destination port, the first bytes of TCP, UDP and SCTP.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
pub(crate) struct Ports {
    pub(crate) src: Be16,
    pub(crate) dst: Be16,
}

/// The TCP header's fixed part after the ports (RFC 9293 section 3.1).
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct TcpTail {
    sequence: Be32,
    acknowledgement: Be32,
    offset: u8,
    flags: u8,
    window: Be16,
    checksum: Be16,
    urgent: Be16,
}

/// SCTP's common header after the ports, and the first chunk header (RFC 9260 sections 3.1 and
/// 3.2).
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SctpTail {
    tag: Be32,
    checksum: Be32,
    chunk: u8,
    flags: u8,
    length: Be16,
}

/// ICMP's first eight bytes (RFC 792).
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct IcmpHeader {
    pub(crate) kind: u8,
    pub(crate) code: u8,
    pub(crate) checksum: Be16,
    pub(crate) id: Be16,
    pub(crate) sequence: Be16,
}

pub(crate) const REDIRECT: u8 = 5;

impl IcmpHeader {
    /// The ports of an ICMP query, and whether it is the reply. The requester's port is the
    /// identifier; the other port is the request's type, or 0 for echo. `None` if it is no query
    /// (`invmap` of nf_conntrack_proto_icmp.c).
    #[inline(always)]
    pub(crate) fn query(&self) -> Option<(Ports, bool)> {
        // Computed, because LLVM compiles a `match` to a lookup table, which in BPF would be on the
        // stack.
        let (asked, answer) = if self.kind & !8 == 0 {
            (0, self.kind == 0)
        } else if self.kind.wrapping_sub(13) < 6 {
            // Timestamp, information, address mask: the reply's type is the request's plus one.
            let answer = self.kind & 1 == 0;
            (self.kind - answer as u8, answer)
        } else {
            return None;
        };
        let (src, dst) = (self.id, Be16::new(asked as u16));
        let ports = if answer {
            Ports { src: dst, dst: src }
        } else {
            Ports { src, dst }
        };
        Some((ports, answer))
    }
}

/// Parses the packet whose network header is at `l3` into `packet`. It is an out parameter because
/// returning a large value would cost as much as parsing it.
///
/// # Errors
/// [`Reason::Truncated`] if a header is not completely in the frame, [`Reason::Malformed`] if it
/// contradicts itself. `packet` is not valid then, unless its class is [`Class::Unreadable`].
#[inline(always)]
pub fn parse<F: Ip>(frame: &Frame<'_>, l3: usize, packet: &mut Packet<F>) -> Result<(), Reason> {
    packet.class = Class::Other;
    let header = F::header(frame, l3)?;
    if header.fragment && header.len == 0 {
        return Err(Reason::Malformed);
    }
    let l4 = header.l4;
    let ip = (l4 - l3) as u16;
    packet.tuple.src = header.src;
    packet.tuple.dst = header.dst;
    packet.tuple.proto = header.proto;
    packet.l3 = l3 as u8;
    packet.l4 = l4 as u8;
    packet.len = header.len;
    packet.size = header.len;
    packet.hops = header.hops;
    packet.options = header.options;
    packet.later_fragment = header.later_fragment;
    packet.is_fragment = header.fragment;
    packet.more = header.more;
    packet.id = header.id;
    packet.offset = header.offset;
    packet.unassembled = false;
    packet.tuple.sport = Be16::new(0);
    packet.tuple.dport = Be16::new(0);
    packet.headers = ip;
    packet.flags = 0;
    packet.answer = false;
    packet.first_fragment = false;
    packet.class = Class::Other;
    if header.later_fragment {
        packet.class = Class::Fragment;
        return Ok(());
    }
    let read = transport(frame, &header, packet);
    if header.fragment {
        // An incomplete transport header is no error here: the kernel reassembles the datagram
        // first.
        packet.first_fragment = read.is_ok() && packet.class.has_tuple();
        packet.class = Class::Fragment;
        return Ok(());
    }
    if read.is_err() {
        packet.tuple.sport = Be16::new(0);
        packet.tuple.dport = Be16::new(0);
        packet.class = Class::Unreadable;
    }
    read
}

/// Parses the transport header behind the network header that `packet` contains.
#[inline(always)]
fn transport<F: Family>(
    frame: &Frame<'_>,
    header: &Header<F>,
    packet: &mut Packet<F>,
) -> Result<(), Reason> {
    let l4 = header.l4;
    let mut octets = 0;
    if header.proto == proto::UDP {
        let ports: Ports = frame.read(l4).ok_or(Reason::Truncated)?;
        // Length and checksum must be in the frame too: the rewrite updates the checksum.
        let _: Ports = frame.read(l4 + 4).ok_or(Reason::Truncated)?;
        packet.tuple.sport = ports.src;
        packet.tuple.dport = ports.dst;
        octets = 8;
        packet.class = Class::Flow;
    } else if header.proto == proto::TCP {
        let ports: Ports = frame.read(l4).ok_or(Reason::Truncated)?;
        let tail: TcpTail = frame.read(l4 + 4).ok_or(Reason::Truncated)?;
        octets = ((tail.offset >> 4) as u16) * 4;
        if octets < 20 {
            return Err(Reason::Malformed);
        }
        packet.tuple.sport = ports.src;
        packet.tuple.dport = ports.dst;
        packet.flags = tail.flags & (tcp::FIN | tcp::SYN | tcp::RST | tcp::ACK | tcp::URG);
        packet.seq = tail.sequence.get();
        packet.ack = tail.acknowledgement.get();
        packet.window = tail.window.get();
        packet.class = Class::Flow;
    } else if header.proto == F::ICMP as u32 {
        let icmp: IcmpHeader = frame.read(l4).ok_or(Reason::Truncated)?;
        octets = 8;
        if let Some((ports, answer)) = icmp.query() {
            packet.tuple.sport = ports.src;
            packet.tuple.dport = ports.dst;
            packet.answer = answer;
            packet.class = Class::Flow;
        } else if matches!(icmp.kind, 3 | 4 | REDIRECT | 11 | 12) {
            packet.class = Class::IcmpError;
        }
    } else if header.proto == proto::SCTP {
        let ports: Ports = frame.read(l4).ok_or(Reason::Truncated)?;
        let tail: SctpTail = frame.read(l4 + 4).ok_or(Reason::Truncated)?;
        octets = 16;
        packet.tuple.sport = ports.src;
        packet.tuple.dport = ports.dst;
        packet.flags = tail.chunk;
        packet.class = Class::Flow;
    } else if proto::is_portless(header.proto, F::ICMP as u32) {
        packet.class = Class::Portless;
    }
    packet.headers += octets;
    // Only TCP is aggregated beyond what the length field allows (BIG TCP).
    if header.len == 0 {
        if header.proto != proto::TCP {
            return Err(Reason::Malformed);
        }
    } else if header.len < packet.headers {
        return Err(Reason::Malformed);
    }
    Ok(())
}

impl<F: Family> Packet<F> {
    /// Bytes of the network header.
    #[inline(always)]
    #[must_use]
    pub const fn network(&self) -> u16 {
        self.l4 as u16 - self.l3 as u16
    }
}
