// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tells a container that its packet is refused: turns the packet into the quote of an ICMP error
//! "communication administratively prohibited" (RFC 5508 REQ-8, RFC 1812 section 5.2.7.1).
//!
//! Only containers are answered, because their addresses are verified. Answers to unverified
//! sources outside would amplify a flood.

use crate::abi::End;
use crate::conntrack::quota;
use crate::context::PacketContext;
use crate::family::{Address, Be32, Family};
use crate::mark;
use crate::meta::Side;
use crate::subprograms::Steps;
use crate::wire::frame::Frame;
use crate::wire::header::Ip;
use crate::wire::prohibit::TCP_HEADER;
use crate::wire::proto;

/// The ICMP error about a refused packet.
#[derive(Clone, Copy, Debug)]
pub struct Refusal<F: Family> {
    /// The source address: the container's gateway.
    pub from: F::Addr,
    /// The number of quoted bytes, network header included.
    pub quoted: u8,
    /// The mark with which the error passes the hooks on its way back.
    pub mark: u32,
}

impl<F: Ip, T: Steps<F>> PacketContext<'_, F, T> {
    /// The error about this packet, if the container gets one. It gets none about a packet with IP
    /// options, which a quote of fixed size would cut; about a GSO packet; about a packet with less
    /// than a quote has to contain; or beyond the rate limit.
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
        // A quote contains the whole header up to its checksum: while the checksum is still to be
        // completed, the kernel refuses to cut the packet before it.
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

/// Offset of the network header behind an Ethernet header.
const ETHERNET: usize = 14;
/// Bytes of SCTP's common header.
const SCTP_HEADER: u8 = 12;
/// For other transports the 8 bytes that RFC 792 demands: their whole header.
const QUOTED_TRANSPORT: u8 = 8;

impl<F: Ip> Refusal<F> {
    /// The length of the frame with the error.
    #[inline(always)]
    #[must_use]
    pub const fn octets(&self) -> usize {
        ETHERNET + F::REFUSAL + self.quoted as usize
    }

    /// Writes the error's headers before the packet that it quotes. The frame is the refused one,
    /// with [`Ip::REFUSAL`] bytes inserted behind the Ethernet header and cut to
    /// [`Self::octets`].
    ///
    /// `false` if the frame is shorter than that, which cannot happen.
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
