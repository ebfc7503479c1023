// SPDX-License-Identifier: MIT OR Apache-2.0
//! The checksums of the Internet and of SCTP, each computed over everything: the reference for the
//! packet logic, which updates them by difference.

use etherparse::checksum::Sum16BitWords;

/// The ones' complement sum of 16-bit words (RFC 1071); all parts but the last have even length.
/// With the right checksum among the words it is `0xffff`; without it, its complement is the
/// checksum.
#[must_use]
pub fn sum(parts: &[&[u8]]) -> u16 {
    let add = |sum: Sum16BitWords, part: &&[u8]| sum.add_slice(part);
    let sum = parts.iter().fold(Sum16BitWords::new(), add);
    !sum.ones_complement().to_be()
}

/// A CRC32c, bit by bit.
#[must_use]
pub fn crc32c(bytes: impl IntoIterator<Item = u8>) -> u32 {
    !bytes.into_iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            crc >> 1 ^ if crc & 1 == 0 { 0 } else { 0x82f6_3b78 }
        })
    })
}

/// The checksum of an SCTP packet as it is in its header (RFC 9260 section 6.8): a CRC32c over
/// everything but itself.
#[must_use]
pub fn sctp(transport: &[u8]) -> [u8; 4] {
    let bytes = [&transport[..8], &[0; 4], &transport[12..]].concat();
    crc32c(bytes).to_le_bytes()
}
