// SPDX-License-Identifier: MIT OR Apache-2.0
//! Protocols without ports: translated by their addresses alone, for one container per remote.

use forwarder_common::abi::network;
use forwarder_common::conntrack::timeouts::{GENERIC, UDP_STREAM_AFTER};
use forwarder_common::mark;
use forwarder_common::reason::Reason;
use forwarder_testkit::model::frames::{Spec, TIME_EXCEEDED, cut};
use forwarder_testkit::model::host::{
    APP, APP_VETH, BRIDGE, CLIENT, GATEWAY, HOST, REMOTE, UPLINK, WEB, WEB_VETH, mac,
};
use forwarder_testkit::model::{self, Arrival, Carried, Hook, Host, Target};
use forwarder_testkit::packet::sums_up;

const GRE: u32 = 47;
const ESP: u32 = 50;

fn bare(
    protocol: u32,
    src: forwarder_common::family::Be32,
    dst: forwarder_common::family::Be32,
) -> Spec {
    let mut spec = Spec::udp((src, 0), (dst, 0)).payload(40);
    spec.tuple.proto = protocol;
    spec
}

fn sent(host: &Host, veth: u32, spec: &Spec) -> Option<Reason> {
    host.by_veth(veth, spec).0.reason
}

#[test]
fn portless_packets_change_addresses_only() {
    let host = Host::usual(64);
    // GRE, ESP, AH, IP in IP, and one that nobody has heard of.
    for protocol in [GRE, ESP, 51, 4, 143] {
        let (outcome, packet) = host.by_veth(APP_VETH, &bare(protocol, APP, REMOTE));
        assert_eq!(outcome.reason, Some(Reason::Forwarded));
        assert_eq!(packet, bare(protocol, HOST, REMOTE).hops(63).packet());
        let (outcome, packet) = host.by_uplink(&bare(protocol, REMOTE, HOST));
        assert_eq!(outcome.reason, Some(Reason::Forwarded));
        assert_eq!(outcome.target, Some(Target::Peer(APP_VETH)));
        assert_eq!(packet, bare(protocol, REMOTE, APP).hops(63).packet());
    }
}

/// A portless protocol's remote belongs to one container: nothing else tells the answers apart.
#[test]
fn remote_belongs_to_one_container() {
    let host = Host::usual(64);
    assert_eq!(
        sent(&host, APP_VETH, &bare(GRE, APP, REMOTE)),
        Some(Reason::Forwarded)
    );
    // No other number could tell their answers apart.
    assert_eq!(
        sent(&host, WEB_VETH, &bare(GRE, WEB, REMOTE)),
        Some(Reason::PortsExhausted)
    );
    assert_eq!(
        sent(&host, WEB_VETH, &bare(ESP, WEB, REMOTE)),
        Some(Reason::Forwarded)
    );
    assert_eq!(
        sent(&host, WEB_VETH, &bare(GRE, WEB, CLIENT)),
        Some(Reason::Forwarded)
    );
    assert_eq!(
        sent(&host, APP_VETH, &bare(GRE, APP, REMOTE)),
        Some(Reason::Forwarded)
    );
}

/// A portless flow lives for ten minutes and is not evicted once it is in use.
#[test]
fn portless_flow_lives_ten_minutes() {
    let mut host = Host::usual(64);
    let spec = bare(GRE, APP, REMOTE);
    sent(&host, APP_VETH, &spec);
    host.wait(GENERIC - 1);
    let answer = bare(GRE, REMOTE, HOST);
    assert_eq!(host.by_uplink(&answer).0.reason, Some(Reason::Forwarded));
    let assured = |host: &Host| host.flow_of(&spec.tuple).unwrap().1.is_assured();
    assert!(assured(&host), "{UDP_STREAM_AFTER} ticks have gone by");
    host.wait(GENERIC);
    // Its remote is free again.
    assert_eq!(
        sent(&host, WEB_VETH, &bare(GRE, WEB, REMOTE)),
        Some(Reason::Forwarded)
    );
}

