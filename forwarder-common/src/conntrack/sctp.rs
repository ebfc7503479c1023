// SPDX-License-Identifier: MIT OR Apache-2.0
//! SCTP association tracking, as far as a NAT needs it. The SCTP checksum is in
//! [`crc`](crate::wire::crc).
//!
//! The first chunk of a packet decides the transition of its flow, much as in Linux'
//! `nf_conntrack_proto_sctp.c`. Verification tags are not checked. Therefore only packets of a
//! container, whose source is verified, can end an open association.

use crate::clock::Ticks;
use crate::conntrack::timeouts;
use crate::environment::Runtime;
use crate::wire::crc::Shift;

/// Chunk types (RFC 9260 section 3.2).
pub mod chunk {
    /// User data; also stands for a packet whose chunk cannot be read.
    pub const DATA: u8 = 0;
    /// Initiation.
    pub const INIT: u8 = 1;
    /// Acknowledgement of an initiation, with a cookie.
    pub const INIT_ACK: u8 = 2;
    /// Probes whether the other end is alive.
    pub const HEARTBEAT: u8 = 4;
    /// Answer to the probe.
    pub const HEARTBEAT_ACK: u8 = 5;
    /// Ends the association at once.
    pub const ABORT: u8 = 6;
    /// The sender will send no more data.
    pub const SHUTDOWN: u8 = 7;
    /// Acknowledgement of a shutdown: the other end will send no more data either.
    pub const SHUTDOWN_ACK: u8 = 8;
    /// Error report.
    pub const ERROR: u8 = 9;
    /// Returns the cookie.
    pub const COOKIE_ECHO: u8 = 10;
    /// Acknowledgement of the cookie.
    pub const COOKIE_ACK: u8 = 11;
    /// Both sides have ended the association.
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

/// Whether a chunk type is in a set of one bit per type.
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

/// Whether a packet with this first chunk may create a flow (`sctp_new`, and the chunks that
/// `nf_conntrack_sctp_packet` refuses before).
#[inline(always)]
#[must_use]
pub const fn opens(chunk: u8) -> bool {
    is_in(chunk, OPENING)
}

/// The state of an association.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// The association is being opened.
    Opening = 0,
    /// The answering side has acknowledged the cookie, or knows the association.
    Open = 1,
    /// A container has ended the association.
    Closing = 2,
}

impl State {
    /// The state with number `value`; [`State::Opening`] for an unknown number.
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

/// The next state of an association after a packet, and its timeout; 0 leaves the timeout
/// unchanged. `reply`: the packet goes in the reply direction. `trusted`: its source is verified to
/// be a container.
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
                // A retransmitted INIT does not extend the timeout.
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

/// [`follow`], with states as numbers: the border of a global function.
#[inline(always)]
#[must_use]
pub fn follow_by_number<T>(_: &T, state: u8, chunk: u8, reply: bool, trusted: bool) -> (u8, Ticks) {
    let (state, span) = follow(State::from_u8(state), chunk, reply, trusted);
    (state as u8, span)
}

/// [`crc::shift`](crate::wire::crc::shift), in steps that the verifier checks once.
#[inline(always)]
#[must_use]
pub fn shift<T: Runtime>(runtime: &T, register: u32, octets: u16) -> u32 {
    let mut shift = Shift::new(register, octets);
    runtime.attempt(Shift::STEPS, &mut shift);
    shift.register
}
