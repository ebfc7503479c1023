// SPDX-License-Identifier: MIT OR Apache-2.0
//! SCTP's checksum, a CRC32c (RFC 9260 appendix A), and its update without the packet.
//!
//! A CRC is linear: what a change of some bytes does to it depends on the change and on how far from
//! the packet's end it lies, and on nothing else in the packet. That is a multiplication by a power
//! of *x* among the polynomials over GF(2), modulo the CRC's own one. Polynomials stand mirrored here,
//! as the CRC's register does: the highest bit is the coefficient of 1.

use crate::tables::Attempt;

/// The Castagnoli polynomial without its highest power, mirrored.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// The eighth power of *x*: one byte further from the end.
const OCTET: u32 = 1 << (31 - 8);

/// The way of a register through so many bytes of zeros, by the binary digits of their number.
///
/// Of four bytes that change, read as a little-endian word of ones where they do, [`Shift::register`]
/// is in the end what changes in the CRC (as a little-endian word) of a message that ends `bytes`
/// after the first of them: the four go through the register, too.
#[derive(Clone, Copy, Debug)]
pub struct Shift {
    /// The register so far.
    pub register: u32,
    power: u32,
    octets: u32,
}

impl Shift {
    /// How many steps there are at most.
    pub const STEPS: u32 = u16::BITS;

    /// The way's beginning.
    #[inline(always)]
    #[must_use]
    pub const fn new(register: u32, octets: u16) -> Self {
        Self {
            register,
            power: OCTET,
            octets: octets as u32,
        }
    }
}

impl Attempt for Shift {
    /// One digit; whether it was the last one.
    #[inline(always)]
    fn once(&mut self) -> bool {
        if self.octets & 1 != 0 {
            self.register = product(self.register, self.power);
        }
        self.power = product(self.power, self.power);
        self.octets >>= 1;
        self.octets == 0
    }
}

/// The whole way at once.
#[must_use]
pub fn shift(register: u32, octets: u16) -> u32 {
    let mut shift = Shift::new(register, octets);
    while !shift.once() {}
    shift.register
}

/// The checksum field of a packet of so many bytes after its first four changed, all as they lie in
/// memory; `shift` is [`shift`].
///
/// One that is zero stays: nobody has made it yet, and whoever does will look at the whole packet (a
/// device, or the kernel's `skb_crc32c_csum_help`, for a socket that left it to them). BPF programs
/// cannot ask for that, and of those that were made one in 2^32 is zero.
#[inline(always)]
pub(crate) fn update(
    field: u32,
    [old, new]: [u32; 2],
    octets: u16,
    shift: impl FnOnce(u32, u16) -> u32,
) -> u32 {
    let change = u32::from_le(old ^ new);
    if field == 0 || change == 0 {
        return field;
    }
    field ^ shift(change, octets).to_le()
}

/// The product of two polynomials: from the highest power down, one times *x* and one more summand.
#[inline(always)]
const fn product(a: u32, b: u32) -> u32 {
    let mut product = 0_u32;
    let mut power = 0;
    while power < u32::BITS {
        let over = 0_u32.wrapping_sub(product & 1);
        product = product >> 1 ^ over & POLYNOMIAL;
        let summand = 0_u32.wrapping_sub(a >> power & 1);
        product ^= summand & b;
        power += 1;
    }
    product
}
