// SPDX-License-Identifier: MIT OR Apache-2.0
//! What each hook refuses, and the guards on the way out.

use forwarder_common::abi::network;
use forwarder_common::family::Be32;
use forwarder_common::mark;
use forwarder_common::reason::{Path, Reason};
use forwarder_testkit::model::frames::{ACK, SYN, Spec, ip, left_by};
use forwarder_testkit::model::host::{
    APP, APP_VETH, BRIDGE, CLIENT, FAR, FAR_VETH, GATEWAY, HOST, OTHER_BRIDGE, REMOTE, UPLINK, WEB,
    WEB_VETH, far_mac, mac,
};
use forwarder_testkit::model::{Arrival, Carried, Hook, Host};
use forwarder_testkit::packet::sums_up;

fn request() -> Spec {
    Spec::udp((CLIENT, 40_000), (HOST, 8080))
}

fn query() -> Spec {
    Spec::udp((APP, 5000), (REMOTE, 53))
}

fn addresses(packet: &[u8]) -> (Be32, Be32) {
    let at = |at: usize| ip(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]);
    (at(12), at(16))
}

#[test]
fn container_cannot_send_forbidden_packets() {
    let mut host = Host::usual(64);
    host.networks.get_mut(&OTHER_BRIDGE).unwrap().flags |= network::INTERNAL;
    let other = Spec {
        tuple: forwarder_common::abi::Tuple {
            proto: 136,
            ..query().tuple
        },
        ..query()
    };
    for (veth, spec, reason) in [
        (
            APP_VETH,
            Spec::udp((WEB, 1), (REMOTE, 53)),
            Reason::SpoofedSource,
        ),
        (
            APP_VETH,
            Spec::udp((REMOTE, 1), (CLIENT, 53)),
            Reason::ForeignSource,
        ),
        (
            APP_VETH,
            Spec::udp((FAR, 1), (CLIENT, 53)),
            Reason::SpoofedSource,
        ),
        (
            APP_VETH,
            Spec::udp((ip(127, 0, 0, 1), 1), (CLIENT, 53)),
            Reason::Loopback,
        ),
        (
            APP_VETH,
            Spec::udp((APP, 1), (ip(127, 0, 0, 1), 53)),
            Reason::Loopback,
        ),
        (
            APP_VETH,
            Spec::udp((APP, 1), (ip(0, 1, 2, 3), 53)),
            Reason::ToHost,
        ),
        (
            APP_VETH,
            Spec::udp((APP, 1), (ip(239, 255, 255, 255), 53)),
            Reason::ToHost,
        ),
        (
            APP_VETH,
            Spec::udp((APP, 1), (ip(255, 255, 255, 255), 53)),
            Reason::ToHost,
        ),
        // Reserved, and routed all the same.
        (
            APP_VETH,
            Spec::udp((APP, 1), (ip(240, 0, 0, 1), 53)),
            Reason::Forwarded,
        ),
        (
            APP_VETH,
            Spec::udp((APP, 1), (ip(255, 255, 255, 254), 53)),
            Reason::Forwarded,
        ),
        (APP_VETH, Spec::udp((APP, 1), (FAR, 53)), Reason::Isolated),
        (
            FAR_VETH,
            Spec::udp((FAR, 1), (REMOTE, 53)),
            Reason::Internal,
        ),
        (APP_VETH, query().fragment(0x2000), Reason::Fragment),
        (APP_VETH, query().fragment(0x0001), Reason::Fragment),
        (APP_VETH, other, Reason::Protocol),
        (
            APP_VETH,
            Spec::tcp((APP, 1), (REMOTE, 80), SYN | ACK),
            Reason::NoFlow,
        ),
        (APP_VETH, Spec::pong(APP, REMOTE, 7), Reason::NoFlow),
    ] {
        assert_eq!(
            host.by_veth(veth, &spec).0.reason,
            Some(reason),
            "{:?}",
            spec.tuple
        );
        // What is refused takes nobody's place.
        let known = host.flow_of(&spec.tuple).is_some();
        assert_eq!(known, reason == Reason::Forwarded, "{:?}", spec.tuple);
    }
    for (spec, reason) in [
        (Spec::udp((APP, 1), (WEB, 53)), Reason::Routed),
        (Spec::udp((APP, 1), (GATEWAY, 53)), Reason::ToHost),
        (Spec::udp((APP, 1), (HOST, 53)), Reason::ToHost),
        (
            Spec::udp((APP, 1), (ip(224, 0, 0, 251), 53)),
            Reason::ToHost,
        ),
    ] {
        let (outcome, packet) = host.by_veth(APP_VETH, &spec);
        assert_eq!(outcome.reason, Some(reason), "{:?}", spec.tuple);
        assert_eq!(packet, spec.packet());
    }
}

