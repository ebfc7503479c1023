//! What each hook refuses, and the guards on the way out.

#[expect(dead_code, reason = "each subject needs its part of the model")]
mod model;

use forwarder_common::abi::network;
use forwarder_common::family::Be32;
use forwarder_common::pipeline::mark;
use forwarder_common::reason::{Path, Reason};
use model::frames::{ACK, SYN, Spec, ip, left_by, sums_up};
use model::host::{
    APP, APP_VETH, BRIDGE, CLIENT, FAR, FAR_VETH, GATEWAY, HOST, OTHER_BRIDGE, REMOTE, UPLINK, WEB,
    WEB_VETH, far_mac,
};
use model::{Arrival, Hook, Host};

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
fn what_a_container_may_not_send() {
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
fn what_may_not_come_from_outside() {
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

#[test]
fn the_guards_on_the_way_out() {
    let mut host = Host::usual(64);
    let leaks = query().packet();
    for mark in [0, 7, mark::TAG | 3, mark::HOST] {
        let (outcome, _) = host.to_outside(BRIDGE, mark, &leaks);
        assert_eq!(outcome.reason, Some(Reason::Untranslated), "mark {mark:#x}");
    }
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
    let between = |host: &Host, came_by, mark| {
        let arrival = Arrival {
            ifindex: WEB_VETH,
            came_by,
            mark,
            segment: 0,
        };
        host.raw(Hook::ContainerOut, &switched, arrival).0.reason
    };
    assert_eq!(between(&host, APP_VETH, 0), Some(Reason::Bridged));
    assert_eq!(between(&host, 0, 0), Some(Reason::FromHost));
    host.networks.get_mut(&BRIDGE).unwrap().flags |= network::NO_PEERS;
    assert_eq!(between(&host, APP_VETH, 0), Some(Reason::PeerBlocked));
    assert_eq!(
        between(&host, APP_VETH, mark::TAG | 1),
        Some(Reason::FromHost)
    );
}

#[test]
fn the_hosts_flow_gives_way_to_a_containers() {
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
fn a_routed_network_shows_its_own_addresses() {
    let mut host = Host::usual(64);
    host.networks.get_mut(&BRIDGE).unwrap().flags = 0;
    let (outcome, packet) = host.by_veth(APP_VETH, &query());
    assert_eq!(outcome.reason, Some(Reason::Forwarded));
    assert_eq!(addresses(&packet), (APP, REMOTE));
}

#[test]
fn every_reason_has_a_name_of_its_own() {
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
            came_by: BRIDGE,
            ..Arrival::default()
        };
        let outcome = host.run(hook, &mut after, arrival);
        let path = outcome.reason.map(Reason::path);
        assert_eq!(path, Some(Path::Kernel), "{hook:?}: {:?}", outcome.reason);
        assert!(after == frame && outcome.mark == 0, "{hook:?} changes it");
    }
    assert_eq!(host.free.borrow().len(), 64, "flows are made");
}
