// SPDX-License-Identifier: MIT OR Apache-2.0
//! A flow's life: made, found, promoted, expired, swept, pushed out. Both keys go together, and
//! what was a flow's is never taken for another's.

use forwarder_common::abi::{ORIGINAL, REPLY};
use forwarder_common::clock;
use forwarder_common::conntrack::timeouts;
use forwarder_common::reason::Reason;
use forwarder_common::tracking::tcp::State;
use forwarder_common::wire::proto;
use forwarder_testkit::model::frames::{ACK, SYN, Spec, ip};
use forwarder_testkit::model::host::{APP, APP_VETH, CLIENT, HOST, REMOTE, WEB, WEB_VETH};
use forwarder_testkit::model::{self, Host};
use proptest::prelude::*;

/// Enough for a ring of 16.
const FLOWS: u32 = 64;

fn query(port: u16) -> Spec {
    Spec::udp((APP, port), (REMOTE, 53))
}

fn answer(port: u16) -> Spec {
    Spec::udp((REMOTE, 53), (HOST, port))
}

fn lives(host: &Host, spec: &Spec) -> bool {
    host.flow_of(&spec.tuple).is_some()
}

/// Makes a flow that no flood ends: UDP, answered and in use for long enough.
fn assure(host: &mut Host, port: u16) {
    host.by_veth(APP_VETH, &query(port));
    host.wait(timeouts::UDP_STREAM_AFTER + 1);
    host.by_uplink(&answer(port));
    assert!(host.flow_of(&query(port).tuple).unwrap().1.is_assured());
}

/// Both directions find the flow that one packet created.
#[test]
fn both_directions_find_the_same_flow() {
    let host = Host::usual(FLOWS);
    host.by_veth(APP_VETH, &query(5000).payload(100));
    host.by_uplink(&answer(5000).payload(300));
    let (flow, flow_state) = host.flow_of(&query(5000).tuple).unwrap();
    assert_eq!(host.flow_of(&answer(5000).tuple).unwrap().1, flow_state);
    assert_eq!(flow.tuples[ORIGINAL].get(), query(5000).tuple);
    assert_eq!(flow.tuples[REPLY].get(), answer(5000).tuple);
    assert_eq!(flow.packets.each_ref().map(std::cell::Cell::get), [1, 1]);
    assert_eq!(flow.bytes.each_ref().map(std::cell::Cell::get), [128, 328]);
    assert!(flow_state.is_live() && flow_state.is_replied() && !flow_state.is_assured());
}

#[test]
fn udp_becomes_a_stream_as_in_nf_conntrack() {
    let mut host = Host::usual(FLOWS);
    let left = |host: &Host| {
        host.flow_of(&query(1).tuple)
            .unwrap()
            .0
            .expires
            .get()
            .wrapping_sub(host.clock.get())
    };
    let assured = |host: &Host| host.flow_of(&query(1).tuple).unwrap().1.is_assured();
    host.by_veth(APP_VETH, &query(1));
    assert_eq!(left(&host), timeouts::UDP);
    host.wait(timeouts::UDP_STREAM_AFTER + 1);
    host.by_veth(APP_VETH, &query(1));
    assert!(!assured(&host), "nobody answered");
    host.by_uplink(&answer(1));
    assert!(assured(&host));
    assert_eq!(left(&host), timeouts::UDP_STREAM);

    // Question and answer within two seconds are no stream.
    host.by_veth(APP_VETH, &query(2));
    host.by_uplink(&answer(2));
    assert!(!host.flow_of(&query(2).tuple).unwrap().1.is_assured());
}

/// A flow ends when its timeout is over, and not before.
#[test]
fn flow_expires_at_its_timeout() {
    let mut host = Host::usual(FLOWS);
    host.by_veth(APP_VETH, &query(1));
    host.wait(timeouts::UDP - 1);
    assert_eq!(
        host.by_veth(APP_VETH, &query(1)).0.reason,
        Some(Reason::Forwarded)
    );
    host.wait(timeouts::UDP);
    // No sweep came by: the packet itself finds that it is late, and ends the flow.
    assert_eq!(host.by_uplink(&answer(1)).0.reason, Some(Reason::ToHost));
    assert!(!lives(&host, &query(1)) && !lives(&host, &answer(1)));
}

