// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reading a packet: from a frame to a tuple and the few facts that the pipeline asks about.

use bytemuck::{Pod, Zeroable};

use crate::abi::Tuple;
use crate::family::{Address, Be16, Be32, Family, V4};
use crate::frame::Frame;
use crate::reason::Reason;
use crate::{checksum, refusal, tcp};

/// IP protocol numbers, host order.
pub mod proto {
    /// ICMP.
    pub const ICMP: u32 = 1;
    /// TCP.
    pub const TCP: u32 = 6;
    /// UDP.
    pub const UDP: u32 = 17;
    /// DCCP.
    const DCCP: u32 = 33;
    /// SCTP.
    pub const SCTP: u32 = 132;
    /// UDP-Lite.
    const UDP_LITE: u32 = 136;

    /// Whether a protocol other than `icmp` has neither ports nor a checksum over the addresses, as
    /// far as we know: then a packet is translated by its network header alone.
    #[inline(always)]
    #[must_use]
    pub const fn is_portless(number: u32, icmp: u32) -> bool {
        number != icmp && !matches!(number, TCP | UDP | DCCP | SCTP | UDP_LITE)
    }
}

/// A network header, whatever its family.
#[derive(Clone, Copy, Debug)]
pub struct Header<F: Family> {
    /// Source address.
    pub src: F::Addr,
    /// Destination address.
    pub dst: F::Addr,
    /// The transport's protocol number.
    pub proto: u32,
    /// Where the transport header begins, from the frame's start.
    pub l4: usize,
    /// The packet's length from its network header on; 0 for a TCP segment that is yet to be cut and
    /// longer than the field can say (Linux' BIG TCP).
    pub len: u16,
    /// Hops left.
    pub hops: u8,
    /// Options or extension headers are there.
    pub options: bool,
    /// Part of a fragmented datagram.
    pub fragment: bool,
    /// A fragment that begins in the middle, without a transport header.
    pub tail: bool,
    /// Which datagram a fragment is of.
    pub id: Be16,
    /// Where in the datagram it begins, in bytes.
    pub offset: u16,
    /// More of the datagram follows.
    pub more: bool,
}

/// What a packet is to the pipeline.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Class {
    /// Whatever cannot be translated.
    #[default]
    Other,
    /// TCP, UDP, SCTP or an ICMP query with all of its transport header: has a tuple.
    Flow,
    /// A protocol without ports, such as GRE and ESP: has a tuple of addresses.
    Portless,
    /// A fragment; its tuple is whole only if it is the first.
    Fragment,
    /// An ICMP error that quotes another packet.
    IcmpError,
    /// Its network header is one, its transport header is not: names of both ends without ports.
    Unreadable,
}

impl Class {
    /// Whether packets of this class may belong to a flow.
    #[inline(always)]
    #[must_use]
    pub const fn has_tuple(self) -> bool {
        matches!(self, Self::Flow | Self::Portless)
    }

    /// What a whole packet of a tuple is.
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

/// A packet, read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Packet<F: Family> {
    /// Names of both ends. Ports are zero where there are none.
    pub tuple: Tuple<F>,
    /// What it is.
    pub class: Class,
    /// Where the network header begins, from the frame's start. A byte: the BPF stack is small,
    /// and the verifier knows a byte's bounds.
    pub l3: u8,
    /// Where the transport header begins, from the frame's start.
    pub l4: u8,
    /// Length from the network header on, as the header says: see [`Header::len`].
    pub len: u16,
    /// What decides whether it fits: its length, or that of its datagram's first fragment, which all
    /// others have to follow.
    pub size: u16,
    /// Network and transport header together, in bytes.
    pub headers: u16,
    /// Hops left.
    pub hops: u8,
    /// TCP's flag byte, the type of SCTP's first chunk; 0 for others.
    pub flags: u8,
    /// TCP's sequence number.
    pub seq: u32,
    /// TCP's acknowledgement.
    pub ack: u32,
    /// TCP's window as announced.
    pub window: u16,
    /// IP options are there.
    pub options: bool,
    /// A fragment without a transport header.
    pub tail: bool,
    /// Part of a fragmented datagram.
    pub is_fragment: bool,
    /// A first fragment, as a whole packet a flow's: its transport header is all there.
    pub named: bool,
    /// A fragment that has not met the others of its datagram yet: set by the pipeline.
    pub apart: bool,
    /// A fragment that others follow.
    pub more: bool,
    /// Which datagram a fragment is of.
    pub id: Be16,
    /// Where in the datagram a fragment begins, in bytes.
    pub offset: u16,
    /// An ICMP query's reply: never opens a flow.
    pub answer: bool,
}

/// IPv4 header (RFC 791 section 3.1).
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Ipv4Header {
    version_ihl: u8,
    tos: u8,
    len: Be16,
    id: Be16,
    fragment: Be16,
    ttl: u8,
    proto: u8,
    checksum: Be16,
    src: Be32,
    dst: Be32,
}

const IPV4_SRC: usize = 12;
const IPV4_DST: usize = 16;
const IPV4_TTL: usize = 8;
const IPV4_CHECKSUM: usize = 10;
/// "More fragments" and the fragment offset; not "don't fragment".
const IPV4_FRAGMENT: u16 = 0x3fff;
const IPV4_OFFSET: u16 = 0x1fff;
const IPV4_MORE: u16 = 0x2000;

impl Family for V4 {
    type Addr = Be32;
    const ETHERTYPE: u16 = 0x0800;
    const ICMP: u8 = 1;

