// SPDX-License-Identifier: MIT OR Apache-2.0
//! ICMP errors: parses the quoted packet, and translates it back to what its sender sent.
//!
//! RFC 5508 REQ-4 and REQ-5: the quoted headers are translated back, with all checksums that cover
//! them; type, code, MTU and extensions (RFC 4884) stay.

use crate::abi::Tuple;
use crate::family::{Address, Be16, Family};
use crate::wire::frame::Frame;
use crate::wire::header::Ip;
use crate::wire::parse::{IcmpHeader, Packet, Ports, REDIRECT};
use crate::wire::rewrite::SCTP_CHECKSUM;
use crate::wire::{checksum, crc, proto};

/// The packet that an ICMP error quotes.
#[derive(Clone, Copy, Debug)]
pub struct Quote<F: Family> {
    /// Its tuple, as the error's sender saw it.
    pub tuple: Tuple<F>,
    /// Whether it is the reply to an ICMP query.
    answer: bool,
    l3: u8,
    l4: u8,
    /// The end of the quote, by the error's own length.
    end: u16,
}

/// Whether the error is a redirect, which must not cross a translation.
#[inline(always)]
#[must_use]
pub fn is_redirect<F: Family>(frame: &Frame<'_>, packet: &Packet<F>) -> bool {
    frame.read::<u8>(packet.l4 as usize) == Some(REDIRECT)
}

/// The offset of the quoted packet.
#[inline(always)]
#[must_use]
pub fn quoted_at<F: Family>(packet: &Packet<F>) -> usize {
    packet.l4 as usize + size_of::<IcmpHeader>()
}

/// Parses the quoted packet; `None` if too little of it is quoted to identify its flow.
#[inline(always)]
pub fn quote<F: Ip>(frame: &Frame<'_>, packet: &Packet<F>) -> Option<Quote<F>> {
    let l3 = quoted_at(packet);
    let header = F::header(frame, l3).ok()?;
    if header.later_fragment || header.len == 0 {
        return None;
    }
    let l4 = header.l4;
    let mut tuple = Tuple {
        src: header.src,
        dst: header.dst,
        sport: Be16::default(),
        dport: Be16::default(),
        proto: header.proto,
    };
    let mut answer = false;
    match header.proto {
        proto::TCP | proto::UDP | proto::SCTP => {
            let ports: Ports = frame.read(l4)?;
            let _: Ports = frame.read(l4 + 4)?;
            tuple.sport = ports.src;
            tuple.dport = ports.dst;
        }
        icmp if icmp == F::ICMP as u32 => {
            let icmp: IcmpHeader = frame.read(l4)?;
            let (ports, reply) = icmp.query()?;
            tuple.sport = ports.src;
            tuple.dport = ports.dst;
            answer = reply;
        }
        portless if proto::is_portless(portless, F::ICMP as u32) => {}
        _ => return None,
    }
    let end = packet.len.saturating_add(packet.l3 as u16);
    Some(Quote {
        tuple,
        answer,
        l3: l3 as u8,
        l4: l4 as u8,
        end,
    })
}

/// The new values of the error's own header.
#[derive(Clone, Copy, Debug)]
pub struct Outer<F: Family> {
    /// Source address.
    pub src: F::Addr,
    /// Destination address.
    pub dst: F::Addr,
    /// Whether to decrement the hop limit.
    pub hop: bool,
}

