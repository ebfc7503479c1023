// SPDX-License-Identifier: MIT OR Apache-2.0
//! The frame of the floods: 60 bytes, UDP, complete checksums.

use std::net::Ipv4Addr;

/// The length of the shortest frame on a wire, without its check sequence.
pub(crate) const LENGTH: usize = 60;

const ETHERNET: usize = 14;
const IP: usize = 20;
const UDP: u8 = 17;
const TTL: u8 = 64;

/// Builds a frame with these hardware addresses (destination first) and these sockets.
pub(crate) fn udp(
    macs: [[u8; 6]; 2],
    source: (Ipv4Addr, u16),
    destination: (Ipv4Addr, u16),
) -> [u8; LENGTH] {
    let (total, datagram) = (LENGTH - ETHERNET, LENGTH - ETHERNET - IP);
    let mut ip = [0; IP];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&(total as u16).to_be_bytes());
    ip[8..10].copy_from_slice(&[TTL, UDP]);
    ip[12..16].copy_from_slice(&source.0.octets());
    ip[16..20].copy_from_slice(&destination.0.octets());
    let sum = checksum(&[&ip]);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());

    let mut udp = [0; LENGTH - ETHERNET - IP];
    let length = (datagram as u16).to_be_bytes();
    udp[0..2].copy_from_slice(&source.1.to_be_bytes());
    udp[2..4].copy_from_slice(&destination.1.to_be_bytes());
    udp[4..6].copy_from_slice(&length);
    let sum = checksum(&[&ip[12..], &[0, UDP], &length, &udp]);
    udp[6..8].copy_from_slice(&sum.to_be_bytes());

    let mut frame = [0; LENGTH];
    frame[..12].copy_from_slice(macs.as_flattened());
    frame[12..ETHERNET].copy_from_slice(&0x0800_u16.to_be_bytes());
    frame[ETHERNET..ETHERNET + IP].copy_from_slice(&ip);
    frame[ETHERNET + IP..].copy_from_slice(&udp);
    frame
}

/// Returns the Internet checksum of parts of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_is_what_a_stack_would_send() {
        let addresses = [Ipv4Addr::new(198, 18, 1, 2), Ipv4Addr::new(198, 18, 1, 1)];
        let frame = udp(
            [[0x02, 0, 0, 0, 0, 1], [0x02, 0, 0, 0, 0, 2]],
            (addresses[0], 40_000),
            (addresses[1], 9000),
        );
        assert_eq!(&frame[..14], &[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
        assert_eq!(&frame[14..24], &[0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17]);
        // The sum over a header with its checksum is zero.
        assert_eq!(checksum(&[&frame[14..34]]), 0);
        assert_eq!(
            checksum(&[&frame[26..34], &[0, 17, 0, 26], &frame[34..]]),
            0
        );
        assert_eq!(&frame[36..40], &[0x23, 0x28, 0, 26]);
    }
}
