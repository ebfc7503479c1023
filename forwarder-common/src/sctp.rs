// SPDX-License-Identifier: MIT OR Apache-2.0
//! SCTP: what of an association a NAT has to know. Its checksum is in [`crc`](crate::crc).
//!
//! The first chunk of a packet tells what becomes of its flow, much as in Linux'
//! `nf_conntrack_proto_sctp.c`. Verification tags are not looked at: so only the side that nobody else
//! can speak for, a container, can say that an open association ends.

use crate::timeouts::{self, Ticks};

/// Chunk types (RFC 9260 section 3.2).
pub mod chunk {
    /// User data; a packet whose chunk is not at hand counts as that.
    pub const DATA: u8 = 0;
    /// Initiation.
    pub const INIT: u8 = 1;
    /// Its acknowledgement, with a cookie.
    pub const INIT_ACK: u8 = 2;
    /// Is the other end there?
    pub const HEARTBEAT: u8 = 4;
    /// It is.
    pub const HEARTBEAT_ACK: u8 = 5;
    /// The end, at once.
    pub const ABORT: u8 = 6;
    /// Nothing more will be sent.
    pub const SHUTDOWN: u8 = 7;
    /// Nor by the other end.
    pub const SHUTDOWN_ACK: u8 = 8;
    /// An error's report.
    pub const ERROR: u8 = 9;
    /// The cookie comes back.
    pub const COOKIE_ECHO: u8 = 10;
    /// It was the right one.
    pub const COOKIE_ACK: u8 = 11;
    /// The end, by both sides.
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

/// Whether a chunk's type is one of a set, a bit for each.
#[inline(always)]
const fn is_in(chunk: u8, set: u16) -> bool {
    chunk < 16 && set >> chunk & 1 != 0
}

const OPENING: u16 = 1 << chunk::INIT
    | 1 << chunk::INIT_ACK
    | 1 << chunk::HEARTBEAT
    | 1 << chunk::HEARTBEAT_ACK
    | 1 << chunk::SHUTDOWN
    | 1 << chunk::SHUTDOWN_ACK
    | 1 << chunk::ERROR
    | 1 << chunk::COOKIE_ECHO;
const PROOF: u16 = 1 << chunk::COOKIE_ACK | 1 << chunk::HEARTBEAT_ACK;
const COOKIE: u16 = 1 << chunk::INIT_ACK | 1 << chunk::COOKIE_ECHO;
const CLOSING: u16 = 1 << chunk::SHUTDOWN | 1 << chunk::SHUTDOWN_ACK;
const CLOSED: u16 = 1 << chunk::ABORT | 1 << chunk::SHUTDOWN_COMPLETE;

/// Whether a packet that begins with this chunk may make a flow (`sctp_new`, and the chunks that
/// `nf_conntrack_sctp_packet` refuses before).
#[inline(always)]
#[must_use]
pub const fn opens(chunk: u8) -> bool {
    is_in(chunk, OPENING)
}

/// What is known of an association.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// It is about to be.
    Opening = 0,
    /// The answering side has taken the cookie back, or knows the association.
    Open = 1,
    /// A container has said that it ends.
    Closing = 2,
}

impl State {
    /// The state of number `value`; [`State::Opening`] for a number that is none's.
    #[inline(always)]
    #[must_use]
    pub const fn from_u8(value: u8) -> Self {
        if value == 1 {
            Self::Open
        } else if value == 2 {
            Self::Closing
        } else {
            Self::Opening
        }
    }
}

/// What an association becomes by a packet, and how long it lives then; 0 for as long as before.
/// `reply` is a packet of the answering side, `trusted` one that is known to be a container's own.
#[inline(always)]
#[must_use]
pub const fn follow(state: State, chunk: u8, reply: bool, trusted: bool) -> (State, Ticks) {
    match state {
        State::Opening if reply && is_in(chunk, PROOF) => (State::Open, timeouts::SCTP),
        State::Opening => {
            let span = if is_in(chunk, COOKIE) {
                timeouts::SCTP_HANDSHAKE
            } else if chunk == chunk::HEARTBEAT {
                timeouts::SCTP_HEARTBEAT
            } else if chunk == chunk::INIT {
                // Sent again, it does not buy more time.
                0
            } else {
                timeouts::SCTP_CLOSED
            };
            (State::Opening, span)
        }
        State::Open if trusted && is_in(chunk, CLOSING) => {
            (State::Closing, timeouts::SCTP_HANDSHAKE)
        }
        State::Open if trusted && is_in(chunk, CLOSED) => (State::Closing, timeouts::SCTP_CLOSED),
        State::Open => (State::Open, timeouts::SCTP),
        State::Closing if !reply && chunk == chunk::INIT => (State::Opening, timeouts::SCTP_CLOSED),
        State::Closing if is_in(chunk, CLOSED) => (State::Closing, timeouts::SCTP_CLOSED),
        State::Closing => (State::Closing, timeouts::SCTP_HANDSHAKE),
    }
}