#[test]
fn outside_cannot_send_forbidden_packets() {
    let host = Host::usual(64);
    for (spec, reason) in [
        (Spec::udp((CLIENT, 1), (WEB, 80)), Reason::DirectRouting),
        (
            Spec::udp((CLIENT, 1), (ip(127, 0, 0, 1), 8080)),
            Reason::Loopback,
        ),
        (
            Spec::udp((ip(127, 0, 0, 1), 1), (HOST, 8080)),
            Reason::Loopback,
        ),
        (Spec::udp((CLIENT, 1), (REMOTE, 80)), Reason::NotOurs),
        (Spec::udp((CLIENT, 1), (HOST, 22)), Reason::ToHost),
        (request().fragment(0x2000), Reason::Fragment),
        (
            Spec::tcp((CLIENT, 1), (HOST, 8080), SYN | ACK),
            Reason::NoFlow,
        ),
    ] {
        let (outcome, packet) = host.by_uplink(&spec);
        assert_eq!(outcome.reason, Some(reason), "{:?}", spec.tuple);
        assert_eq!(packet, spec.packet());
    }
    let wrong = request().between(far_mac(7), far_mac(UPLINK));
    let arrival = Arrival {
        ifindex: UPLINK,
        ..Arrival::default()
    };
    assert_eq!(
        host.run(Hook::OutsideIn, &mut wrong.build(), arrival)
            .reason,
        Some(Reason::NotForUs)
    );
}

/// Every mark that is ours, and some that are not.
fn marks() -> impl Iterator<Item = u32> {
    (0..=15).flat_map(|kind| [kind << 28, kind << 28 | 0x00ff_0000])
}

#[test]
fn host_marks_have_no_effect() {
    let mut host = Host::usual(64);
    let flags = network::ISOLATED | network::INTERNAL;
    host.networks.get_mut(&BRIDGE).unwrap().flags |= flags;
    let own = Spec::udp((HOST, 1), (WEB, 53)).packet();
    let leaks = query().packet();
    for mark in marks() {
        let (outcome, packet) = host.to_bridge(BRIDGE, 0, mark, &own);
        let seen = (outcome.reason, outcome.mark, packet);
        let expected = (Some(Reason::Internal), mark, own.clone());
        assert_eq!(seen, expected, "mark {mark:#x}");
        let (outcome, _) = host.to_outside(0, mark, &leaks);
        assert_eq!(
            (outcome.reason, outcome.mark),
            (Some(Reason::Untranslated), mark),
            "mark {mark:#x}"
        );
    }
}

/// Others' bits of a mark stay as they are on every way, and change nothing.
#[test]
fn foreign_mark_bits_are_kept() {
    for theirs in [0, 0x00ff_4000, 0x0fff_ffff] {
        let host = Host::usual(64);
        let arrival = Arrival {
            ifindex: APP_VETH,
            mark: theirs,
            ..Arrival::default()
        };
        let by = |spec: &Spec| {
            let macs = (mac(BRIDGE), far_mac(APP_VETH));
            let mut frame = spec.clone().between(macs.0, macs.1).build();
            let outcome = host.run(Hook::ContainerIn, &mut frame, arrival);
            (outcome, frame.split_off(14))
        };
        let (outcome, packet) = by(&query());
        assert_eq!(outcome.mark, theirs | mark::DONE);
        let (left, _) = host.to_outside(APP_VETH, outcome, &packet);
        assert_eq!((left.reason, left.mark), (Some(Reason::Admitted), theirs));

        let (outcome, packet) = by(&query().options());
        assert_eq!(outcome.mark, theirs | mark::FLOW);
        let (left, packet) = host.to_outside(BRIDGE, outcome, &packet);
        assert_eq!((left.reason, left.mark), (Some(Reason::Completed), theirs));
        assert_eq!(packet[12..16], HOST.octets());

        let (outcome, _) = by(&Spec::udp((APP, 5000), (HOST, 22)));
        assert_eq!(outcome.mark, theirs | mark::HOST);
    }
}

/// A packet whose hash is lost on the way through the kernel does not leave untranslated.
#[test]
fn packet_with_a_lost_hash_does_not_leave() {
    let host = Host::usual(64);
    let (outcome, packet) = host.by_veth(APP_VETH, &query().options());
    for hash in (1..32).map(|bit| 1 << bit) {
        let carried = Carried(outcome.mark, outcome.hash ^ hash);
        let (left, _) = host.to_outside(BRIDGE, carried, &packet);
        // But for the bit that is no part of the way to the flow.
        let expected = if hash == 1 << 30 {
            Reason::Completed
        } else {
            Reason::Untranslated
        };
        assert_eq!(left.reason, Some(expected), "bit {hash:#x}");
    }
}

