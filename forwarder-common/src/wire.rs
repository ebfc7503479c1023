// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bytes on the wire: checked access to a frame, headers, checksums, edits, quoted packets.

pub mod checksum;
pub mod crc;
pub mod frame;
pub mod header;
pub mod icmp;
pub mod ipv4;
pub mod parse;
pub(crate) mod prohibit;
pub mod rewrite;
pub mod series;
pub mod tcp;

/// IP protocol numbers, host order.
pub mod proto {
    /// ICMP.
    pub const ICMP: u32 = 1;
    /// TCP.
    pub const TCP: u32 = 6;
    /// UDP.
    pub const UDP: u32 = 17;
    /// DCCP.
    const DCCP: u32 = 33;
    /// SCTP.
    pub const SCTP: u32 = 132;
    /// UDP-Lite.
    const UDP_LITE: u32 = 136;

    /// Whether a protocol other than `icmp` has neither ports nor, as far as known, a checksum over
    /// the addresses: such a packet is translated by its network header alone.
    #[inline(always)]
    #[must_use]
    pub const fn is_portless(number: u32, icmp: u32) -> bool {
        number != icmp && !matches!(number, TCP | UDP | DCCP | SCTP | UDP_LITE)
    }
}
