// SPDX-License-Identifier: MIT OR Apache-2.0
//! Telling a container that it is refused: its own packet becomes the quote of an ICMP error that
//! says "communication administratively prohibited" (RFC 5508 REQ-8, RFC 1812 section 5.2.7.1).
//!
//! Only containers are told: their addresses are checked, while an answer to whatever claims to come
//! from outside would help a flood on.

use crate::family::{Address, Be16, Be32, Family};
use crate::flow::End;
use crate::frame::Frame;
use crate::parse::proto;
use crate::pipeline::{PacketContext, Side, Steps, mark};
use crate::quota;

/// The answer to a refused packet.
#[derive(Clone, Copy, Debug)]
pub struct Refusal<F: Family> {
    /// Whom it is from: the container's gateway.
    pub from: F::Addr,
    /// How many bytes of the packet it quotes, network header included.
    pub quoted: u8,
    /// The mark that leads it past the hooks on its way back.
    pub mark: u32,
}

impl<F: Family, T: Steps<F>> PacketContext<'_, F, T> {
    /// Whether and how a container is told that its packet is refused. Not with IP options, which a
    /// quote of fixed size would cut, nor of a whole train of segments, nor of less than a quote has to
    /// show, nor too often.
    #[inline(always)]
    pub fn refuse(&self) -> Option<Refusal<F>> {
        let (tables, packet) = (self.tables, self.packet);
        let told = self.side != Side::Outside
            && packet.class.has_tuple()
            && !packet.is_fragment
            && !packet.options
            && self.meta.l3 as usize == ETHERNET
            && self.meta.segment == 0
            && self.frame.read::<[Be32; 2]>(packet.l4 as usize).is_some();
        if !told {
            return None;
        }
        let bridge = tables.device(self.meta.ifindex)?.bridge;
        let network = tables.network(bridge)?;
        if network.gateway == F::Addr::ANY {
            return None;
        }
        let slot = tables
            .endpoint_slot(packet.tuple.src)
            .unwrap_or(network.default_endpoint);
        let generation = tables.endpoint(slot)?.generation;
        if !quota::may_answer(tables, End { slot, generation }) {
            return None;
        }
        // All of a header with a checksum at its end: where that is still to be finished, the kernel does not let
        // the packet be cut before that.
        let transport = if packet.tuple.proto == proto::TCP {
            TCP_HEADER
        } else if packet.tuple.proto == proto::SCTP {
            SCTP_HEADER
        } else {
            QUOTED_TRANSPORT
        };
        Some(Refusal {
            from: network.gateway,
            quoted: packet.l4 - packet.l3 + transport,
            mark: if self.side == Side::Veth {
                mark::DONE
            } else {
                mark::ROUTED
            },
        })
    }
}

/// Where the network header begins.
const ETHERNET: usize = 14;
/// Of a TCP header, all that is no option.
const TCP_HEADER: u8 = 20;
/// SCTP's common header.
const SCTP_HEADER: u8 = 12;
/// Of other transports, what RFC 792 demands: there is no more of theirs.
const QUOTED_TRANSPORT: u8 = 8;

impl<F: Family> Refusal<F> {
    /// How long the frame is that carries it.
    #[inline(always)]
    #[must_use]
    pub const fn octets(&self) -> usize {
        ETHERNET + F::REFUSAL + self.quoted as usize
    }

    /// Writes the answer's headers before the packet that it quotes. The frame is what came, with
    /// [`Family::REFUSAL`] bytes put in behind the Ethernet header and cut to [`Self::bytes`].
    ///
    /// `false` if the frame is shorter than that, which cannot be.
    #[inline(always)]
    pub fn write(&self, frame: &mut Frame<'_>) -> bool {
        let (Some(to), Some(from)) = (frame.read::<[u8; 6]>(0), frame.read::<[u8; 6]>(6)) else {
            return false;
        };
        frame.write(0, from)
            && frame.write(6, to)
            && F::prohibit(frame, ETHERNET, self.from, self.quoted)
    }
}

/// Bytes of an IPv4 header without options and of ICMP's header.
pub(crate) const IPV4: usize = 20 + 8;
/// The word of an IPv4 header that is its source address.
const IPV4_SOURCE: usize = 3;

/// [`Family::prohibit`] of IPv4: type 3, code 13.
#[inline(always)]
pub(crate) fn ipv4(frame: &mut Frame<'_>, l3: usize, from: Be32, quoted: u8) -> bool {
    let Some(quote) = frame.read::<[Be32; 7]>(l3 + IPV4) else {
        return false;
    };
    let to = quote[IPV4_SOURCE];
    let mut sum = sum(&quote);
    if quoted == 20 + TCP_HEADER {
        let Some(rest) = frame.read::<[Be32; 3]>(l3 + IPV4 + size_of_val(&quote)) else {
            return false;
        };
        sum += self::sum(&rest);
    }
    let what = Be16::new(3 << 8 | 13);
    let icmp = [
        what,
        finish(sum + what.word() as u32),
        Be16::new(0),
        Be16::new(0),
    ];
    // Precedence 6 as the kernel's own errors have it; whole, or not at all: no identification.
    let mut ip = [
        Be16::new(0x45c0),
        Be16::new(IPV4 as u16 + quoted as u16),
        Be16::new(0),
        Be16::new(0x4000),
        Be16::new(64 << 8 | proto::ICMP as u16),
        Be16::new(0),
    ];
    let fixed = ip[0].word() as u32 + ip[1].word() as u32 + ip[3].word() as u32;
    ip[5] = finish(fixed + ip[4].word() as u32 + from.sum() + to.sum());
    frame.write(l3, ip)
        && frame.write(l3 + 12, from)
        && frame.write(l3 + 16, to)
        && frame.write(l3 + 20, icmp)
}

/// The unfolded sum of 32-bit words.
#[inline(always)]
fn sum(words: &[Be32]) -> u32 {
    words.iter().map(|word| word.sum()).sum()
}

/// The checksum over what adds up to `sum`.
#[inline(always)]
const fn finish(sum: u32) -> Be16 {
    Be16::from_word(!crate::checksum::fold(sum))
}