#[test]
fn egress_guards_drop_leaks() {
    let mut host = Host::usual(64);
    let leaks = query().packet();
    for mark in [0, 7, mark::FLOW | 3, mark::HOST] {
        let (outcome, _) = host.to_outside(BRIDGE, mark, &leaks);
        assert_eq!(outcome.reason, Some(Reason::Untranslated), "mark {mark:#x}");
    }
    let (outcome, _) = host.to_outside(APP_VETH, mark::DONE, &leaks);
    assert_eq!(outcome.reason, Some(Reason::Admitted));
    // A network that nobody told us of, whatever its addresses; by a device that is known the host
    // forwards as it likes.
    for source in [ip(172, 20, 0, 2), ip(10, 99, 0, 2), ip(198, 19, 7, 2)] {
        let packet = Spec::udp((source, 1), (REMOTE, 53)).packet();
        for (device, reason) in [(99, Reason::UnknownNetwork), (UPLINK, Reason::FromHost)] {
            let (outcome, _) = host.to_outside(device, 0, &packet);
            assert_eq!(outcome.reason, Some(reason), "{source:?} by {device}");
        }
    }
    let own = Spec::udp((HOST, 1), (REMOTE, 53)).packet();
    assert_eq!(host.to_outside(0, 0, &own).0.reason, Some(Reason::FromHost));

    assert_eq!(
        host.to_bridge(BRIDGE, 0, 0, &own).0.reason,
        Some(Reason::FromHost)
    );
    assert_eq!(
        host.to_bridge(BRIDGE, UPLINK, 0, &own).0.reason,
        Some(Reason::DirectRouting)
    );

    let switched = Spec::udp((APP, 1), (WEB, 53)).packet();
    let between = |host: &Host, ingress_ifindex, mark| {
        let arrival = Arrival {
            ifindex: WEB_VETH,
            ingress_ifindex,
            mark,
            hash: 0,
            segment: 0,
        };
        host.raw(Hook::ContainerOut, &switched, arrival).0.reason
    };
    assert_eq!(between(&host, APP_VETH, 0), Some(Reason::Bridged));
    assert_eq!(between(&host, 0, 0), Some(Reason::FromHost));
    host.networks.get_mut(&BRIDGE).unwrap().flags |= network::ICC_DISABLED;
    assert_eq!(between(&host, APP_VETH, 0), Some(Reason::PeerBlocked));
    assert_eq!(
        between(&host, APP_VETH, mark::FLOW | 1),
        Some(Reason::FromHost)
    );
}

/// A network whose range holds the uplink's LAN and the host's own address.
fn surrounded() -> Host {
    let mut host = Host::usual(64);
    host.bridge(12, ip(198, 18, 0, 1), 16, network::MASQUERADE);
    host.container(12, 23, ip(198, 18, 0, 2));
    host
}

/// An address inside a network's range does not make its owner a container.
#[test]
fn address_range_makes_no_container() {
    let host = surrounded();
    let neighbour = ip(198, 18, 1, 9);
    let own = Spec::udp((HOST, 1), (neighbour, 53)).packet();
    assert_eq!(host.to_outside(0, 0, &own).0.reason, Some(Reason::FromHost));
    let others = Spec::udp((ip(198, 18, 2, 9), 1), (neighbour, 53));
    assert_eq!(
        host.to_outside(3, 0, &others.packet()).0.reason,
        Some(Reason::FromHost),
        "forwarded between two outside devices"
    );
    for (spec, reason) in [
        (Spec::udp((neighbour, 1), (HOST, 22)), Reason::ToHost),
        (
            Spec::udp((neighbour, 1), (ip(198, 18, 2, 9), 53)),
            Reason::NotOurs,
        ),
        (
            Spec::udp((neighbour, 1), (ip(198, 18, 2, 9), 53)).fragment(0x0001),
            Reason::NotOurs,
        ),
        (
            Spec::udp((neighbour, 1), (ip(198, 18, 0, 2), 53)),
            Reason::DirectRouting,
        ),
    ] {
        let (outcome, packet) = host.by_uplink(&spec);
        assert_eq!(outcome.reason, Some(reason), "{:?}", spec.tuple);
        assert_eq!(packet, spec.packet());
    }
    // Another network's container reaches the LAN, and not the network around it.
    let (outcome, packet) = host.by_veth(APP_VETH, &Spec::udp((APP, 1), (neighbour, 53)));
    assert_eq!(outcome.reason, Some(Reason::Forwarded));
    assert_eq!(addresses(&packet), (HOST, neighbour));
    let inside = Spec::udp((APP, 1), (ip(198, 18, 0, 2), 53));
    assert_eq!(
        host.by_veth(APP_VETH, &inside).0.reason,
        Some(Reason::Isolated)
    );
}

