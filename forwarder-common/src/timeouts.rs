// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every timeout of the datapath, in one table, and the clock that they are counted in.
//!
//! The values are those of Linux' `nf_conntrack` (`nf_conntrack_proto_{tcp,udp,icmp,sctp}.c`), so that
//! a connection lives as long through the forwarder as through iptables.

use crate::tcp::State;

/// A moment or a span of the coarse monotonic clock, in units of 2^24 ns (16.78 ms).
///
/// Wraps after 2.3 years; comparisons are right for spans of up to half of that.
pub type Ticks = u32;

/// Nanoseconds to ticks: a shift, so that the datapath needs no division.
#[inline(always)]
#[must_use]
pub const fn ticks(nanoseconds: u64) -> Ticks {
    (nanoseconds >> 24) as u32
}

/// Whole seconds to ticks, rounded down.
#[inline(always)]
#[must_use]
pub const fn seconds(seconds: u32) -> Ticks {
    ticks(seconds as u64 * 1_000_000_000)
}

/// Ticks to whole seconds, rounded down.
#[must_use]
pub const fn to_seconds(span: Ticks) -> u64 {
    ((span as u64) << 24) / 1_000_000_000
}

/// Whether `deadline` has been reached at `now`.
#[inline(always)]
#[must_use]
pub const fn reached(deadline: Ticks, now: Ticks) -> bool {
    now.wrapping_sub(deadline) as i32 >= 0
}

/// How long a TCP flow in `state` lives without a packet (`tcp_timeouts`).
#[inline(always)]
#[must_use]
pub const fn tcp(state: State) -> Ticks {
    match state {
        State::None | State::Close => seconds(10),
        State::SynSent | State::SynSent2 | State::FinWait | State::TimeWait => seconds(120),
        State::SynReceived | State::CloseWait => seconds(60),
        State::Established => seconds(432_000),
        State::LastAck => seconds(30),
    }
}

/// A TCP connection that waits for the other side: data is not acknowledged yet or was sent again and
/// again, the window is closed, a picked-up one was not answered yet (`TCP_CONNTRACK_UNACK` and
/// `TCP_CONNTRACK_RETRANS`).
pub const TCP_UNACKNOWLEDGED: Ticks = seconds(300);

/// A flow between being made and its first packet being tracked.
pub const UNTRACKED: Ticks = seconds(10);

/// UDP: no answer yet, or no stream yet (`UDP_CT_UNREPLIED`).
pub const UDP: Ticks = seconds(30);

/// UDP: answered, and in use for longer than [`UDP_STREAM_AFTER`] (`UDP_CT_REPLIED`).
pub const UDP_STREAM: Ticks = seconds(120);

/// A UDP flow with answers counts as a stream this long after its first packet (`stream_ts`).
pub const UDP_STREAM_AFTER: Ticks = seconds(2);

/// ICMP queries (`nf_ct_icmp_timeout`).
pub const ICMP: Ticks = seconds(30);

/// SCTP: an association that is open (`SCTP_CONNTRACK_ESTABLISHED`).
pub const SCTP: Ticks = seconds(210);

/// SCTP: cookies go to and fro, or its end is being agreed upon (`SCTP_CONNTRACK_COOKIE_WAIT` and
/// others).
pub const SCTP_HANDSHAKE: Ticks = seconds(3);

/// SCTP: asked whether the other end is there (`SCTP_CONNTRACK_HEARTBEAT_SENT`).
pub const SCTP_HEARTBEAT: Ticks = seconds(30);

/// SCTP: at its very beginning or end (`SCTP_CONNTRACK_CLOSED`); the beginning is [`UNTRACKED`].
pub const SCTP_CLOSED: Ticks = seconds(10);

/// Protocols without ports (`nf_ct_generic_timeout`).
pub const GENERIC: Ticks = seconds(600);

/// How long the kernel waits for the rest of a datagram (`net.ipv4.ipfrag_time`).
pub const REASSEMBLY: Ticks = seconds(30);

/// The agent's heartbeat is trusted for this long; then routes are looked up anew per packet.
pub const HEARTBEAT: Ticks = seconds(5);
