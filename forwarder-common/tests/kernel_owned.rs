// SPDX-License-Identifier: MIT OR Apache-2.0
//! On top of Docker's rules: what the kernel tracks is left to it, and what it does not translate
//! does not leave.

use forwarder_common::abi::{FlowRef, Tuple, armed};
use forwarder_common::family::V4;
use forwarder_common::mark;
use forwarder_common::reason::Reason;
use forwarder_testkit::model::frames::{ACK, SYN, Spec, UNREACHABLE, ip};
use forwarder_testkit::model::host::{
    APP, APP_VETH, BRIDGE, CLIENT, FAR, HOST, OTHER_BRIDGE, REMOTE, UPLINK, WEB, WEB_VETH,
};
use forwarder_testkit::model::{Arrival, Hook, Host};

fn host() -> Host {
    let mut host = Host::usual(64);
    host.settings.armed = armed::ADOPT;
    host.settings.tcp_strict = 1;
    host
}

/// The kernel tracks a connection with these tuples.
fn track(host: &Host, original: Tuple<V4>, reply: Tuple<V4>) {
    for tuple in [original, reply] {
        host.index.borrow_mut().insert(tuple, FlowRef::KERNEL);
    }
}

#[test]
fn tracked_connection_passes_untouched() {
    let host = host();
    let request = Spec::udp((CLIENT, 40_000), (HOST, 8080));
    let answer = Spec::udp((WEB, 80), (CLIENT, 40_000));
    track(&host, request.tuple, answer.tuple);
    let (outcome, packet) = host.by_uplink(&request);
    assert_eq!(outcome.reason, Some(Reason::KernelOwned));
    assert_eq!((outcome.mark, packet), (mark::NONE, request.packet()));
    let (outcome, packet) = host.by_veth(WEB_VETH, &answer);
    assert_eq!(outcome.reason, Some(Reason::KernelOwned));
    assert_eq!((outcome.mark, packet), (mark::LEAVES, answer.packet()));
    let (outcome, _) = host.by_bridge(BRIDGE, outcome, &answer);
    assert_eq!(outcome.reason, Some(Reason::Admitted));
    // The kernel translates it, and it leaves.
    let translated = Spec::udp((HOST, 8080), (CLIENT, 40_000)).packet();
    let (outcome, packet) = host.to_outside(BRIDGE, mark::LEAVES, &translated);
    let seen = (outcome.mark, packet);
    assert!(outcome.passes(), "{:?}", outcome.reason);
    assert_eq!(seen, (mark::NONE, translated));
}

/// Whoever comes next with another tuple gets a flow.
#[test]
fn new_connections_get_flows() {
    let host = host();
    let other = Spec::udp((CLIENT, 40_001), (HOST, 8080));
    assert_eq!(host.by_uplink(&other).0.reason, Some(Reason::Forwarded));
    let opened = Spec::tcp((APP, 5000), (REMOTE, 443), SYN);
    let (outcome, _) = host.by_veth(APP_VETH, &opened);
    assert_eq!(outcome.reason, Some(Reason::Forwarded));
}

#[test]
fn segment_without_flow_is_the_kernels() {
    let host = host();
    let inward = Spec::tcp((CLIENT, 40_000), (HOST, 8080), ACK);
    let (outcome, packet) = host.by_uplink(&inward);
    assert_eq!(outcome.reason, Some(Reason::KernelOwned));
    assert_eq!(packet, inward.packet());
    let outward = Spec::tcp((APP, 5000), (REMOTE, 443), ACK);
    let (outcome, _) = host.by_veth(APP_VETH, &outward);
    assert_eq!(outcome.reason, Some(Reason::KernelOwned));
    assert_eq!(outcome.mark, mark::LEAVES);
    // With nothing behind the forwarder it has nowhere to go.
    let mut alone = host;
    alone.settings.armed = armed::REPLACE;
    let (outcome, _) = alone.by_veth(APP_VETH, &outward);
    assert_eq!(outcome.reason, Some(Reason::NoFlow));
}