#[test]
fn device_makes_a_container_for_any_source() {
    let host = surrounded();
    let forged = Spec::udp((REMOTE, 1), (CLIENT, 53)).packet();
    let of_container = Spec::udp((ip(198, 18, 0, 2), 1), (REMOTE, 53)).packet();
    for (ingress_ifindex, packet, reason) in [
        (BRIDGE, &forged, Reason::Untranslated),
        (12, &of_container, Reason::Untranslated),
        // By nobody's device, but in a container's very name.
        (0, &of_container, Reason::Untranslated),
        (UPLINK, &of_container, Reason::FromHost),
    ] {
        assert_eq!(
            host.to_outside(ingress_ifindex, 0, packet).0.reason,
            Some(reason),
            "by {ingress_ifindex}"
        );
    }
}

/// A flow of the host's is translated to another port where a container's flow has the same ports.
#[test]
fn host_flow_is_translated_beside_containers() {
    let host = Host::usual(64);
    let to = |packet: &[u8]| u16::from_be_bytes([packet[22], packet[23]]);
    assert_eq!(
        host.by_veth(APP_VETH, &query()).0.reason,
        Some(Reason::Forwarded)
    );
    // The same ports, from a socket of the host's: its answers would be the container's.
    let own = Spec::udp((HOST, 5000), (REMOTE, 53)).packet();
    let (outcome, left) = host.to_outside(0, 0, &own);
    assert_eq!(outcome.reason, Some(Reason::HostFlow));
    assert!(sums_up(&left));
    assert_eq!(addresses(&left), (HOST, REMOTE));
    let other = left_by(&left);
    assert_ne!(other, 5000);
    assert_eq!(left_by(&host.to_outside(0, 0, &own).1), other, "kept");
    // Each gets its own answers.
    let (_, answer) = host.by_uplink(&Spec::udp((REMOTE, 53), (HOST, other)));
    assert_eq!((addresses(&answer).1, to(&answer)), (HOST, 5000));
    let (_, answer) = host.by_uplink(&Spec::udp((REMOTE, 53), (HOST, 5000)));
    assert_eq!((addresses(&answer).1, to(&answer)), (APP, 5000));
}

#[test]
fn routed_network_shows_its_own_addresses() {
    let mut host = Host::usual(64);
    host.networks.get_mut(&BRIDGE).unwrap().flags = 0;
    let (outcome, packet) = host.by_veth(APP_VETH, &query());
    assert_eq!(outcome.reason, Some(Reason::Forwarded));
    assert_eq!(addresses(&packet), (APP, REMOTE));
}

#[test]
fn reasons_have_unique_names() {
    let labels: std::collections::HashSet<_> = Reason::ALL.iter().map(|it| it.label()).collect();
    assert_eq!(labels.len(), Reason::ALL.len());
    for (number, reason) in Reason::ALL.into_iter().enumerate() {
        assert_eq!(Reason::from_u8(number as u8), Some(reason));
        assert!(reason.text().ends_with('.'));
        assert!(!matches!(reason.path(), Path::Fast) || reason.label() != "to-host");
    }
    assert_eq!(Reason::from_u8(Reason::ALL.len() as u8), None);
}

/// Before the agent's first start is complete everything passes untouched, whatever a guard says.
#[test]
fn unarmed_hooks_pass_everything() {
    let mut host = Host::usual(64);
    host.settings.armed = 0;
    let spoofed = Spec::udp((HOST, 1), (REMOTE, 53));
    let mut frames = vec![
        (Hook::ContainerIn, APP_VETH, query().build()),
        (Hook::ContainerIn, APP_VETH, spoofed.build()),
        (Hook::BridgeIn, BRIDGE, query().build()),
        (Hook::OutsideOut, UPLINK, query().build()),
        (Hook::BridgeOut, BRIDGE, query().build()),
        (Hook::ContainerOut, APP_VETH, query().build()),
    ];
    let published = Spec::tcp((CLIENT, 40_000), (HOST, 8080), SYN);
    let direct = Spec::udp((CLIENT, 40_000), (WEB, 80));
    frames.push((Hook::OutsideIn, UPLINK, published.build()));
    frames.push((Hook::OutsideIn, UPLINK, direct.build()));
    for (hook, ifindex, frame) in frames {
        let mut after = frame.clone();
        let arrival = Arrival {
            ifindex,
            ingress_ifindex: BRIDGE,
            ..Arrival::default()
        };
        let outcome = host.run(hook, &mut after, arrival);
        let path = outcome.reason.map(Reason::path);
        assert_eq!(path, Some(Path::Kernel), "{hook:?}: {:?}", outcome.reason);
        assert!(after == frame && outcome.mark == 0, "{hook:?} changes it");
    }
    assert_eq!(host.free.borrow().len(), 64, "flows are made");
}
