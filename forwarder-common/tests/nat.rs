// SPDX-License-Identifier: MIT OR Apache-2.0
//! Choosing ports: kept where it can be, reused, within its class, never somebody else's.

use std::collections::HashSet;

use forwarder_common::abi::{PortRange, REPLY, Tuple};
use forwarder_common::conntrack::timeouts;
use forwarder_common::family::V4;
use forwarder_common::reason::Reason;
use forwarder_testkit::model::Host;
use forwarder_testkit::model::frames::{SYN, Spec, ip};
use forwarder_testkit::model::host::{
    APP, APP_VETH, BRIDGE, CLIENT, GATEWAY, HOST, REMOTE, WEB, WEB_VETH,
};
use forwarder_testkit::packet::sums_up;
use proptest::prelude::*;

const FLOWS: u32 = 1024;

/// The port that a packet's flow got.
fn port(host: &Host, spec: &Spec) -> u16 {
    let (flow, _) = host.flow_of(&spec.tuple).unwrap();
    flow.tuples[REPLY].get().dport.get()
}

fn from_app(host: &Host, spec: &Spec) -> u16 {
    let (outcome, _) = host.by_veth(APP_VETH, spec);
    assert_eq!(outcome.reason, Some(Reason::Forwarded), "{:?}", spec.tuple);
    port(host, spec)
}

fn from_web(host: &Host, spec: &Spec) -> u16 {
    let (outcome, _) = host.by_veth(WEB_VETH, spec);
    assert_eq!(outcome.reason, Some(Reason::Forwarded), "{:?}", spec.tuple);
    port(host, spec)
}

/// A source port is kept while it is free.
#[test]
fn free_port_is_kept() {
    let host = Host::usual(FLOWS);
    for own in [1, 511, 512, 600, 1023, 1024, 5000, 65_535] {
        assert_eq!(from_app(&host, &Spec::udp((APP, own), (REMOTE, 53))), own);
        assert_eq!(
            from_app(&host, &Spec::tcp((APP, own), (REMOTE, 53), SYN)),
            own
        );
        assert_eq!(from_app(&host, &Spec::ping(APP, REMOTE, own)), own);
        // Towards others it is free, too.
        assert_eq!(from_web(&host, &Spec::udp((WEB, own), (CLIENT, 53))), own);
    }
}

#[test]
fn taken_port_gives_another_of_its_class() {
    for (own, class) in [
        (100, 1..=511),
        (511, 1..=511),
        (512, 600..=1023),
        (1023, 600..=1023),
        (1024, 1024..=65_535),
        (60_000, 1024..=65_535),
    ] {
        let host = Host::usual(FLOWS);
        from_web(&host, &Spec::udp((WEB, own), (REMOTE, 53)));
        let other = from_app(&host, &Spec::udp((APP, own), (REMOTE, 53)));
        assert!(
            other != own && class.contains(&other),
            "{own} became {other}"
        );
    }
}

/// A source keeps the port that it already has towards other destinations (RFC 4787 REQ-1).
#[test]
fn source_keeps_its_port_towards_others() {
    let host = Host::usual(FLOWS);
    from_web(&host, &Spec::udp((WEB, 5000), (REMOTE, 53)));
    let drawn = from_app(&host, &Spec::udp((APP, 5000), (REMOTE, 53)));
    assert_ne!(drawn, 5000);
    // Its own would be free towards this one, but then it had two (RFC 4787 REQ-1).
    assert_eq!(
        from_app(&host, &Spec::udp((APP, 5000), (CLIENT, 53))),
        drawn
    );
    // Not another protocol's, not another source's.
    assert_eq!(
        from_app(&host, &Spec::tcp((APP, 5000), (CLIENT, 53), SYN)),
        5000
    );
    assert_eq!(from_app(&host, &Spec::udp((APP, 5001), (CLIENT, 53))), 5001);
}