/// A refused container gets an ICMP error if its packet has enough bytes to quote.
#[test]
fn refusal_is_answered_if_quote_is_complete() {
    let host = Host::usual(64);
    sent(&host, APP_VETH, &bare(GRE, APP, REMOTE));
    for (length, is_answered) in [(3, false), (7, false), (8, true)] {
        let spec = bare(GRE, WEB, REMOTE).payload(length);
        let (outcome, packet) = host.by_veth(WEB_VETH, &spec);
        assert_eq!(outcome.reason, Some(Reason::PortsExhausted));
        assert_eq!(outcome.target.is_some(), is_answered, "{length} bytes");
        if is_answered {
            assert!(sums_up(&packet));
            assert_eq!(packet[20..22], [3, 13]);
        }
    }
    let short = bare(GRE, APP, REMOTE).payload(3);
    assert_eq!(sent(&host, APP_VETH, &short), Some(Reason::Forwarded));
}

/// A protocol whose own checksum covers the addresses is refused.
#[test]
fn protocol_with_address_checksum_is_refused() {
    let host = Host::usual(64);
    for protocol in [33, 136] {
        let (outcome, packet) = host.by_veth(APP_VETH, &bare(protocol, APP, REMOTE));
        assert_eq!(outcome.reason, Some(Reason::Protocol));
        assert_eq!(packet, bare(protocol, APP, REMOTE).packet());
    }
}

/// No portless packet comes in that no container has asked for.
#[test]
fn unsolicited_portless_packets_are_refused() {
    let host = Host::usual(64);
    let asked = bare(GRE, REMOTE, HOST);
    let (outcome, packet) = host.by_uplink(&asked);
    assert_eq!((outcome.reason, outcome.mark), (Some(Reason::ToHost), 0));
    assert_eq!(packet, asked.packet());
    let straight = bare(GRE, REMOTE, APP);
    assert_eq!(
        host.by_uplink(&straight).0.reason,
        Some(Reason::DirectRouting)
    );
}

/// The host's own portless traffic takes precedence over a container's.
#[test]
fn host_takes_precedence_over_containers() {
    let host = Host::usual(64);
    let (own, answer) = (bare(ESP, HOST, REMOTE).packet(), bare(ESP, REMOTE, HOST));
    let says = || host.to_outside(0, 0, &own);
    let for_the_host = || {
        let reason = host.by_uplink(&answer).0.reason;
        assert_eq!(reason, Some(Reason::HostFlow));
    };
    // A container has the remote first: no longer than until the host talks to it.
    assert_eq!(
        sent(&host, APP_VETH, &bare(ESP, APP, REMOTE)),
        Some(Reason::Forwarded)
    );
    assert_eq!(host.by_uplink(&answer).0.reason, Some(Reason::Forwarded));
    let (outcome, packet) = says();
    assert_eq!(
        (outcome.reason, packet),
        (Some(Reason::FromHost), own.clone())
    );
    for_the_host();
    assert_eq!(
        sent(&host, APP_VETH, &bare(ESP, APP, REMOTE)),
        Some(Reason::PortsExhausted)
    );
    assert_eq!(says().0.reason, Some(Reason::FromHost));
    for_the_host();
    // Routing protocols speak to groups, which are nobody's remote.
    let group = bare(89, HOST, model::frames::ip(224, 0, 0, 5));
    host.to_outside(0, 0, &group.packet());
    assert!(host.flow_of(&group.tuple).is_none());
}

fn heard(host: &Host, spec: &Spec) -> Option<Reason> {
    let (outcome, packet) = host.by_uplink(spec);
    assert_eq!((outcome.target, outcome.mark), (None, 0));
    assert_eq!(packet, spec.packet());
    outcome.reason
}

