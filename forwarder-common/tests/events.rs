// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is told of flows: each beginning once, and for each one end with its reason; and what is done
//! to flows by hand.

use std::cell::Cell;
use std::collections::HashSet;

use forwarder_common::abi::{FlowRef, FlowState};
use forwarder_common::clock;
use forwarder_common::conntrack::flow_operation::{self, Ending};
use forwarder_common::conntrack::timeouts;
use forwarder_common::event::{Event, EventKind};
use forwarder_common::family::V4;
use forwarder_testkit::model::frames::{ACK, RST, SYN, Spec};
use forwarder_testkit::model::host::{APP, APP_VETH, CLIENT, HOST, REMOTE, WEB_VETH};
use forwarder_testkit::model::{self, Host};
use forwarder_testkit::rng::Rng;

const FLOWS: u32 = 64;

fn query(port: u16) -> Spec {
    Spec::udp((APP, port), (REMOTE, 53))
}

fn answer(port: u16) -> Spec {
    Spec::udp((REMOTE, 53), (HOST, port))
}

fn emitted(host: &Host) -> Vec<Event<V4>> {
    host.emitted.borrow().clone()
}

/// The flow that a query made.
fn reference(host: &Host, port: u16) -> FlowRef {
    *host.index.borrow().get(&query(port).tuple).unwrap()
}

/// No flow has told its beginning and not its end, but those that live; none ends twice.
fn balanced(host: &Host) {
    let mut open = HashSet::new();
    for event in emitted(host) {
        let name = (event.index.get(), FlowState(event.flow_state.get()).id());
        if event.kind.get() == EventKind::Begins as u32 {
            assert!(open.insert(name), "begins twice: {event:?}");
        } else {
            assert!(open.remove(&name), "ends without having begun: {event:?}");
        }
    }
    let alive: HashSet<_> = host
        .index
        .borrow()
        .values()
        .map(|flow| (flow.index, flow.id))
        .collect();
    assert_eq!(open, alive);
}

/// A flow emits an event at its beginning and one at its end, with its counters.
#[test]
fn flow_emits_begin_and_end_with_counters() {
    let mut host = Host::usual(FLOWS);
    host.by_veth(APP_VETH, &query(1).payload(100));
    host.by_uplink(&answer(1).payload(300));
    let [begin] = &emitted(&host)[..] else {
        panic!("{:?}", emitted(&host))
    };
    assert_eq!(begin.kind.get(), EventKind::Begins as u32);
    assert_eq!(
        begin.tuples.each_ref().map(Cell::get),
        [query(1).tuple, answer(1).tuple]
    );
    assert_eq!(
        (&begin.packets, &begin.bytes),
        (&[0, 0].map(Cell::new), &[0, 0].map(Cell::new))
    );
    assert_eq!(begin.at.get(), host.clock.get());

    host.wait(timeouts::UDP);
    host.by_uplink(&answer(1));
    let [_, end] = &emitted(&host)[..] else {
        panic!("{:?}", emitted(&host))
    };
    assert_eq!(end.kind.get(), EventKind::Over as u32);
    assert_eq!(end.tuples, begin.tuples);
    assert_eq!(
        (&end.packets, &end.bytes),
        (&[1, 1].map(Cell::new), &[128, 328].map(Cell::new))
    );
    assert_eq!(
        (end.index.get(), FlowState(end.flow_state.get()).id()),
        (begin.index.get(), FlowState(begin.flow_state.get()).id())
    );
    assert!(FlowState(end.flow_state.get()).is_replied());
    assert_eq!(
        (end.at.get(), end.created.get()),
        (host.clock.get(), begin.at.get())
    );
    assert!(clock::reached(end.expires.get(), end.at.get()));
}

