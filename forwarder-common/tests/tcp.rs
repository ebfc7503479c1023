// SPDX-License-Identifier: MIT OR Apache-2.0
//! TCP tracking: nf_conntrack's table, row by row where it matters, and connections' whole lives.

use forwarder_common::clock;
use forwarder_common::conntrack::timeouts;
use forwarder_common::reason::Reason;
use forwarder_common::tracking::tcp::{Opening, State, Step, opening, reopens, step};
use forwarder_common::wire::tcp::{Kind, URG, kind};
use forwarder_testkit::model::Host;
use forwarder_testkit::model::frames::{ACK, FIN, RST, SYN, Spec};
use forwarder_testkit::model::host::{CLIENT, HOST, WEB, WEB_VETH};

const OPENER: bool = false;
const ANSWER: bool = true;
const SYN_ACK: u8 = SYN | ACK;
const FIN_ACK: u8 = FIN | ACK;

/// Follows packets from `None` on; each has to lead to its state.
fn life(name: &str, packets: &[(bool, u8, State)]) {
    let mut state = State::None;
    for (number, &(reply, flags, expected)) in packets.iter().enumerate() {
        match step(state, flags, reply) {
            Step::To(next) => state = next,
            Step::Ignore => {}
            Step::Invalid => panic!("{name}, packet {number}: invalid in {}", state.label()),
        }
        assert_eq!(state, expected, "{name}, packet {number}");
    }
}

#[test]
fn tcp_states_match_nf_conntrack() {
    use State::{
        Close, CloseWait, Established, FinWait, LastAck, SynReceived, SynSent, SynSent2, TimeWait,
    };
    let open = [
        (OPENER, SYN, SynSent),
        (ANSWER, SYN_ACK, SynReceived),
        (OPENER, ACK, Established),
    ];
    let after = |rest: &[(bool, u8, State)]| [&open[..], rest].concat();
    life(
        "open, talk",
        &after(&[(ANSWER, ACK, Established), (OPENER, ACK, Established)]),
    );
    life(
        "closed by the opener",
        &after(&[
            (OPENER, FIN_ACK, FinWait),
            (ANSWER, ACK, CloseWait),
            (ANSWER, FIN_ACK, LastAck),
            (OPENER, ACK, TimeWait),
        ]),
    );
    life(
        "closed by the other side, half open for long",
        &after(&[
            (ANSWER, FIN_ACK, FinWait),
            (OPENER, ACK, CloseWait),
            (OPENER, ACK, CloseWait),
            (OPENER, FIN_ACK, LastAck),
            (ANSWER, ACK, TimeWait),
        ]),
    );
    life(
        "closed at once by both",
        &after(&[
            (OPENER, FIN_ACK, FinWait),
            (ANSWER, FIN_ACK, LastAck),
            (OPENER, ACK, TimeWait),
        ]),
    );
    life(
        "reset",
        &after(&[
            (ANSWER, RST, Close),
            (OPENER, ACK, Close),
            (OPENER, RST, Close),
        ]),
    );
    life(
        "refused",
        &[(OPENER, SYN, SynSent), (ANSWER, RST | ACK, Close)],
    );
    life(
        "retransmitted",
        &[
            (OPENER, SYN, SynSent),
            (OPENER, SYN, SynSent),
            (ANSWER, SYN_ACK, SynReceived),
            (OPENER, SYN, SynReceived),
            (ANSWER, SYN_ACK, SynReceived),
            (OPENER, ACK, Established),
            (ANSWER, SYN_ACK, Established),
        ],
    );
    life(
        "simultaneous open",
        &[
            (OPENER, SYN, SynSent),
            (ANSWER, SYN, SynSent2),
            (OPENER, SYN, SynSent2),
            (OPENER, SYN_ACK, SynReceived),
            (ANSWER, SYN_ACK, SynReceived),
            (OPENER, ACK, Established),
        ],
    );
    life(
        "picked up",
        &[(OPENER, ACK, Established), (ANSWER, ACK, Established)],
    );
    life(
        "opened anew",
        &after(&[
            (OPENER, RST, Close),
            (OPENER, SYN, SynSent),
            (ANSWER, SYN_ACK, SynReceived),
        ]),
    );
}