/// What a remote sends to the host is the host's as long as the remote goes on, though the host
/// only listens.
#[test]
fn host_keeps_the_remote_that_it_listens_to() {
    let mut host = Host::usual(64);
    let mirror = bare(GRE, REMOTE, HOST);
    let steals = bare(GRE, APP, REMOTE);
    assert_eq!(heard(&host, &mirror), Some(Reason::ToHost));
    for _ in 0..3 {
        assert_eq!(
            sent(&host, APP_VETH, &steals),
            Some(Reason::PortsExhausted),
            "not even after {GENERIC} ticks"
        );
        host.wait(GENERIC - 1);
        assert_eq!(heard(&host, &mirror), Some(Reason::HostFlow));
    }
    // Another protocol's and another remote's are not.
    assert_eq!(
        sent(&host, APP_VETH, &bare(ESP, APP, REMOTE)),
        Some(Reason::Forwarded)
    );
    assert_eq!(
        sent(&host, APP_VETH, &bare(GRE, APP, CLIENT)),
        Some(Reason::Forwarded)
    );
    // The host begins to send, and is told by an error of its own: both leave as they are.
    let own = bare(GRE, HOST, REMOTE).packet();
    let error = Spec::error(
        model::frames::UNREACHABLE,
        HOST,
        REMOTE,
        &mirror.packet(),
        60,
    );
    for leaves in [error.packet(), own] {
        assert_eq!(host.to_outside(0, 0, &leaves).1, leaves);
        assert_eq!(sent(&host, APP_VETH, &steals), Some(Reason::PortsExhausted));
        assert_eq!(heard(&host, &mirror), Some(Reason::HostFlow));
    }
    host.wait(GENERIC);
    assert_eq!(sent(&host, APP_VETH, &steals), Some(Reason::Forwarded));
}

/// What cannot come from outside, and what is for a group, is recorded for nobody.
#[test]
fn host_records_only_what_a_remote_sends_to_it() {
    let host = Host::usual(64);
    for src in [HOST, GATEWAY, APP, model::frames::ip(240, 0, 0, 1)] {
        assert_eq!(heard(&host, &bare(GRE, src, HOST)), Some(Reason::ToHost));
    }
    for group in [1, 5, 18] {
        let dst = model::frames::ip(224, 0, 0, group);
        assert_eq!(heard(&host, &bare(112, REMOTE, dst)), Some(Reason::NotOurs));
    }
    assert!(host.index.borrow().is_empty());
}

/// A stream of fragments is the host's too, where nobody puts them together for the forwarder; and
/// none of them is taken for a container's.
#[test]
fn host_keeps_a_stream_of_fragments() {
    let mut host = Host::usual(64);
    let whole = bare(GRE, REMOTE, HOST).fragment(0).payload(100).packet();
    let arrival = Arrival {
        ifindex: UPLINK,
        ..Arrival::default()
    };
    for _ in 0..3 {
        for piece in cut(&whole, 48, 7) {
            let (outcome, after) = host.raw(Hook::OutsideIn, &piece, arrival);
            assert_eq!(outcome.reason, Some(Reason::ToHost));
            assert_eq!(after, piece);
        }
        host.wait(GENERIC - 1);
        let reason = sent(&host, APP_VETH, &bare(GRE, APP, REMOTE));
        assert_eq!(reason, Some(Reason::PortsExhausted));
    }
}

/// A container that starts anew gets its stream back, though its remote went on all the time.
#[test]
fn restarted_container_gets_its_stream_back() {
    let mut host = Host::usual(64);
    let asks = bare(GRE, APP, REMOTE);
    let answer = bare(GRE, REMOTE, HOST);
    assert_eq!(sent(&host, APP_VETH, &asks), Some(Reason::Forwarded));
    let slot = host.endpoint_slots[&APP] as usize;
    host.endpoints[slot].generation += 1;
    for _ in 0..3 {
        assert_eq!(heard(&host, &answer), Some(Reason::ToHost));
    }
    assert_eq!(sent(&host, APP_VETH, &asks), Some(Reason::Forwarded));
    assert_eq!(host.by_uplink(&answer).0.reason, Some(Reason::Forwarded));
    // It stays away: after ten minutes the stream is the host's.
    host.endpoints[slot].generation += 1;
    host.wait(GENERIC - 1);
    assert_eq!(heard(&host, &answer), Some(Reason::ToHost));
    host.wait(1);
    assert_eq!(heard(&host, &answer), Some(Reason::ToHost));
    assert_eq!(sent(&host, APP_VETH, &asks), Some(Reason::PortsExhausted));
}

