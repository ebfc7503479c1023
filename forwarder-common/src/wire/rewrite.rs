// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rewrites packets: applies an edit to a frame, and declares how packets leave a hook.
//!
//! Everything but the transport checksum is the same for all callers and is done by [`headers`].
//! The checksum has two implementations: [`checksum()`] by RFC 1624 for XDP and for hosts; and the
//! kernel's helper for tcx, because only the kernel knows whether the checksum is still to be
//! completed (`CHECKSUM_PARTIAL`). A parity test checks that both give the same result.

use crate::family::{Be16, Family};
use crate::wire::frame::Frame;
use crate::wire::header::Ip;
use crate::wire::parse::{Packet, Ports};
use crate::wire::{checksum, crc, proto};

/// What to write into a packet. An address or a port that does not change has its old value.
#[derive(Clone, Copy, Debug)]
pub struct Edit<F: Family> {
    /// Offset of the network header.
    pub l3: u8,
    /// Offset of the transport header.
    pub l4: u8,
    /// IP protocol number.
    pub proto: u8,
    /// New source address.
    pub src: F::Addr,
    /// New destination address.
    pub dst: F::Addr,
    /// New source port, or the identifier of an ICMP request.
    pub sport: Be16,
    /// New destination port, or the identifier of an ICMP reply.
    pub dport: Be16,
    /// Whether the packet is an ICMP reply.
    pub answer: bool,
    /// Whether the packet has a transport header: a later fragment has none.
    pub transport: bool,
    /// Checksum delta of the addresses.
    pub address_delta: u16,
    /// Checksum delta of the ports.
    pub port_delta: u16,
    /// Whether to decrement the hop limit.
    pub hop: bool,
}

impl<F: Family> Edit<F> {
    /// An edit that changes nothing in `packet` yet.
    #[inline(always)]
    #[must_use]
    pub fn of(packet: &Packet<F>) -> Self {
        Self {
            l3: packet.l3,
            l4: packet.l4,
            proto: packet.tuple.proto as u8,
            src: packet.tuple.src,
            dst: packet.tuple.dst,
            sport: packet.tuple.sport,
            dport: packet.tuple.dport,
            answer: packet.answer,
            transport: !packet.later_fragment,
            address_delta: 0,
            port_delta: 0,
            hop: false,
        }
    }

    /// The offset of the transport checksum, for the protocols that have one.
    #[inline(always)]
    #[must_use]
    pub fn checksum_at(&self) -> Option<usize> {
        match self.proto as u32 {
            proto::TCP => Some(self.l4 as usize + 16),
            proto::UDP => Some(self.l4 as usize + 6),
            _ => None,
        }
    }
}

/// Offset of the checksum in an SCTP header.
pub(crate) const SCTP_CHECKSUM: usize = 8;
const ICMP_CHECKSUM: usize = 2;
const ICMP_ID: usize = 4;

/// Writes network and transport header, except for the TCP or UDP checksum. The ICMP checksum has
/// no pseudo header and is never offloaded, so it is updated here. The SCTP checksum is updated by
/// `shift`, which is [`crc::shift`].
///
/// `false` if the frame is shorter than the packet that was parsed from it, which cannot happen.
#[inline(always)]
pub fn headers<F: Ip>(
    frame: &mut Frame<'_>,
    edit: &Edit<F>,
    shift: impl FnOnce(u32, u16) -> u32,
) -> bool {
    if !F::readdress(frame, edit.l3 as usize, edit.src, edit.dst, edit.hop) {
        return false;
    }
    if !edit.transport {
        return true;
    }
    let l4 = edit.l4 as usize;
    match edit.proto as u32 {
        proto::TCP | proto::UDP => frame.write(
            l4,
            Ports {
                src: edit.sport,
                dst: edit.dport,
            },
        ),
        proto::SCTP => {
            let (Some(old), Some(crc)) = (frame.read(l4), frame.read(l4 + SCTP_CHECKSUM)) else {
                return false;
            };
            let new = bytemuck::cast(Ports {
                src: edit.sport,
                dst: edit.dport,
            });
            // Bytes behind the packet in its frame do not belong to the checksum.
            let Ok(header) = F::header(frame, edit.l3 as usize) else {
                return false;
            };
            let octets = header.len - (header.l4 - edit.l3 as usize) as u16;
            let crc = crc::update(crc, [old, new], octets, shift);
            frame.write(l4 + SCTP_CHECKSUM, crc) && frame.write(l4, new)
        }
        icmp if icmp == F::ICMP as u32 => {
            let id = if edit.answer { edit.dport } else { edit.sport };
            let Some(old) = frame.read::<Be16>(l4 + ICMP_CHECKSUM) else {
                return false;
            };
            frame.write(l4 + ICMP_ID, id)
                && frame.write(l4 + ICMP_CHECKSUM, checksum::update(old, edit.port_delta))
        }
        _ => true,
    }
}

/// Updates the TCP or UDP checksum of a packet whose checksum is complete.
#[inline(always)]
pub fn checksum<F: Family>(frame: &mut Frame<'_>, edit: &Edit<F>) -> bool {
    if !edit.transport {
        return true;
    }
    let Some(at) = edit.checksum_at() else {
        return true;
    };
    let Some(old) = frame.read::<Be16>(at) else {
        return false;
    };
    let delta = checksum::add(edit.address_delta, edit.port_delta);
    let new = if edit.proto as u32 == proto::UDP {
        checksum::update_udp(old, delta)
    } else {
        checksum::update(old, delta)
    };
    frame.write(at, new)
}