#[test]
fn evicted_flow_emits_its_eviction() {
    let host = Host::usual(FLOWS);
    for port in 0..20 {
        host.by_veth(APP_VETH, &query(1000 + port));
    }
    let evicted: Vec<_> = emitted(&host)
        .into_iter()
        .filter(|event| event.kind.get() == EventKind::Evicted as u32)
        .map(|event| event.tuples[0].get().sport.get())
        .collect();
    assert_eq!(evicted, [1000, 1001, 1002, 1003]);
    balanced(&host);
}

/// A flow that is deleted ends once, with both of its keys.
#[test]
fn deletion_ends_both_keys_once() {
    let host = Host::usual(FLOWS);
    for port in [1, 2] {
        host.by_veth(APP_VETH, &query(port));
    }
    let flow = reference(&host, 1);
    let other = FlowRef {
        id: flow.id.wrapping_add(1),
        ..flow
    };
    assert_eq!(
        flow_operation::end(&host, other),
        Ending::Absent,
        "another life"
    );
    assert_eq!(flow_operation::end(&host, flow), Ending::Ended);
    assert_eq!(flow_operation::end(&host, flow), Ending::Absent);
    host.check();
    assert_eq!(host.index.borrow().len(), 2);
    assert!(host.flow_of(&query(2).tuple).is_some());
    assert_eq!(
        emitted(&host).last().unwrap().kind.get(),
        EventKind::Deleted as u32
    );
    balanced(&host);
    let beyond = FlowRef {
        index: FLOWS,
        id: 0,
    };
    assert_eq!(flow_operation::end(&host, beyond), Ending::Absent);
}

/// Expired flows are collected even if no new flow comes.
#[test]
fn expired_flows_are_collected_without_new_ones() {
    let mut host = Host::usual(FLOWS);
    for port in 1..=3 {
        host.by_veth(APP_VETH, &query(port));
    }
    host.wait(timeouts::UDP - 1);
    host.by_veth(APP_VETH, &query(2));
    flow_operation::collect(&host, FLOWS);
    assert_eq!(host.index.borrow().len(), 6, "none too early");
    host.wait(1);
    flow_operation::collect(&host, FLOWS);
    assert_eq!(host.index.borrow().len(), 2);
    assert!(host.flow_of(&query(2).tuple).is_some());
    host.check();
    balanced(&host);
}

/// Of two CPUs that create the same flow, the one that loses emits the end of its own.
#[test]
fn losing_cpu_emits_the_end_of_its_flow() {
    let mut undone = 0;
    for look in 0..12 {
        let host = Host::usual(FLOWS);
        host.interfere(look, |host| {
            host.by_veth(APP_VETH, &query(1));
        });
        host.by_veth(APP_VETH, &query(1));
        balanced(&host);
        undone += emitted(&host)
            .iter()
            .filter(|event| event.kind.get() == EventKind::Undone as u32)
            .count();
    }
    assert!(undone > 0, "the race was never met");
}

#[test]
#[cfg_attr(miri, ignore = "thousands of packets: too many for Miri")]
fn every_begin_event_has_one_end_event() {
    for seed in 0..20 {
        let mut rng = Rng::new(seed);
        let mut host = Host::usual(FLOWS);
        for step in 0..1_000 {
            let port = 1 + rng.below(40) as u16;
            let flags = rng.pick(&[SYN, ACK, RST]);
            match rng.below(8) {
                0..3 => drop(host.by_veth(APP_VETH, &query(port))),
                3 => drop(host.by_uplink(&answer(port))),
                4 => drop(host.by_uplink(&Spec::tcp((CLIENT, port), (HOST, 8080), flags))),
                5 => {
                    let web = (model::host::WEB, 80);
                    drop(host.by_veth(WEB_VETH, &Spec::tcp(web, (CLIENT, port), SYN | ACK)));
                }
                6 => host.wait(rng.below(400) as u32),
                _ => {
                    let flow = FlowRef {
                        index: rng.below(FLOWS as usize) as u32,
                        id: rng.below(3) as u32,
                    };
                    flow_operation::end(&host, flow);
                }
            }
            if step % 100 == 99 {
                balanced(&host);
            }
        }
    }
}