#[test]
fn new_flows_collect_expired_ones() {
    let mut host = Host::usual(FLOWS);
    assure(&mut host, 1);
    for port in 10..18 {
        host.by_veth(APP_VETH, &query(port));
    }
    host.wait(timeouts::UDP_STREAM);
    // Two records a flow: as many flows as half the table walk all of it.
    for port in 100..100 + FLOWS as u16 / 2 {
        host.by_veth(APP_VETH, &query(port));
    }
    for port in [1, 10, 13, 17] {
        assert!(!lives(&host, &query(port)), "port {port}");
    }
}

/// A flood evicts the oldest unassured flows and no others.
#[test]
fn flood_evicts_the_oldest_unassured_only() {
    let mut host = Host::usual(FLOWS);
    let ring = FLOWS as u16 / 4;
    assure(&mut host, 1);
    assure(&mut host, 2);
    for port in 0..ring {
        host.by_veth(APP_VETH, &query(1000 + port));
    }
    for more in 0..3 * ring {
        host.by_veth(APP_VETH, &query(2000 + more));
        if more < ring {
            for port in 0..ring {
                // First in, first out.
                let gone = port <= more;
                assert_eq!(
                    lives(&host, &query(1000 + port)),
                    !gone,
                    "{port} after {more}"
                );
            }
        }
    }
    assert!(lives(&host, &query(1)) && lives(&host, &query(2)));
    let unassured = host.index.borrow().len() / 2 - 2;
    assert_eq!(unassured, usize::from(ring));
}

#[test]
fn full_table_refuses_and_loses_nothing() {
    let mut host = Host::usual(FLOWS);
    let open = |port, flags| Spec::tcp((CLIENT, port), (HOST, 8080), flags);
    let most = FLOWS as u16 / 8 * 7;
    for port in 1..=most {
        host.by_uplink(&open(port, SYN));
        host.by_veth(WEB_VETH, &Spec::tcp((WEB, 80), (CLIENT, port), SYN | ACK));
        host.by_uplink(&open(port, ACK));
    }
    // The last eighth is not for clients from outside.
    assert_eq!(
        host.by_uplink(&open(9999, SYN)).0.reason,
        Some(Reason::TableFull)
    );
    for port in 1..=FLOWS as u16 / 8 {
        assure(&mut host, port);
    }
    assert_eq!(
        host.by_veth(APP_VETH, &query(9999)).0.reason,
        Some(Reason::TableFull)
    );
    assert!((1..=most).all(|port| lives(&host, &open(port, ACK))));
    host.wait(timeouts::tcp(State::Established));
    assert_eq!(
        host.by_uplink(&open(9999, SYN)).0.reason,
        Some(Reason::Forwarded)
    );
}

#[test]
fn first_flow_survives_the_second() {
    // An empty place of the ring must name nobody.
    let host = Host::usual(FLOWS);
    for port in 1..=u16::from(FLOWS as u8 / 4) {
        host.by_veth(APP_VETH, &query(port));
        assert!((1..=port).all(|earlier| lives(&host, &query(earlier))));
    }
}

/// What happens to a host's tables.
type Change = fn(&mut Host);

/// No flow outlives its container or its port mapping.
#[test]
fn flow_ends_with_its_container_or_mapping() {
    let request = Spec::tcp((CLIENT, 40_000), (HOST, 8080), SYN);
    let again = Spec {
        flags: ACK,
        ..request.clone()
    };
    let change: [(&str, Change, Reason); 4] = [
        (
            "restarted",
            |host| {
                let slot = host.endpoint_slots[&WEB];
                host.endpoints[slot as usize].generation += 1;
            },
            Reason::Forwarded,
        ),
        (
            "gone",
            |host| {
                let slot = host.endpoint_slots.remove(&WEB).unwrap();
                host.endpoints[slot as usize] = Default::default();
            },
            Reason::NoEndpoint,
        ),
        (
            "published anew",
            |host| host.mappings.values_mut().for_each(|it| *it += 1),
            Reason::Forwarded,
        ),
        (
            "no more published",
            |host| {
                host.published.clear();
                host.mappings.clear();
            },
            Reason::ToHost,
        ),
    ];
    for (name, action, then) in change {
        let mut host = Host::usual(FLOWS);
        host.by_uplink(&request);
        let (record, old) = host.flow_of(&request.tuple).unwrap();
        let record: *const _ = record;
        action(&mut host);
        assert_eq!(host.by_uplink(&again).0.reason, Some(then), "{name}");
        if let Some((flow, new)) = host.flow_of(&request.tuple) {
            assert!(
                !std::ptr::eq(flow, record) || new.id() != old.id(),
                "{name}: the old flow"
            );
            assert_eq!(flow.packets[ORIGINAL].get(), 1, "{name}");
        }
    }
}

