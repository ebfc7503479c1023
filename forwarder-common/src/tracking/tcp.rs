// SPDX-License-Identifier: MIT OR Apache-2.0
//! TCP connection tracking: the state machine of Linux' `nf_conntrack_proto_tcp.c`.

use crate::wire::tcp::{self, ACK, FIN, Kind, RST, SYN};

/// A TCP flow's state, with nf_conntrack's names.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// No packet yet.
    None = 0,
    /// The originator's SYN was seen.
    SynSent = 1,
    /// The other side's SYN-ACK was seen.
    SynReceived = 2,
    /// Open in both directions.
    Established = 3,
    /// One side has sent its FIN.
    FinWait = 4,
    /// That FIN was acknowledged.
    CloseWait = 5,
    /// Both sides have sent their FIN.
    LastAck = 6,
    /// The last FIN was acknowledged.
    TimeWait = 7,
    /// Reset.
    Close = 8,
    /// Both sides have sent a SYN: a simultaneous open (RFC 793 figure 8).
    SynSent2 = 9,
}

impl State {
    /// All states, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::None,
        Self::SynSent,
        Self::SynReceived,
        Self::Established,
        Self::FinWait,
        Self::CloseWait,
        Self::LastAck,
        Self::TimeWait,
        Self::Close,
        Self::SynSent2,
    ];

    /// The state with number `value`; [`State::None`] for an unknown number.
    #[inline(always)]
    #[must_use]
    pub const fn from_u8(value: u8) -> Self {
        match value {
            1 => Self::SynSent,
            2 => Self::SynReceived,
            3 => Self::Established,
            4 => Self::FinWait,
            5 => Self::CloseWait,
            6 => Self::LastAck,
            7 => Self::TimeWait,
            8 => Self::Close,
            9 => Self::SynSent2,
            _ => Self::None,
        }
    }

    /// The name that `conntrack -L` prints.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::SynSent => "SYN_SENT",
            Self::SynReceived => "SYN_RECV",
            Self::Established => "ESTABLISHED",
            Self::FinWait => "FIN_WAIT",
            Self::CloseWait => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::TimeWait => "TIME_WAIT",
            Self::Close => "CLOSE",
            Self::SynSent2 => "SYN_SENT2",
        }
    }
}

/// The state transition that a packet causes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Go to this state, which may be the current one, and refresh the timeout.
    To(State),
    /// Let the packet pass and change nothing (a retransmission, a stray SYN).
    Ignore,
    /// The packet is invalid in this state.
    Invalid,
}

const SS: u8 = State::SynSent as u8;
const SR: u8 = State::SynReceived as u8;
const ES: u8 = State::Established as u8;
const FW: u8 = State::FinWait as u8;
const CW: u8 = State::CloseWait as u8;
const LA: u8 = State::LastAck as u8;
const TW: u8 = State::TimeWait as u8;
const CL: u8 = State::Close as u8;
const S2: u8 = State::SynSent2 as u8;
const IV: u8 = 14;
const IG: u8 = 15;

/// `tcp_conntracks` of nf_conntrack_proto_tcp.c: rows by direction and kind of packet, columns by
/// state. Kinds: SYN, SYN-ACK, FIN, ACK, RST, none of these. A row is one word of four-bit columns:
/// a shift needs no bounds check for the verifier.
static STEPS: [u64; 12] = pack([
    // The originator's packets.
    [SS, SS, IG, IG, IG, IG, IG, SS, SS, S2],
    [IV, IV, SR, IV, IV, IV, IV, IV, IV, SR],
    [IV, IV, FW, FW, LA, LA, LA, TW, CL, IV],
    [ES, IV, ES, ES, CW, CW, TW, TW, CL, IV],
    [IV, CL, CL, CL, CL, CL, CL, CL, CL, CL],
    [IV, IV, IV, IV, IV, IV, IV, IV, IV, IV],
    // The answers.
    [IV, S2, IV, IV, IV, IV, IV, SS, IV, S2],
    [IV, SR, IG, IG, IG, IG, IG, IG, IG, SR],
    [IV, IV, FW, FW, LA, LA, LA, TW, CL, IV],
    [IV, IG, SR, ES, CW, CW, TW, TW, CL, IG],
    [IV, CL, CL, CL, CL, CL, CL, CL, CL, CL],
    [IV, IV, IV, IV, IV, IV, IV, IV, IV, IV],
]);

const fn pack(rows: [[u8; 10]; 12]) -> [u64; 12] {
    let mut words = [0; 12];
    let mut row = 0;
    while row < 12 {
        let mut column = 0;
        while column < 10 {
            words[row] |= (rows[row][column] as u64) << (4 * column);
            column += 1;
        }
        row += 1;
    }
    words
}

/// The transition that a packet with `flags` causes in state `from`; `reply` if it goes in the
/// reply direction.
#[inline(always)]
#[must_use]
pub fn step(from: State, flags: u8, reply: bool) -> Step {
    step_of(from, tcp::kind(flags), reply)
}

/// The transition for a segment of this kind.
#[inline(always)]
#[must_use]
pub fn step_of(from: State, kind: Kind, reply: bool) -> Step {
    let row = kind as usize + if reply { 6 } else { 0 };
    match ((STEPS[row] >> (4 * from as u32)) & 15) as u8 {
        IV => Step::Invalid,
        IG => Step::Ignore,
        state => Step::To(State::from_u8(state)),
    }
}

/// Whether a SYN may open a new connection in this state, because the old one is over.
#[inline(always)]
#[must_use]
pub const fn reopens(state: State, flags: u8) -> bool {
    flags & (SYN | ACK | RST | FIN) == SYN && matches!(state, State::TimeWait | State::Close)
}

/// How a first packet without a flow is handled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opening {
    /// A SYN opens a connection.
    Open,
    /// An ACK without SYN, or data: picks up a connection that began elsewhere
    /// (`nf_conntrack_tcp_loose`).
    PickUp,
    /// Any other packet opens no flow.
    Refuse,
}

/// How a packet with `flags` opens a flow (`tcp_new`).
#[inline(always)]
#[must_use]
pub const fn opening(flags: u8) -> Opening {
    match tcp::kind(flags) {
        Kind::Syn => Opening::Open,
        Kind::Ack => Opening::PickUp,
        _ => Opening::Refuse,
    }
}