#[test]
fn last_bytes_of_an_address_count() {
    // Of 64 neighbours that each had to draw, 64 know what they drew: but for a few that share a
    // place by chance.
    let mut host = Host::usual(FLOWS);
    let mut kept = 0;
    let mut drawn = Vec::new();
    from_web(&host, &Spec::udp((WEB, 5000), (REMOTE, 53)));
    for last in 0..64 {
        let (addr, veth) = (ip(172, 17, 7, last), 100 + u32::from(last));
        host.container(BRIDGE, veth, addr);
        let spec = Spec::udp((addr, 5000), (REMOTE, 53));
        assert_eq!(host.by_veth(veth, &spec).0.reason, Some(Reason::Forwarded));
        drawn.push((addr, veth, port(&host, &spec)));
    }
    for (addr, veth, drawn) in drawn {
        let spec = Spec::udp((addr, 5000), (CLIENT, 53));
        host.by_veth(veth, &spec);
        kept += u32::from(port(&host, &spec) == drawn);
    }
    assert!(kept > 56, "{kept} of 64");
}

#[test]
fn drawn_port_is_forgotten_with_its_last_flow() {
    let mut host = Host::usual(FLOWS);
    let to = |remote| Spec::udp((APP, 5000), (remote, 53));
    from_web(&host, &Spec::udp((WEB, 5000), (REMOTE, 53)));
    let drawn = from_app(&host, &to(REMOTE));
    // The flow that drew it lives on by its packets, one that came later too, others end.
    from_app(&host, &to(CLIENT));
    for _ in 0..4 {
        host.wait(timeouts::UDP / 2 + 1);
        from_app(&host, &to(REMOTE));
    }
    let third = ip(198, 19, 0, 3);
    assert_eq!(from_app(&host, &to(third)), drawn);
    // Now the youngest outlives the one that drew it.
    for _ in 0..4 {
        host.wait(timeouts::UDP / 2 + 1);
        from_app(&host, &to(third));
    }
    let fourth = ip(198, 19, 0, 4);
    assert_eq!(from_app(&host, &to(fourth)), drawn);
    // All are over: the own port is free, and it is taken.
    host.wait(timeouts::UDP_STREAM + 1);
    assert_eq!(from_app(&host, &to(REMOTE)), 5000);
    assert_eq!(from_app(&host, &to(CLIENT)), 5000);
}

#[test]
fn icmp_queries_are_separate_flows() {
    let host = Host::usual(FLOWS);
    // The same identifier of one container: no clash among the kinds. Of another: one each.
    let requests = |src| {
        [
            Spec::ping(src, REMOTE, 7),
            Spec::query(13, src, REMOTE, 7),
            Spec::query(15, src, REMOTE, 7),
            Spec::query(17, src, REMOTE, 7),
        ]
    };
    for (request, kind) in requests(APP).into_iter().zip([0, 14, 16, 18]) {
        assert_eq!(from_app(&host, &request), 7);
        let other = from_web(
            &host,
            &Spec {
                tuple: Tuple {
                    src: WEB,
                    ..request.tuple
                },
                ..request
            },
        );
        assert_ne!(other, 7);
        for (id, addr, own) in [(7, APP, 7), (other, WEB, 7)] {
            let reply = match kind {
                0 => Spec::pong(REMOTE, HOST, id),
                _ => Spec::query(kind, REMOTE, HOST, id),
            };
            let (outcome, packet) = host.by_uplink(&reply);
            assert_eq!(outcome.reason, Some(Reason::Forwarded));
            assert!(sums_up(&packet));
            assert_eq!(packet[16..20], addr.octets());
            assert_eq!(packet[24..26], u16::to_be_bytes(own));
        }
    }
    // A reply of another kind is none.
    let fresh = Host::usual(FLOWS);
    from_app(&fresh, &Spec::query(13, APP, REMOTE, 7));
    for stray in [
        Spec::pong(REMOTE, HOST, 7),
        Spec::query(16, REMOTE, HOST, 7),
    ] {
        assert_eq!(fresh.by_uplink(&stray).0.reason, Some(Reason::ToHost));
    }
    let (outcome, _) = fresh.by_veth(APP_VETH, &Spec::query(14, APP, REMOTE, 9));
    assert_eq!(outcome.reason, Some(Reason::NoFlow));
}