#[test]
fn untranslatable_packets_are_the_kernels() {
    let host = host();
    let quoted = Spec::udp((REMOTE, 53), (APP, 5000));
    let error = Spec::error(UNREACHABLE, APP, REMOTE, &quoted.packet(), 28);
    let (outcome, _) = host.by_veth(APP_VETH, &error);
    assert_eq!(outcome.reason, Some(Reason::KernelOwned));
    let mut lite = Spec::udp((APP, 5000), (REMOTE, 53));
    lite.tuple.proto = 136;
    let (outcome, _) = host.by_veth(APP_VETH, &lite);
    assert_eq!(outcome.reason, Some(Reason::KernelOwned));
}

/// What the guards refuse stays refused, whatever is behind them.
#[test]
fn guards_hold_on_top_of_rules() {
    let host = host();
    let spoofed = Spec::tcp((REMOTE, 1), (CLIENT, 53), ACK);
    let (outcome, _) = host.by_veth(APP_VETH, &spoofed);
    assert_eq!(outcome.reason, Some(Reason::ForeignSource));
    let across = Spec::udp((APP, 1), (FAR, 53));
    let (outcome, _) = host.by_veth(APP_VETH, &across);
    assert_eq!(outcome.reason, Some(Reason::Isolated));
    let direct = Spec::udp((CLIENT, 1), (WEB, 80));
    let (outcome, _) = host.by_uplink(&direct);
    assert_eq!(outcome.reason, Some(Reason::DirectRouting));
}

/// Connection tracking lets pass what it takes for invalid, untranslated.
#[test]
fn untranslated_packet_does_not_leave() {
    let host = host();
    let packet = Spec::tcp((APP, 5000), (REMOTE, 443), ACK).packet();
    for mark in [mark::LEAVES, mark::NONE] {
        let (outcome, _) = host.to_outside(BRIDGE, mark, &packet);
        assert_eq!(outcome.reason, Some(Reason::Untranslated), "{mark:#x}");
    }
}

/// The kernel does not know the forwarder's flows, and may give their ports to others: such a
/// connection gets another port, and its answers reach it.
#[test]
fn kernel_cannot_take_the_port_of_a_flow() {
    let host = host();
    let opened = Spec::tcp((APP, 5000), (REMOTE, 443), SYN);
    assert_eq!(
        host.by_veth(APP_VETH, &opened).0.reason,
        Some(Reason::Forwarded)
    );
    let same = Spec::tcp((HOST, 5000), (REMOTE, 443), SYN).packet();
    for mark in [mark::LEAVES, mark::NONE] {
        let (outcome, packet) = host.to_outside(BRIDGE, mark, &same);
        assert_eq!(outcome.reason, Some(Reason::HostFlow));
        let port = u16::from_be_bytes([packet[20], packet[21]]);
        assert_ne!(port, 5000);
        let answer = Spec::tcp((REMOTE, 443), (HOST, port), SYN | ACK);
        let (outcome, packet) = host.by_uplink(&answer);
        assert_eq!(outcome.reason, Some(Reason::HostFlow));
        assert_eq!(packet[22..24], 5000_u16.to_be_bytes());
    }
}

/// A container's flow does not take the port of a connection that the kernel has translated.
#[test]
fn flow_avoids_ports_that_the_kernel_gave() {
    let host = host();
    for theirs in [
        Spec::tcp((HOST, 5000), (REMOTE, 443), SYN),
        Spec::udp((HOST, 5000), (REMOTE, 53)),
    ] {
        let (outcome, packet) = host.to_outside(OTHER_BRIDGE, mark::NONE, &theirs.packet());
        assert_eq!(outcome.reason, Some(Reason::HostFlow));
        assert_eq!(packet, theirs.packet());
        let mut ours = theirs.clone();
        ours.tuple.src = APP;
        let (outcome, packet) = host.by_veth(APP_VETH, &ours);
        assert_eq!(outcome.reason, Some(Reason::Forwarded));
        assert_ne!(u16::from_be_bytes([packet[20], packet[21]]), 5000);
    }
    // The answer of a server is not the beginning of a connection.
    let answer = Spec::tcp((HOST, 8081), (CLIENT, 40_000), SYN | ACK);
    let (outcome, packet) = host.to_outside(OTHER_BRIDGE, mark::NONE, &answer.packet());
    assert_eq!(outcome.reason, Some(Reason::FromHost));
    assert_eq!(packet, answer.packet());
}

