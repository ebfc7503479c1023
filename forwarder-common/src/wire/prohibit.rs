// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ICMP error "administratively prohibited" (RFC 1812 section 5.2.7.1).

use crate::family::{Address, Be16, Be32};
use crate::wire::frame::Frame;
use crate::wire::{checksum, proto};

/// Bytes of an IPv4 header without options and of an ICMP header.
pub(crate) const IPV4: usize = 20 + 8;
/// Bytes of a TCP header without options.
pub(crate) const TCP_HEADER: u8 = 20;
/// Index of the source address in the 32-bit words of an IPv4 header.
const IPV4_SOURCE: usize = 3;

/// [`Ip::prohibit`](super::header::Ip::prohibit) for IPv4: type 3, code 13.
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
    // Precedence 6, as in the kernel's own ICMP errors. The packet must not be fragmented, so it
    // needs no identification.
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

/// The checksum of data whose sum is `sum`.
#[inline(always)]
const fn finish(sum: u32) -> Be16 {
    Be16::from_word(!checksum::fold(sum))
}