#[test]
fn unrelated_segments_are_invalid() {
    for (state, flags, reply) in [
        (State::SynSent, ACK, OPENER),
        (State::SynSent, FIN_ACK, OPENER),
        (State::SynSent, SYN_ACK, OPENER),
        (State::SynSent, FIN_ACK, ANSWER),
        (State::SynReceived, SYN, ANSWER),
        (State::Established, SYN_ACK, OPENER),
        (State::Established, SYN, ANSWER),
        (State::Established, 0, OPENER),
        (State::Established, 0, ANSWER),
        (State::SynSent2, ACK, OPENER),
        (State::Close, SYN, ANSWER),
        (State::None, RST, OPENER),
        (State::None, FIN_ACK, OPENER),
        (State::None, SYN_ACK, ANSWER),
    ] {
        let label = state.label();
        assert_eq!(
            step(state, flags, reply),
            Step::Invalid,
            "{flags:#x} in {label}, {reply}"
        );
    }
    // A challenge ACK in the middle of an opening, a late SYN-ACK: let through, nothing changed.
    assert_eq!(step(State::SynSent, ACK, ANSWER), Step::Ignore);
    assert_eq!(step(State::TimeWait, SYN_ACK, ANSWER), Step::Ignore);
}

#[test]
fn reset_closes_every_open_state() {
    for state in State::ALL.into_iter().filter(|&state| state != State::None) {
        for flags in [RST, RST | ACK] {
            for reply in [OPENER, ANSWER] {
                assert_eq!(step(state, flags, reply), Step::To(State::Close));
            }
        }
    }
}

/// Every number that is a state's gives that state, and every other gives none.
#[test]
fn state_numbers_round_trip() {
    for (number, state) in State::ALL.into_iter().enumerate() {
        assert_eq!(State::from_u8(number as u8), state);
    }
    assert!((10..=255).all(|number| State::from_u8(number) == State::None));
}

/// Only flags that nf_conntrack calls valid are valid.
#[test]
fn valid_flags_are_those_of_nf_conntrack() {
    // `tcp_valid_flags`, beside PSH, ECE and CWR.
    let valid = [
        SYN,
        SYN | URG,
        SYN_ACK,
        RST,
        RST | ACK,
        FIN_ACK,
        FIN_ACK | URG,
        ACK,
        ACK | URG,
    ];
    for flags in 0..=u8::MAX {
        let is_valid = valid.contains(&(flags & (FIN | SYN | RST | ACK | URG)));
        assert_eq!(kind(flags) != Kind::None, is_valid, "{flags:#x}");
    }
    // All the way: neither opens anything.
    let host = Host::usual(64);
    for flags in [SYN | FIN, SYN_ACK | URG, RST | URG] {
        let (outcome, _) = host.by_uplink(&Spec::tcp((CLIENT, 40_000), (HOST, 8080), flags));
        assert_eq!(outcome.reason, Some(Reason::NoFlow), "{flags:#x}");
    }
}

#[test]
fn flow_opens_by_syn_or_mid_connection() {
    assert_eq!(opening(SYN), Opening::Open);
    assert_eq!(opening(ACK), Opening::PickUp);
    for flags in [SYN_ACK, FIN, FIN_ACK, RST, RST | ACK, RST | SYN, 0] {
        assert_eq!(opening(flags), Opening::Refuse, "{flags:#x}");
    }
}

/// Only a plain SYN reopens a flow, and only one that is over.
#[test]
fn plain_syn_reopens_closed_flows_only() {
    for state in State::ALL {
        for flags in 0..32 {
            let over = matches!(state, State::TimeWait | State::Close);
            let bare = flags & (SYN | ACK | RST | FIN) == SYN;
            assert_eq!(reopens(state, flags), over && bare);
        }
    }
}

fn client(flags: u8) -> Spec {
    Spec::tcp((CLIENT, 40_000), (HOST, 8080), flags)
}

fn server(flags: u8) -> Spec {
    Spec::tcp((WEB, 80), (CLIENT, 40_000), flags)
}

/// A host with an open connection from the client to the published port.
fn connected() -> Host {
    let host = Host::usual(64);
    host.by_uplink(&client(SYN));
    host.by_veth(WEB_VETH, &server(SYN_ACK));
    host.by_uplink(&client(ACK));
    host
}

fn state(host: &Host) -> State {
    State::from_u8(host.flow_of(&client(0).tuple).unwrap().1.state())
}

