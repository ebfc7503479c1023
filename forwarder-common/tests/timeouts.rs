// SPDX-License-Identifier: MIT OR Apache-2.0
//! How long flows live: the defaults of nf_conntrack, as `nf_conntrack-sysctl.rst` lists them in
//! seconds, and the clock that they are counted in.

use forwarder_common::clock::{reached, seconds, ticks, to_seconds};
use forwarder_common::conntrack::timeouts::{self, tcp};
use forwarder_common::tracking::tcp::State;

#[test]
fn tcp_timeouts_match_conntrack() {
    // `nf_conntrack_tcp_timeout_*`
    let table = [
        (State::SynSent, 120),
        (State::SynSent2, 120),
        (State::SynReceived, 60),
        (State::Established, 432_000),
        (State::FinWait, 120),
        (State::CloseWait, 60),
        (State::LastAck, 30),
        (State::TimeWait, 120),
        (State::Close, 10),
    ];
    for (state, expected) in table {
        assert_eq!(tcp(state), seconds(expected), "{state:?}");
    }
    assert_eq!(timeouts::TCP_UNACKNOWLEDGED, seconds(300));
}

#[test]
fn udp_timeouts_match_conntrack() {
    assert_eq!(timeouts::UDP, seconds(30));
    assert_eq!(timeouts::UDP_STREAM, seconds(120));
    assert_eq!(timeouts::ICMP, seconds(30));
}

#[test]
fn seconds_and_ticks_convert() {
    assert_eq!(ticks(1 << 24), 1);
    for span in [1_u64, 10, 300, 432_000] {
        let there = seconds(u32::try_from(span).unwrap());
        // Rounded down twice.
        assert!((span - 1..=span).contains(&to_seconds(there)), "{span}");
    }
}

#[test]
fn deadline_is_reached_across_the_wrap() {
    assert!(reached(5, 5) && reached(5, 6) && !reached(5, 4));
    let late = u32::MAX - 1;
    assert!(!reached(late.wrapping_add(10), late));
    assert!(reached(late, late.wrapping_add(10)));
}
