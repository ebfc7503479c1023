// SPDX-License-Identifier: MIT OR Apache-2.0
//! Parses an IPv6 packet: its header, and the upper-layer header behind the extension headers.

use bytemuck::{Pod, Zeroable};

use super::Host6;
use crate::family::{Be16, Be128};
use crate::meta::Meta;

/// The IPv6 header (RFC 8200 section 3).
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Header {
    version: u8,
    label: [u8; 3],
    len: Be16,
    /// The protocol of the next header.
    pub(super) next: u8,
    pub(super) hop_limit: u8,
    pub(super) src: Be128,
    pub(super) dst: Be128,
}

/// Bytes of the IPv6 header.
pub(super) const HEADER: u32 = size_of::<Header>() as u32;

/// The upper-layer header.
#[derive(Clone, Copy)]
pub(super) struct Upper {
    /// Its protocol.
    pub(super) proto: u8,
    /// Its offset; for a later fragment, the offset at which it would be.
    pub(super) at: u32,
    /// The end of the packet. The kernel cuts off whatever the frame has behind it.
    end: u32,
    /// Whether the packet is the first of several fragments.
    pub(super) first: bool,
    /// Whether the packet is a later fragment, which has no upper-layer header.
    pub(super) later: bool,
    /// Whether a routing header still sends the packet to another destination than its header
    /// names.
    pub(super) detours: bool,
}

impl Upper {
    /// The value at `offset` of the header, if it is completely inside of the packet.
    #[inline(always)]
    pub(super) fn load<T: Pod>(&self, host: &impl Host6, offset: u32) -> Option<T> {
        let at = self.at + offset;
        if at + size_of::<T>() as u32 > self.end {
            return None;
        }
        host.load(at)
    }
}

/// Extension headers that are skipped (RFC 8200 section 4).
mod extension {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const DESTINATION: u8 = 60;
    /// At most this many are skipped.
    pub(super) const MOST: u32 = 8;
}

/// The IPv6 header, if the packet has a valid one.
#[inline(always)]
pub(super) fn header<T: Host6>(host: &T, meta: &Meta) -> Option<Header> {
    let header: Header = host.load(meta.l3 as u32)?;
    (header.version >> 4 == 6).then_some(header)
}

/// Skips the extension headers; `None` if their end is not found.
#[inline(always)]
pub(super) fn upper<T: Host6>(host: &T, meta: &Meta, header: &Header) -> Option<Upper> {
    let at = meta.l3 as u32 + HEADER;
    let mut upper = Upper {
        proto: header.next,
        at,
        // A jumbogram (RFC 2675), also one that the kernel has built from many packets (GRO).
        end: match header.len.get() {
            0 => u32::MAX,
            len => at + len as u32,
        },
        first: false,
        later: false,
        detours: false,
    };
    for _ in 0..extension::MOST {
        let unit = match upper.proto {
            extension::HOP_BY_HOP | extension::ROUTING | extension::DESTINATION => 8,
            extension::AUTHENTICATION => 4,
            extension::FRAGMENT => 0,
            _ => return Some(upper),
        };
        let [next, len, offset @ .., _, _, _, _] = upper.load::<[u8; 8]>(host, 0)?;
        if upper.proto == extension::ROUTING {
            upper.detours |= offset[1] != 0;
        }
        upper.proto = next;
        upper.at += match unit {
            8 => (len as u32 + 1) * 8,
            4 => (len as u32 + 2) * 4,
            _ => {
                let field = u16::from_be_bytes(offset);
                if field & !7 != 0 {
                    upper.later = true;
                    return Some(upper);
                }
                upper.first |= field & 1 != 0;
                8
            }
        };
    }
    None
}