/// A flow ends when the masquerade address changes.
#[test]
fn changed_masquerade_address_ends_the_flow() {
    let mut host = Host::usual(FLOWS);
    host.by_veth(APP_VETH, &query(1));
    host.settings.route_generation += 1;
    assert_eq!(
        host.by_veth(APP_VETH, &query(1)).0.reason,
        Some(Reason::Forwarded)
    );
    host.sources
        .values_mut()
        .for_each(|source| *source = ip(198, 18, 1, 9));
    assert_eq!(
        host.by_veth(APP_VETH, &query(1)).0.reason,
        Some(Reason::Forwarded)
    );
    host.settings.route_generation += 1;
    assert_eq!(
        host.by_veth(APP_VETH, &query(1)).0.reason,
        Some(Reason::RouteMoved)
    );
    assert_eq!(
        host.by_veth(APP_VETH, &query(1)).0.reason,
        Some(Reason::Forwarded)
    );
    let reply = host.flow_of(&query(1).tuple).unwrap().0.tuples[REPLY].get();
    assert_eq!(reply.dst, ip(198, 18, 1, 9));
}

/// Without a live agent, the next hop of a flow is looked up anew.
#[test]
fn route_is_looked_up_anew_without_an_agent() {
    let mut host = Host::usual(FLOWS);
    host.by_veth(APP_VETH, &query(1));
    let elsewhere = ip(198, 18, 1, 77);
    host.route((ip(0, 0, 0, 0), 0), model::host::UPLINK, elsewhere, 1500);
    let hop = |host: &Host| match host.by_veth(APP_VETH, &query(1)).0.target {
        Some(model::Target::Neighbour(_, hop)) => hop,
        other => panic!("{other:?}"),
    };
    assert_eq!(hop(&host), CLIENT, "the agent is alive and said nothing");
    host.clock.set(host.clock.get() + timeouts::HEARTBEAT + 1);
    assert_eq!(hop(&host), elsewhere);
}

/// Something that happens.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Query(u16),
    Answer(u16),
    Request(u16, u8),
    Reply(u16, u8),
    Wait(u32),
    Restart,
    Republish,
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let action = prop_oneof![
        8 => (0..40_u16).prop_map(Deed::Query),
        8 => (0..40_u16).prop_map(Deed::Answer),
        8 => (0..20_u16, 0..32_u8).prop_map(|(port, flags)| Deed::Request(port, flags)),
        8 => (0..20_u16, 0..32_u8).prop_map(|(port, flags)| Deed::Reply(port, flags)),
        2 => (0..9_000_u32).prop_map(Deed::Wait),
        1 => Just(Deed::Restart),
        1 => Just(Deed::Republish),
    ];
    prop::collection::vec(action, 1..150)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens: after each packet, keys and records are whole (`Host::check`), and no
    /// packet is forwarded by a flow that is over.
    #[test]
    fn tables_stay_whole(deeds in deeds()) {
        let mut host = Host::usual(FLOWS);
        for action in deeds {
            match action {
                Deed::Query(port) => drop(host.by_veth(APP_VETH, &query(port))),
                Deed::Answer(port) => {
                    let before = host.flow_of(&answer(port).tuple).map(|(flow, _)| {
                        clock::reached(flow.expires.get(), host.clock.get())
                    });
                    let (outcome, _) = host.by_uplink(&answer(port));
                    if outcome.reason == Some(Reason::Forwarded) {
                        prop_assert_eq!(before, Some(false));
                    }
                }
                Deed::Request(port, flags) => {
                    host.by_uplink(&Spec::tcp((CLIENT, 40_000 + port), (HOST, 8080), flags));
                }
                Deed::Reply(port, flags) => {
                    host.by_veth(WEB_VETH, &Spec::tcp((WEB, 80), (CLIENT, 40_000 + port), flags));
                }
                Deed::Wait(ticks) => host.wait(ticks),
                Deed::Restart => {
                    let slot = host.endpoint_slots[&WEB];
                    host.endpoints[slot as usize].generation += 1;
                }
                Deed::Republish => host.mappings.values_mut().for_each(|it| *it += 1),
            }
            host.check();
        }
        prop_assert!(host.index.borrow().keys().all(|tuple| tuple.proto != proto::ICMP));
    }
}
