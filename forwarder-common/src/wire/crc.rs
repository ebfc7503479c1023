// SPDX-License-Identifier: MIT OR Apache-2.0
//! SCTP's checksum, a CRC32c (RFC 9260 appendix A), and its update without reading the packet.
//!
//! A CRC is linear: the effect of a change depends only on the changed bytes and on their distance
//! from the packet's end. It is a multiplication by a power of *x* in the polynomials over GF(2),
//! modulo the CRC's polynomial. Polynomials are mirrored here, as the CRC's register is: the
//! highest bit is the coefficient of 1.

use crate::attempt::Attempt;

/// The Castagnoli polynomial without its highest power, mirrored.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// The eighth power of *x*: one byte further from the end.
const OCTET: u32 = 1 << (31 - 8);

/// Shifts a CRC register through a number of zero bytes, by the binary digits of that number.
///
/// To get the change of the CRC after four bytes of a message changed, begin with the XOR of their
/// old and new values, read as a little-endian word, and shift by the number of bytes from the
/// first of the four to the message's end (the four pass through the register, too).
/// [`Shift::register`] is then the XOR of the old and new CRC, also as a little-endian word.
#[derive(Clone, Copy, Debug)]
pub struct Shift {
    /// The register so far.
    pub register: u32,
    power: u32,
    octets: u32,
}

impl Shift {
    /// The maximal number of steps.
    pub const STEPS: u32 = u16::BITS;

    /// A shift before its first step.
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
    /// Processes one binary digit; returns whether it was the last one.
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

/// The whole shift at once.
#[must_use]
pub fn shift(register: u32, octets: u16) -> u32 {
    let mut shift = Shift::new(register, octets);
    while !shift.once() {}
    shift.register
}

/// The checksum field of a packet of `octets` bytes whose first four bytes changed from `old` to
/// `new`, all as they lie in memory. `shift` is [`shift`].
///
/// A checksum of 0 stays: it has not been computed yet, and the device or the kernel
/// (`skb_crc32c_csum_help`) will compute it from the whole packet. BPF programs cannot ask whether
/// that is so, and only one computed checksum in 2^32 is 0.
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

/// The product of two polynomials, from the highest power down: multiply by *x* and add the next
/// summand.
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
