// SPDX-License-Identifier: MIT OR Apache-2.0
//! All timeouts of the datapath in one table, and the clock that counts them.
//!
//! The values are those of Linux' `nf_conntrack` (`nf_conntrack_proto_{tcp,udp,icmp,sctp}.c`), so
//! that a connection lives as long with the forwarder as with iptables.

use crate::clock::{Ticks, seconds, ticks};
use crate::tracking::tcp::State;

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

/// A TCP connection that waits for the other side: data is unacknowledged or was retransmitted
/// several times, the window is closed, or a picked-up connection is not answered yet
/// (`TCP_CONNTRACK_UNACK` and `TCP_CONNTRACK_RETRANS`).
pub const TCP_UNACKNOWLEDGED: Ticks = seconds(300);

/// A flow between its creation and the tracking of its first packet.
pub const UNTRACKED: Ticks = seconds(10);

/// UDP: not answered yet, or not a stream yet (`UDP_CT_UNREPLIED`).
pub const UDP: Ticks = seconds(30);

/// UDP: answered, and in use for longer than [`UDP_STREAM_AFTER`] (`UDP_CT_REPLIED`).
pub const UDP_STREAM: Ticks = seconds(120);

/// A UDP flow with answers counts as a stream this long after its creation (`stream_ts`).
pub const UDP_STREAM_AFTER: Ticks = seconds(2);

/// ICMP queries (`nf_ct_icmp_timeout`).
pub const ICMP: Ticks = seconds(30);

/// SCTP: an open association (`SCTP_CONNTRACK_ESTABLISHED`).
pub const SCTP: Ticks = seconds(210);

/// SCTP: cookie exchange or shutdown (`SCTP_CONNTRACK_COOKIE_WAIT` and others).
pub const SCTP_HANDSHAKE: Ticks = seconds(3);

/// SCTP: a HEARTBEAT probes the other end (`SCTP_CONNTRACK_HEARTBEAT_SENT`).
pub const SCTP_HEARTBEAT: Ticks = seconds(30);

/// SCTP: the very beginning or end (`SCTP_CONNTRACK_CLOSED`); the beginning is [`UNTRACKED`].
pub const SCTP_CLOSED: Ticks = seconds(10);

/// Protocols without ports (`nf_ct_generic_timeout`).
pub const GENERIC: Ticks = seconds(600);

/// How long the kernel waits for the rest of a datagram (`net.ipv4.ipfrag_time`).
pub const REASSEMBLY: Ticks = seconds(30);

/// How long the kernel's word about a direction of a followed flow holds: as long after a packet of
/// it has passed all rules, the next ones take the fast path. Rules that change hold for the flow
/// after this.
pub const LET_OUT: Ticks = ticks(500_000_000);

/// How long the agent's heartbeat is trusted. When it is older, routes are looked up again for each
/// packet.
pub const HEARTBEAT: Ticks = seconds(5);
