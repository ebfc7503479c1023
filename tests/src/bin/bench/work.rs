// SPDX-License-Identifier: MIT OR Apache-2.0
//! The definition of the measurements: kinds of work, the two directions, the arms, and the
//! targets.

use clap::ValueEnum;
use serde::Serialize;

/// A kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Work {
    /// TCP ping-pong with 14 bytes, sockperf.
    PingPong,
    /// Connections with one request each, wrk against nginx.
    Connections,
    /// Requests on open connections, wrk against nginx.
    KeepAlive,
    /// One TCP stream, iperf3.
    Stream,
    /// 60-byte UDP frames into a socket.
    UdpSocket,
    /// 60-byte UDP frames to the receiver's device, where a program drops them.
    Forwarding,
}

impl Work {
    /// Returns its name in the table.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::PingPong => "TCP ping-pong, one way",
            Self::Connections => "connections, one request each",
            Self::KeepAlive => "keep-alive requests",
            Self::Stream => "one TCP stream",
            Self::UdpSocket => "60-byte UDP into a socket",
            Self::Forwarding => "60-byte UDP, forwarding only",
        }
    }

    /// Returns the unit of its samples.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::PingPong => "µs",
            Self::Connections | Self::KeepAlive => "1/s",
            Self::Stream => "Gbit/s",
            Self::UdpSocket | Self::Forwarding => "Mpps",
        }
    }

    /// Returns how many times as good as `base` a value is.
    pub(crate) fn ratio(self, value: f64, base: f64) -> f64 {
        match self {
            Self::PingPong => base / value,
            _ => value / base,
        }
    }

    /// Formats a value with a suitable number of digits.
    pub(crate) fn show(self, value: f64) -> String {
        match self {
            Self::PingPong | Self::Stream => format!("{value:.1}"),
            Self::Connections | Self::KeepAlive => format!("{value:.0}"),
            Self::UdpSocket | Self::Forwarding => format!("{value:.2}"),
        }
    }
}

/// The direction in which connections are opened, and in which the UDP load is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Direction {
    /// From the LAN through the published port.
    In,
    /// From the container to the LAN.
    Out,
}

impl Direction {
    /// Returns its name in the table.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }
}

/// The system on which the work runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Arm {
    /// Docker with its iptables rules, userland proxy off.
    Stock,
    /// The forwarder over tcx, in place of Docker's rules.
    Ours,
    /// The forwarder over tcx, on top of Docker's rules.
    Adopt,
    /// The same, where rules of others decide about each connection, and the forwarder follows.
    Follow,
    /// The forwarder with native XDP on its uplink.
    OursXdp,
    /// The older build of the forwarder, over tcx.
    Against,
    /// Two namespaces and one veth, without a host between: the limit.
    Bare,
}

impl Arm {
    /// Returns its name in the table.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::Ours => "ours",
            Self::Adopt => "adopt",
            Self::Follow => "follow",
            Self::OursXdp => "ours, XDP",
            Self::Against => "against",
            Self::Bare => "bare veth",
        }
    }

    /// Returns the minimum share of packets that must take the path that the arm measures. The
    /// beginning of a followed flow is the kernel's.
    pub(crate) fn share(self) -> f64 {
        if self == Self::Follow { 0.7 } else { 0.9 }
    }

    /// Whether this combination is measured. XDP handles known UDP flows from outside and leaves
    /// the rest to tcx; both directions of a bare veth are the same.
    pub(crate) fn does(self, work: Work, direction: Direction) -> bool {
        let udp = matches!(work, Work::UdpSocket | Work::Forwarding);
        match self {
            Self::Stock | Self::Ours | Self::Adopt | Self::Against => true,
            // What is short, or not answered, stays the kernel's.
            Self::Follow => !udp && work != Work::Connections,
            Self::OursXdp => udp && direction == Direction::In,
            Self::Bare => direction == Direction::In,
        }
    }
}

/// The value that an arm must reach for connections from outside, in multiples of stock.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Target {
    pub(crate) work: Work,
    pub(crate) arm: Arm,
    pub(crate) ratio: f64,
}

/// The targets.
pub(crate) const TARGETS: [Target; 7] = [
    target(Work::PingPong, Arm::Ours, 1.3),
    target(Work::Connections, Arm::Ours, 1.3),
    target(Work::Stream, Arm::Ours, 1.0),
    target(Work::UdpSocket, Arm::Ours, 2.0),
    target(Work::UdpSocket, Arm::OursXdp, 2.0),
    target(Work::Forwarding, Arm::Ours, 2.5),
    target(Work::Forwarding, Arm::OursXdp, 2.8),
];

const fn target(work: Work, arm: Arm, ratio: f64) -> Target {
    Target { work, arm, ratio }
}