#[test]
fn originators_ack_assures_the_connection() {
    let host = Host::usual(64);
    let flow_state = |host: &Host| host.flow_of(&client(0).tuple).unwrap().1;
    host.by_uplink(&client(SYN));
    assert!(!flow_state(&host).is_assured() && !flow_state(&host).is_replied());
    host.by_veth(WEB_VETH, &server(SYN_ACK));
    assert!(!flow_state(&host).is_assured() && flow_state(&host).is_replied());
    host.by_uplink(&client(ACK));
    assert!(flow_state(&host).is_assured());
    assert_eq!(state(&host), State::Established);
}

/// A segment that does not fit is dropped and changes nothing.
#[test]
fn invalid_segment_leaves_the_state_unchanged() {
    let host = connected();
    let before = host.flow_of(&client(0).tuple).unwrap().0.packets[0].get();
    let (outcome, _) = host.by_uplink(&client(SYN_ACK));
    assert_eq!(outcome.reason, Some(Reason::TcpState));
    assert_eq!(
        host.flow_of(&client(0).tuple).unwrap().0.packets[0].get(),
        before
    );
    assert_eq!(state(&host), State::Established);
}

#[test]
fn syn_after_close_opens_a_new_flow() {
    for end in [&[FIN_ACK][..], &[RST]] {
        let host = connected();
        for &flags in end {
            host.by_uplink(&client(flags));
        }
        if end == [FIN_ACK] {
            host.by_veth(WEB_VETH, &server(FIN_ACK));
            host.by_uplink(&client(ACK));
            assert_eq!(state(&host), State::TimeWait);
        }
        let old = host.flow_of(&client(0).tuple).unwrap().1.id();
        let (outcome, _) = host.by_uplink(&client(SYN));
        assert_eq!(outcome.reason, Some(Reason::Forwarded));
        let (flow, flow_state) = host.flow_of(&client(0).tuple).unwrap();
        assert_eq!(State::from_u8(flow_state.state()), State::SynSent);
        assert!(
            !flow_state.is_assured(),
            "a new flow of id {} after {old}",
            flow_state.id()
        );
        assert_eq!(flow.packets[0].get(), 1);
    }
}

#[test]
fn each_state_has_its_timeout() {
    let mut host = connected();
    let left = |host: &Host| {
        host.flow_of(&client(0).tuple)
            .unwrap()
            .0
            .expires
            .get()
            .wrapping_sub(host.clock.get())
    };
    assert_eq!(left(&host), timeouts::tcp(State::Established));
    host.wait(clock::seconds(60));
    host.by_uplink(&client(FIN_ACK));
    assert_eq!(left(&host), timeouts::tcp(State::FinWait));
    host.by_uplink(&client(RST));
    assert_eq!(left(&host), timeouts::tcp(State::Close));
}

#[test]
fn repeated_syn_does_not_extend_the_timeout() {
    let mut host = Host::usual(64);
    host.by_uplink(&client(SYN));
    let expires = |host: &Host| host.flow_of(&client(0).tuple).unwrap().0.expires.get();
    let first = expires(&host);
    host.wait(clock::seconds(3));
    host.by_uplink(&client(SYN));
    assert_eq!(expires(&host), first);
}

#[test]
fn picked_up_connection_needs_an_answer() {
    let host = Host::usual(64);
    host.by_uplink(&client(ACK));
    let (flow, flow_state) = host.flow_of(&client(0).tuple).unwrap();
    assert!(!flow_state.is_assured());
    let left = flow.expires.get().wrapping_sub(host.clock.get());
    assert_eq!(left, timeouts::TCP_UNACKNOWLEDGED);
    host.by_veth(WEB_VETH, &server(ACK));
    assert!(host.flow_of(&client(0).tuple).unwrap().1.is_assured());
}

/// A strict host picks no connection up in its middle.
#[test]
fn strict_host_picks_up_no_connection() {
    let mut host = Host::usual(64);
    host.settings.tcp_strict = 1;
    host.by_uplink(&client(ACK));
    assert!(host.flow_of(&client(0).tuple).is_none());
    host.by_uplink(&client(SYN));
    host.by_veth(WEB_VETH, &server(SYN | ACK));
    host.by_uplink(&client(ACK));
    assert!(host.flow_of(&client(0).tuple).unwrap().1.is_assured());
}
