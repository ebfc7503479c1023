// SPDX-License-Identifier: MIT OR Apache-2.0
//! TCP flags, and the kinds of segments that connection tracking distinguishes.
/// FIN in the header's flag byte.
pub const FIN: u8 = 0x01;
/// SYN.
pub const SYN: u8 = 0x02;
/// RST.
pub const RST: u8 = 0x04;
/// ACK.
pub const ACK: u8 = 0x10;
/// URG.
pub const URG: u8 = 0x20;

/// The kind of a segment by its flags: the row in the table of transitions.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// SYN alone.
    Syn = 0,
    /// SYN and ACK.
    SynAck = 1,
    /// FIN and ACK.
    Fin = 2,
    /// ACK alone.
    Ack = 3,
    /// RST, with or without ACK.
    Rst = 4,
    /// A combination that no TCP sends.
    None = 5,
}

/// The kind of a segment by its flags (`get_conntrack_index`; `tcp_valid_flags` decides which are
/// valid). PSH, ECE and CWR do not matter; URG only makes some combinations invalid.
#[inline(always)]
#[must_use]
pub const fn kind(flags: u8) -> Kind {
    const ALL: u8 = FIN | SYN | RST | ACK | URG;
    const SYN_ACK: u8 = SYN | ACK;
    const FIN_ACK: u8 = FIN | ACK;
    const RST_ACK: u8 = RST | ACK;
    const ACK_URG: u8 = ACK | URG;
    const SYN_URG: u8 = SYN | URG;
    const FIN_ACK_URG: u8 = FIN | ACK | URG;
    match flags & ALL {
        ACK | ACK_URG => Kind::Ack,
        SYN | SYN_URG => Kind::Syn,
        SYN_ACK => Kind::SynAck,
        FIN_ACK | FIN_ACK_URG => Kind::Fin,
        RST | RST_ACK => Kind::Rst,
        _ => Kind::None,
    }
}