/// An ICMP error from a router on the path quotes what the container sent.
#[test]
fn icmp_error_quotes_what_the_container_sent() {
    let host = Host::usual(64);
    let spec = bare(GRE, APP, REMOTE);
    let (_, left) = host.by_veth(APP_VETH, &spec);
    for length in [28, 60] {
        let error = Spec::error(TIME_EXCEEDED, CLIENT, HOST, &left, length);
        let (outcome, packet) = host.by_uplink(&error);
        assert_eq!(outcome.reason, Some(Reason::IcmpError));
        assert_eq!(outcome.target, Some(Target::Peer(APP_VETH)));
        assert!(sums_up(&packet));
        assert_eq!(packet[28..], spec.clone().hops(63).packet()[..length]);
    }
}

#[test]
fn portless_fragments_pass_both_ways() {
    let mut host = Host::usual(64);
    host.settings.defrag_loopback = 90;
    let whole = bare(GRE, APP, REMOTE).fragment(0).payload(100).packet();
    let mut frames = Vec::new();
    for is_fragment in cut(&whole, 48, 7) {
        let frame = [
            &mac(BRIDGE),
            &model::host::far_mac(APP_VETH),
            &[8, 0][..],
            &is_fragment,
        ]
        .concat();
        frames.push((is_fragment, frame));
    }
    let mut led = Carried(0, 0);
    for (nth, (is_fragment, mut frame)) in frames.into_iter().enumerate() {
        let arrival = Arrival {
            ifindex: APP_VETH,
            ..Arrival::default()
        };
        let outcome = host.run(Hook::ContainerIn, &mut frame, arrival);
        assert_eq!(outcome.reason, Some(Reason::Reassembled));
        if nth == 0 {
            led = outcome.into();
        }
        let (out, packet) = host.to_outside(BRIDGE, led, &is_fragment);
        assert_eq!(out.reason, Some(Reason::Completed));
        assert_eq!(packet[12..16], HOST.octets());
        assert_eq!(packet[20..], is_fragment[20..]);
    }
    let answer = bare(GRE, REMOTE, HOST).fragment(0).payload(100).packet();
    for is_fragment in cut(&answer, 48, 7) {
        let arrival = Arrival {
            ifindex: UPLINK,
            mark: mark::DEFRAGMENTED,
            ..Arrival::default()
        };
        let (outcome, packet) = host.raw(Hook::OutsideIn, &is_fragment, arrival);
        assert_eq!(outcome.reason, Some(Reason::Forwarded));
        assert_eq!(packet[16..20], APP.octets());
    }
}

/// A packet that has to be fragmented is left to the kernel.
#[test]
fn oversized_packet_is_left_to_the_kernel() {
    let host = Host::usual(64);
    let mut frame = bare(GRE, APP, REMOTE)
        .between(mac(BRIDGE), model::host::far_mac(APP_VETH))
        .build();
    let arrival = Arrival {
        ifindex: APP_VETH,
        segment: 100,
        ..Arrival::default()
    };
    let outcome = host.run(Hook::ContainerIn, &mut frame, arrival);
    assert_eq!(outcome.reason, Some(Reason::TooBig));
}

/// A network without masquerade is routed as before.
#[test]
fn untranslated_network_is_routed_as_before() {
    let mut host = Host::usual(64);
    host.networks.get_mut(&BRIDGE).unwrap().flags = network::UNPROTECTED;
    assert_eq!(
        sent(&host, APP_VETH, &bare(GRE, APP, REMOTE)),
        Some(Reason::Routed)
    );
    assert_eq!(
        host.by_uplink(&bare(GRE, REMOTE, APP)).0.reason,
        Some(Reason::Routed)
    );
}
