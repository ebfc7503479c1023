// SPDX-License-Identifier: MIT OR Apache-2.0
//! The IPv4 header (RFC 791): read, checked and rewritten.

use bytemuck::{Pod, Zeroable};

use crate::family::{Address, Be16, Be32, V4};
use crate::reason::Reason;
use crate::wire::frame::Frame;
use crate::wire::header::{Header, Ip};
use crate::wire::{checksum, prohibit};

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
/// "More fragments" and the fragment offset, without "don't fragment".
const IPV4_FRAGMENT: u16 = 0x3fff;
const IPV4_OFFSET: u16 = 0x1fff;
const IPV4_MORE: u16 = 0x2000;

impl Ip for V4 {
    #[inline(always)]
    fn header(frame: &Frame<'_>, l3: usize) -> Result<Header<Self>, Reason> {
        let header: Ipv4Header = frame.read(l3).ok_or(Reason::Truncated)?;
        let octets = ((header.version_ihl & 0x0f) as usize) * 4;
        if header.version_ihl >> 4 != 4 || octets < 20 {
            return Err(Reason::Malformed);
        }
        // A length that is too small, but not zero.
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
            later_fragment: fragment & IPV4_OFFSET != 0,
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
            // TTL and protocol share a 16-bit word; the TTL is its high byte.
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

    const REFUSAL: usize = prohibit::IPV4;

    #[inline(always)]
    fn prohibit(frame: &mut Frame<'_>, l3: usize, from: Be32, quoted: u8) -> bool {
        prohibit::ipv4(frame, l3, from, quoted)
    }
}