/// Ports of the host's sockets and published ports are avoided.
#[test]
fn socket_and_published_ports_are_avoided() {
    let mut host = Host::usual(FLOWS);
    host.socket(HOST, 5000, 17);
    assert_ne!(from_app(&host, &Spec::udp((APP, 5000), (REMOTE, 53))), 5000);
    assert_eq!(
        from_app(&host, &Spec::tcp((APP, 5000), (REMOTE, 53), SYN)),
        5000
    );
    // Published on any address, and on exactly this one.
    assert_ne!(from_app(&host, &Spec::udp((APP, 8080), (REMOTE, 53))), 8080);
    host.publish((HOST, 6000, 6), (WEB, 1));
    assert_ne!(
        from_app(&host, &Spec::tcp((APP, 6000), (REMOTE, 53), SYN)),
        6000
    );
    host.publish((ip(198, 18, 2, 1), 6001, 6), (WEB, 1));
    assert_eq!(
        from_app(&host, &Spec::tcp((APP, 6001), (REMOTE, 53), SYN)),
        6001
    );
}

/// A remote's port is never refused, whatever sockets the host has.
#[test]
fn remote_port_is_never_refused() {
    // What reaches a container from outside keeps the client's port, whatever sockets there are.
    let mut host = Host::usual(FLOWS);
    host.socket(CLIENT, 40_000, 6);
    let request = Spec::tcp((CLIENT, 40_000), (HOST, 8080), SYN);
    assert_eq!(host.by_uplink(&request).0.reason, Some(Reason::Forwarded));
    assert_eq!(port(&host, &request), 40_000);
}

/// A client that reaches one container by two addresses of the host gets two ports.
#[test]
fn client_at_two_addresses_gets_two_ports() {
    // Both were (client, 40000) → (container, 80): only one can keep it.
    let host = Host::usual(FLOWS);
    let first = Spec::udp((CLIENT, 40_000), (HOST, 8080));
    let second = Spec::udp((CLIENT, 40_000), (ip(198, 18, 2, 1), 8080));
    host.by_uplink(&first);
    host.by_uplink(&second);
    assert_eq!(port(&host, &first), 40_000);
    assert_ne!(port(&host, &second), 40_000);
}

/// A connection that is made anew after the old flow is over keeps its port.
#[test]
fn new_connection_keeps_its_port() {
    let mut host = Host::usual(FLOWS);
    from_web(&host, &Spec::udp((WEB, 5000), (REMOTE, 53)));
    host.wait(timeouts::UDP);
    // The old flow is over, though nothing has swept it up.
    assert_eq!(from_app(&host, &Spec::udp((APP, 5000), (REMOTE, 53))), 5000);
}

/// A hairpin flow shows the gateway's address and a port of its own.
#[test]
fn hairpin_shows_gateway_and_own_port() {
    let host = Host::usual(FLOWS);
    let first = Spec::tcp((APP, 5000), (HOST, 8080), SYN);
    assert_eq!(from_app(&host, &first), 5000);
    let second = Spec::tcp((APP, 5000), (ip(198, 18, 2, 1), 8080), SYN);
    assert_ne!(from_app(&host, &second), 5000);
    for spec in [first, second] {
        let reply: Tuple<V4> = host.flow_of(&spec.tuple).unwrap().0.tuples[REPLY].get();
        assert_eq!(
            (reply.src, reply.sport.get(), reply.dst),
            (WEB, 80, GATEWAY)
        );
    }
}