/// What the kernel has translated passes also if there is no room for a record of it.
#[test]
fn kernels_choice_passes_without_a_record() {
    let host = host();
    host.free.borrow_mut().clear();
    let theirs = Spec::udp((HOST, 5000), (REMOTE, 53)).packet();
    let mut frame = [&[0; 12][..], &[8, 0], &theirs].concat();
    let arrival = Arrival {
        ifindex: UPLINK,
        ingress_ifindex: OTHER_BRIDGE,
        ..Arrival::default()
    };
    let outcome = host.run(Hook::OutsideOut, &mut frame, arrival);
    assert!(outcome.passes(), "{:?}", outcome.reason);
    assert_eq!(frame[14..], theirs);
}

/// A flow does not take the port of a connection that the kernel tracks.
#[test]
fn flow_avoids_ports_of_tracked_connections() {
    let host = host();
    let theirs = Spec::udp((WEB, 5000), (REMOTE, 53));
    let reply = Spec::udp((REMOTE, 53), (HOST, 5000)).tuple;
    track(&host, theirs.tuple, reply);
    let ours = Spec::udp((APP, 5000), (REMOTE, 53));
    let (outcome, packet) = host.by_veth(APP_VETH, &ours);
    assert_eq!(outcome.reason, Some(Reason::Forwarded));
    let sport = u16::from_be_bytes([packet[20], packet[21]]);
    assert_ne!(sport, 5000);
    assert_eq!(host.index.borrow().get(&reply), Some(&FlowRef::KERNEL));
}

/// What the kernel has translated is forwarded into a bridge, and on to the container.
#[test]
fn translated_packet_reaches_its_container() {
    let host = host();
    let translated = Spec::udp((CLIENT, 40_000), (WEB, 80)).packet();
    for (ingress, mark) in [(UPLINK, mark::NONE), (OTHER_BRIDGE, mark::LEAVES)] {
        let (outcome, packet) = host.to_bridge(BRIDGE, ingress, mark, &translated);
        assert!(outcome.passes(), "{ingress}: {:?}", outcome.reason);
        assert_eq!((outcome.mark, packet), (mark::NONE, translated.clone()));
    }
    let mut alone = host;
    alone.settings.armed = armed::REPLACE;
    let (outcome, _) = alone.to_bridge(BRIDGE, UPLINK, mark::NONE, &translated);
    assert_eq!(outcome.reason, Some(Reason::DirectRouting));
}

/// A container that started while no agent runs answers by the kernel, which has translated what it
/// answers.
#[test]
fn newcomer_is_the_kernels() {
    let host = host();
    let answer = Spec::udp((ip(172, 17, 0, 99), 53), (CLIENT, 40_000));
    let (outcome, _) = host.by_bridge(BRIDGE, mark::NONE, &answer);
    assert_eq!(outcome.reason, Some(Reason::KernelOwned));
    assert_eq!(outcome.mark, mark::LEAVES);
    let mut alone = host;
    alone.settings.armed = armed::REPLACE;
    let (outcome, _) = alone.by_bridge(BRIDGE, mark::NONE, &answer);
    assert_eq!(outcome.reason, Some(Reason::Forwarded));
}

/// While connections change hands no flow begins, and those that are there go on.
#[test]
fn handover_begins_no_flow() {
    let mut host = host();
    let there = Spec::udp((CLIENT, 40_000), (HOST, 8080));
    assert_eq!(host.by_uplink(&there).0.reason, Some(Reason::Forwarded));
    host.settings.armed = armed::HANDOVER;
    assert_eq!(host.by_uplink(&there).0.reason, Some(Reason::Forwarded));
    let new = Spec::udp((CLIENT, 40_001), (HOST, 8080));
    assert_eq!(host.by_uplink(&new).0.reason, Some(Reason::KernelOwned));
    let opened = Spec::tcp((APP, 5000), (REMOTE, 443), SYN);
    let (outcome, _) = host.by_veth(APP_VETH, &opened);
    assert_eq!(outcome.reason, Some(Reason::KernelOwned));
}