/// Rewrites the quoted packet to `inner` and the error's own header to `outer`.
///
/// The ICMP checksum covers the quote, so it has to absorb every change there that does not cancel
/// itself out. `false` if the frame is shorter than the parsed packet, which cannot happen.
#[inline(never)]
pub fn restore<F: Ip>(
    frame: &mut Frame<'_>,
    packet: &Packet<F>,
    quote: &Quote<F>,
    inner: &Tuple<F>,
    outer: &Outer<F>,
) -> bool {
    let Some(icmp) = frame.read::<IcmpHeader>(packet.l4 as usize) else {
        return false;
    };
    let old = &quote.tuple;
    let addresses = checksum::delta(
        old.src.sum() + old.dst.sum(),
        inner.src.sum() + inner.dst.sum(),
    );
    let ports = checksum::delta(
        old.sport.word() as u32 + old.dport.word() as u32,
        inner.sport.word() as u32 + inner.dport.word() as u32,
    );
    // The changes of the quoted addresses and of the quoted header checksum cancel each other out;
    // those of the ports remain.
    let mut absorb = ports;
    let written = match old.proto {
        proto::TCP => {
            frame.write(
                quote.l4 as usize,
                Ports {
                    src: inner.sport,
                    dst: inner.dport,
                },
            ) && match checksum_at(frame, quote, 16) {
                Some((at, field)) => {
                    let new = checksum::update(field, checksum::add(addresses, ports));
                    absorb = checksum::add(absorb, change(field, new));
                    frame.write(at, new)
                }
                None => true,
            }
        }
        proto::UDP => {
            frame.write(
                quote.l4 as usize,
                Ports {
                    src: inner.sport,
                    dst: inner.dport,
                },
            ) && match checksum_at(frame, quote, 6) {
                Some((at, field)) => {
                    let new = checksum::update_udp(field, checksum::add(addresses, ports));
                    absorb = checksum::add(absorb, change(field, new));
                    frame.write(at, new)
                }
                None => true,
            }
        }
        // The SCTP checksum is restored separately: see `restore_crc`.
        proto::SCTP => frame.write(
            quote.l4 as usize,
            Ports {
                src: inner.sport,
                dst: inner.dport,
            },
        ),
        icmp if icmp == F::ICMP as u32 => {
            let id = if quote.answer {
                inner.dport
            } else {
                inner.sport
            };
            frame.write(quote.l4 as usize + 4, id)
                && match checksum_at(frame, quote, 2) {
                    Some((at, field)) => {
                        let new = checksum::update(field, ports);
                        absorb = checksum::add(absorb, change(field, new));
                        frame.write(at, new)
                    }
                    None => true,
                }
        }
        _ => true,
    };
    written
        && F::readdress(frame, quote.l3 as usize, inner.src, inner.dst, false)
        && frame.write(
            packet.l4 as usize + 2,
            checksum::update(icmp.checksum, absorb),
        )
        && F::readdress(frame, packet.l3 as usize, outer.src, outer.dst, outer.hop)
}

/// The ports of a tuple as a packet's first four bytes.
#[inline(always)]
pub(crate) fn ports<F: Family>(tuple: &Tuple<F>) -> u32 {
    bytemuck::cast(Ports {
        src: tuple.sport,
        dst: tuple.dport,
    })
}

/// Restores the checksum of a quoted SCTP packet after its ports were rewritten, if the quote
/// contains the checksum. The quoted header tells the length of the packet. `ports` are the
/// packet's first four bytes, as quoted and as they are now.
#[inline(always)]
pub fn restore_crc<F: Ip>(
    frame: &mut Frame<'_>,
    packet: &Packet<F>,
    ports: [u32; 2],
    shift: impl FnOnce(u32, u16) -> u32,
) -> bool {
    let l3 = quoted_at(packet);
    let Ok(header) = F::header(frame, l3) else {
        return false;
    };
    let at = header.l4 + SCTP_CHECKSUM;
    if at + size_of::<u32>() > packet.len as usize + packet.l3 as usize {
        return true;
    }
    let (Some(before), Some(icmp)) = (frame.read(at), frame.read::<IcmpHeader>(packet.l4 as usize))
    else {
        return true;
    };
    let octets = header.len - (header.l4 - l3) as u16;
    let after = crc::update(before, ports, octets, shift);
    let [old, new] = [before, after].map(|crc| checksum::fold(crc) as u32);
    let sum = checksum::update(icmp.checksum, checksum::delta(old, new));
    frame.write(at, after) && frame.write(packet.l4 as usize + 2, sum)
}

/// The offset and value of the quoted transport checksum, if the quote contains it.
#[inline(always)]
fn checksum_at<F: Ip>(frame: &Frame<'_>, quote: &Quote<F>, offset: usize) -> Option<(usize, Be16)> {
    let at = quote.l4 as usize + offset;
    if at + 2 > quote.end as usize {
        return None;
    }
    Some((at, frame.read(at)?))
}

#[inline(always)]
fn change(old: Be16, new: Be16) -> u16 {
    checksum::delta(old.word() as u32, new.word() as u32)
}
