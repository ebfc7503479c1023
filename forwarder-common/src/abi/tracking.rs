// SPDX-License-Identifier: MIT OR Apache-2.0
//! TCP sequence tracking: what a flow record holds of both sides of a connection.

use core::cell::Cell;

/// What one side of a TCP connection has sent: nf_conntrack's `ip_ct_tcp_state`.
#[repr(C)]
#[derive(Debug, Default)]
pub struct DirectionState {
    /// The highest sequence number sent, plus one (`td_end`).
    pub end: Cell<u32>,
    /// The highest sequence number that the other side has allowed, plus one (`td_maxend`).
    pub max_end: Cell<u32>,
    /// The largest window announced, scaled (`td_maxwin`); 0 if nothing was sent yet.
    pub max_win: Cell<u32>,
    /// The highest acknowledgement number sent (`td_maxack`).
    pub max_ack: Cell<u32>,
}

/// The sequence tracking of a TCP connection: nf_conntrack's `ip_ct_tcp`, by the direction of the
/// segments from which it is learned. See [`window`](crate::conntrack::window).
#[repr(C)]
#[derive(Debug, Default)]
pub struct TcpTracking {
    /// The state of each direction.
    pub sides: [DirectionState; 2],
    /// End sequence number of the last pure ACK, or of the last segment that passed untracked
    /// (`last_end`).
    pub last_end: Cell<u32>,
    /// Acknowledgement number of that segment (`last_ack`).
    pub last_ack: Cell<u32>,
    /// Announced window of that segment (`last_win`).
    pub last_win: Cell<u16>,
    /// Kind and direction of the last segment, and how often the same ACK was repeated
    /// (`last_index`, `last_dir`, `retrans`).
    pub last: Cell<u8>,
    /// What was recorded of a SYN that passed untracked (`last_wscale`, `last_flags`).
    pub noted: Cell<u8>,
    /// The window scale of each side (`td_scale`).
    pub scale: [Cell<u8>; 2],
    /// Bits of [`side_flag`].
    pub marks: [Cell<u8>; 2],
}

impl TcpTracking {
    /// Forgets everything, as of a connection that was picked up in the middle: its next segments
    /// say where both sides are.
    #[inline(always)]
    pub fn pick_up(&self) {
        for side in &self.sides {
            side.end.set(0);
            side.max_end.set(0);
            side.max_win.set(0);
            side.max_ack.set(0);
        }
        for side in [0, 1] {
            self.scale[side].set(0);
            self.marks[side].set(side_flag::LIBERAL);
        }
        self.last_end.set(0);
        self.last_ack.set(0);
        self.last_win.set(0);
        self.last.set(0);
        self.noted.set(0);
    }
}

/// Bits of [`TcpTracking::marks`].
pub mod side_flag {
    /// This side sent data that the other side has not acknowledged yet.
    pub const UNACKNOWLEDGED: u8 = 1;
    /// This side has acknowledged something.
    pub const ACKNOWLEDGES: u8 = 2;
    /// The connection was picked up in the middle, so no segment counts as outside of its window
    /// (`IP_CT_TCP_FLAG_BE_LIBERAL`).
    pub const LIBERAL: u8 = 4;
    /// This side offered window scaling.
    pub const SCALES: u8 = 8;
}

/// Bits of [`TcpTracking::noted`]; the low four bits are the window scale that a SYN offered.
pub mod noted {
    /// The window scale.
    pub const SCALE: u8 = 0x0f;
    /// The SYN offered window scaling.
    pub const SCALES: u8 = 0x10;
    /// A SYN passed in `LAST_ACK`: the next ACK may be its challenge (RFC 5961).
    pub const CHALLENGE: u8 = 0x20;
    /// Both sides have sent a SYN.
    pub const SIMULTANEOUS: u8 = 0x40;
}

/// Bits of [`TcpTracking::last`]: kind and direction of the last segment, and how often the same
/// ACK was repeated.
pub mod last {
    /// The segment's kind.
    pub const KIND: u8 = 0x07;
    /// The segment went in the reply direction.
    pub const REPLY: u8 = 0x08;
    /// One repetition.
    pub const AGAIN: u8 = 0x10;
    /// The ACK was repeated so often that the short timeout applies (`tcp_max_retrans`).
    pub const WAITS: u8 = 0x30;
}