    #[inline(always)]
    fn header(frame: &Frame<'_>, l3: usize) -> Result<Header<Self>, Reason> {
        let header: Ipv4Header = frame.read(l3).ok_or(Reason::Truncated)?;
        let octets = ((header.version_ihl & 0x0f) as usize) * 4;
        if header.version_ihl >> 4 != 4 || octets < 20 {
            return Err(Reason::Malformed);
        }
        // Too short, and not zero.
        if (header.len.get().wrapping_sub(1) as usize) < octets - 1 {
            return Err(Reason::Malformed);
        }
        let fragment = header.fragment.get();
        Ok(Header {
            src: header.src,
            dst: header.dst,
            proto: header.proto as u32,
            l4: l3 + octets,
            len: header.len.get(),
            hops: header.ttl,
            options: octets != 20,
            fragment: fragment & IPV4_FRAGMENT != 0,
            tail: fragment & IPV4_OFFSET != 0,
            id: header.id,
            offset: (fragment & IPV4_OFFSET) << 3,
            more: fragment & IPV4_MORE != 0,
        })
    }

    /// RFC 1812 section 5.2.2 (2).
    #[inline(always)]
    fn is_intact(frame: &Frame<'_>, l3: usize) -> bool {
        let Some(words) = frame.read::<[u32; 5]>(l3) else {
            return false;
        };
        let [a, b, c, d, e] = words.map(u64::from);
        checksum::fold_wide(a + b + c + d + e) == 0xffff
    }

    #[inline(always)]
    fn readdress(frame: &mut Frame<'_>, l3: usize, src: Be32, dst: Be32, hop: bool) -> bool {
        let Some(old) = frame.read::<Ipv4Header>(l3) else {
            return false;
        };
        let mut delta = checksum::delta(old.src.sum() + old.dst.sum(), src.sum() + dst.sum());
        let mut ttl = old.ttl;
        if hop {
            // TTL and protocol share a word; one less in its high byte.
            let before = Be16::new((ttl as u16) << 8).word();
            ttl = ttl.wrapping_sub(1);
            let after = Be16::new((ttl as u16) << 8).word();
            delta = checksum::add(delta, checksum::delta(before as u32, after as u32));
        }
        frame.write(l3 + IPV4_TTL, ttl)
            && frame.write(l3 + IPV4_CHECKSUM, checksum::update(old.checksum, delta))
            && frame.write(l3 + IPV4_SRC, src)
            && frame.write(l3 + IPV4_DST, dst)
    }

    #[inline(always)]
    fn lift(frame: &mut Frame<'_>, l3: usize) -> bool {
        let Some(old) = frame.read::<Ipv4Header>(l3) else {
            return false;
        };
        let ttl = old.ttl.saturating_add(1);
        let word = |ttl: u8| Be16::new((ttl as u16) << 8).word() as u32;
        let delta = checksum::delta(word(old.ttl), word(ttl));
        frame.write(l3 + IPV4_TTL, ttl)
            && frame.write(l3 + IPV4_CHECKSUM, checksum::update(old.checksum, delta))
    }

    const REFUSAL: usize = refusal::IPV4;

    #[inline(always)]
    fn prohibit(frame: &mut Frame<'_>, l3: usize, from: Be32, quoted: u8) -> bool {
        refusal::ipv4(frame, l3, from, quoted)
    }
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

/// SCTP's common header after the ports, and its first chunk's (RFC 9260 sections 3.1 and 3.2).
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
    /// The ports of an ICMP query, and whether it is the reply. The asker's port is the identifier,
    /// the other one the kind of query: the request's type, and 0 for echo. `None` for what is no
    /// query (`invmap` of nf_conntrack_proto_icmp.c).
    #[inline(always)]
    pub(crate) fn query(&self) -> Option<(Ports, bool)> {
        // By arithmetic: of a `match`, LLVM makes a table, which BPF has no place for but the stack.
        let (asked, answer) = if self.kind & !8 == 0 {
            (0, self.kind == 0)
        } else if self.kind.wrapping_sub(13) < 6 {
            // Time stamp, information, address mask: the reply's type is one more.
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

/// Reads the packet whose network header is at `l3` into `packet`: in place, since a large value
/// on its way back costs as much as reading it.
///
/// # Errors
/// [`Reason::Truncated`] where a header is not wholly in the frame, [`Reason::Malformed`] where
/// it contradicts itself. `packet` says nothing then, unless it is [`Class::Unreadable`].
#[inline(always)]
pub fn parse<F: Family>(
    frame: &Frame<'_>,
    l3: usize,
    packet: &mut Packet<F>,
) -> Result<(), Reason> {
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
    packet.tail = header.tail;
    packet.is_fragment = header.fragment;
    packet.more = header.more;
    packet.id = header.id;
    packet.offset = header.offset;
    packet.apart = false;
    packet.tuple.sport = Be16::new(0);
    packet.tuple.dport = Be16::new(0);
    packet.headers = ip;
    packet.flags = 0;
    packet.answer = false;
    packet.named = false;
    packet.class = Class::Other;
    if header.tail {
        packet.class = Class::Fragment;
        return Ok(());
    }
    let read = transport(frame, &header, packet);
    if header.fragment {
        // What cannot be read is no error: the kernel puts it together before anybody asks.
        packet.named = read.is_ok() && packet.class.has_tuple();
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

/// Reads the transport header behind a network header that was read into `packet`.
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
        // Length and checksum must be there too: the rewrite touches the latter.
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
    // Too short, and not zero.
    if header.len.wrapping_sub(1) < packet.headers - 1 {
        return Err(Reason::Malformed);
    }
    // Only TCP is put together to more than the field can say.
    if header.len == 0 && header.proto != proto::TCP {
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