/// A port class that is full refuses a flow and gives its record back.
#[test]
fn full_port_class_refuses_and_frees_record() {
    let mut host = Host::usual(FLOWS);
    for taken in 1..512 {
        host.socket(HOST, taken, 17);
    }
    let free = host.free.borrow().len();
    let (outcome, _) = host.by_veth(APP_VETH, &Spec::udp((APP, 100), (REMOTE, 53)));
    assert_eq!(outcome.reason, Some(Reason::PortsExhausted));
    assert_eq!(host.free.borrow().len(), free);
    assert!(host.index.borrow().is_empty());
}

#[test]
fn nearly_full_port_class_serves() {
    // 95 % of the ports taken: 256 tries fail once in 500,000 flows.
    let mut host = Host::usual(FLOWS);
    for taken in (600..1024).filter(|port| port % 20 != 0) {
        host.socket(HOST, taken, 17);
    }
    host.socket(HOST, 513, 17);
    let served = (0..200)
        .filter(|&last| {
            let spec = Spec::udp((APP, 513), (ip(198, 19, 9, last), 53));
            host.by_veth(APP_VETH, &spec).0.reason == Some(Reason::Forwarded)
        })
        .count();
    assert_eq!(served, 200);
}

#[test]
fn user_sockets_avoid_reserved_ports() {
    // Every port but those that are root's to bind: a hundred flows to one remote find one each.
    let mut host = Host::usual(FLOWS);
    host.settings.reserved_ports = PortRange {
        first: 61_000,
        last: 65_095,
    };
    for proto in [6, 17] {
        for taken in (1024..=65_535).filter(|port| !(61_000..=65_095).contains(port)) {
            host.socket(HOST, taken, proto);
        }
    }
    for own in 5000..5100 {
        for spec in [
            Spec::udp((APP, own), (REMOTE, 53)),
            Spec::tcp((APP, own), (REMOTE, 53), SYN),
        ] {
            let drawn = from_app(&host, &spec);
            assert!((61_000..=65_095).contains(&drawn), "{drawn}");
        }
    }
    // Not a lower class's.
    for taken in 600..1024 {
        host.socket(HOST, taken, 17);
    }
    let (outcome, _) = host.by_veth(APP_VETH, &Spec::udp((APP, 700), (REMOTE, 53)));
    assert_eq!(outcome.reason, Some(Reason::PortsExhausted));
}

#[test]
fn narrow_reservation_is_found_in_time() {
    // 16 ports, and one in 4,000 tries would meet one by chance.
    let mut host = Host::usual(FLOWS);
    host.settings.reserved_ports = PortRange {
        first: 1024,
        last: 1039,
    };
    for taken in 1040..=65_535 {
        host.socket(HOST, taken, 17);
    }
    for own in 5000..5008 {
        let drawn = from_app(&host, &Spec::udp((APP, own), (REMOTE, 53)));
        assert!((1024..1040).contains(&drawn), "{drawn}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// However many sources ask for however few ports: no two answers have the same way back.
    #[test]
    fn flows_have_distinct_answers(
        asks in prop::collection::vec((any::<bool>(), 1..8_u16, 0..3_u8, 0..3_u8), 1..80)
    ) {
        let host = Host::usual(FLOWS);
        let mut made = HashSet::new();
        for (web, port, remote, kind) in asks {
            let (src, veth) = if web { (WEB, WEB_VETH) } else { (APP, APP_VETH) };
            let dst = ip(198, 19, 0, remote);
            let spec = match kind {
                0 => Spec::udp((src, port), (dst, 53)),
                1 => Spec::tcp((src, port), (dst, 53), SYN),
                _ => Spec::ping(src, dst, port),
            };
            let (outcome, _) = host.by_veth(veth, &spec);
            prop_assert_eq!(outcome.reason, Some(Reason::Forwarded));
            made.insert(spec.tuple);
        }
        let replies: HashSet<_> = made
            .iter()
            .map(|tuple| host.flow_of(tuple).unwrap().0.tuples[REPLY].get())
            .collect();
        prop_assert_eq!(replies.len(), made.len());
    }
}
