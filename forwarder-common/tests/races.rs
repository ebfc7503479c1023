// SPDX-License-Identifier: MIT OR Apache-2.0
//! What another CPU may do while a packet is under way: nothing of it shows.

use forwarder_common::abi::{FlowState, Tuple};
use forwarder_common::conntrack::flow;
use forwarder_common::event::EventKind;
use forwarder_common::family::V4;
use forwarder_common::reason::{Path, Reason};
use forwarder_testkit::model::Host;
use forwarder_testkit::model::frames::Spec;
use forwarder_testkit::model::host::{APP, APP_VETH, CLIENT, HOST, REMOTE, WEB, WEB_VETH};
use forwarder_testkit::packet::sums_up;

const FLOWS: u32 = 64;

fn query(port: u16) -> Spec {
    Spec::udp((APP, port), (REMOTE, 53))
}

fn answer(port: u16) -> Spec {
    Spec::udp((REMOTE, 53), (HOST, port))
}

/// What another CPU does to the flow of a packet under way: it ends, and its record goes to a flow
/// of somebody else's at once.
fn recycle(host: &Host, tuple: Tuple<V4>) {
    let Some(reference) = host.index.borrow().get(&tuple).copied() else {
        return;
    };
    let flow_state = FlowState(host.flows[reference.index as usize].flow_state.get());
    if flow_state.is_live() && flow::claim(host, reference.index, flow_state, EventKind::Over) {
        host.free.borrow_mut().push_front(reference.index);
        let other = Spec::udp((WEB, 7777), (CLIENT, 7777));
        host.by_veth(WEB_VETH, &other);
    }
}

/// A recycled record is never taken for the old flow.
#[test]
fn recycled_record_is_never_the_old_flow() {
    let packets = |host: &Host| {
        host.by_veth(APP_VETH, &query(1));
    };
    let mut gone = 0;
    for look in 0..12 {
        for inward in [true, false] {
            let host = Host::usual(FLOWS);
            packets(&host);
            let tuple = if inward {
                answer(1).tuple
            } else {
                query(1).tuple
            };
            host.interfere(look, move |host| recycle(host, tuple));
            let (outcome, packet) = if inward {
                host.by_uplink(&answer(1))
            } else {
                host.by_veth(APP_VETH, &query(1))
            };
            gone += u32::from(outcome.reason == Some(Reason::FlowGone));
            assert!(sums_up(&packet));
            // Its own translation or none: never that of the flow that has the record now.
            let (src, dst) = (&packet[12..16], &packet[16..20]);
            if inward {
                assert!(
                    dst == HOST.octets() || dst == APP.octets(),
                    "look {look}: {outcome:?}"
                );
            } else {
                assert!(
                    src == HOST.octets() || src == APP.octets(),
                    "look {look}: {outcome:?}"
                );
                assert_eq!(dst, REMOTE.octets());
            }
        }
    }
    assert!(gone > 0, "the race was never met");
}

/// Of two CPUs that create the same flow, one wins.
#[test]
fn racing_cpus_create_one_flow() {
    for look in 0..12 {
        let host = Host::usual(FLOWS);
        host.interfere(look, |host| {
            host.by_veth(APP_VETH, &query(1));
        });
        let (outcome, packet) = host.by_veth(APP_VETH, &query(1));
        let path = outcome.reason.map(Reason::path);
        assert!(
            path == Some(Path::Fast) || path == Some(Path::Drop),
            "look {look}: {outcome:?}"
        );
        assert!(sums_up(&packet));
        host.check();
        assert!(host.index.borrow().len() <= 4);
    }
}
