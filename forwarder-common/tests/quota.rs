//! What one container may open: counted while it lives, however it ends, and never a neighbour's.

#[expect(dead_code, reason = "each subject needs its part of the model")]
mod model;

use forwarder_common::event::News;
use forwarder_common::family::{Be16, Be32};
use forwarder_common::flow::{self, Gate, ORIGINAL};
use forwarder_common::pipeline::mark;
use forwarder_common::quota::{self, ANSWERS};
use forwarder_common::reason::Reason;
use forwarder_common::tcp::State;
use forwarder_common::timeouts::{self, seconds};
use model::frames::{ACK, SYN, Spec, UNREACHABLE, sums_up};
use model::host::{
    APP, APP_VETH, BARE, BRIDGE, CLIENT, GATEWAY, HOST, REMOTE, WEB, WEB_VETH, far_mac,
};
use model::{Arrival, Hook, Host, Outcome, Target};

const FLOWS: u32 = 64;

fn host(flows: u32, quota: u32, rate: u32) -> Host {
    let mut host = Host::usual(flows);
    host.settings.flow_quota = quota;
    host.settings.flow_rate = rate;
    host
}

fn query(port: u16) -> Spec {
    Spec::udp((APP, port), (REMOTE, 53))
}

fn other(port: u16) -> Spec {
    Spec::udp((WEB, port), (REMOTE, 53))
}

fn by_app(host: &Host, spec: &Spec) -> Reason {
    host.by_veth(APP_VETH, spec).0.reason.unwrap()
}

fn by_web(host: &Host, spec: &Spec) -> Reason {
    host.by_veth(WEB_VETH, spec).0.reason.unwrap()
}

/// How many flows an address is charged with; [`Host::check`] compares that with those that live.
fn held(host: &Host, addr: Be32) -> i32 {
    let word = host.quotas[host.endpoint_slots[&addr] as usize].held.get();
    if word == 0 { 0 } else { quota::count(word) }
}

#[test]
fn a_container_at_its_quota_keeps_what_it_has_and_its_neighbour_all_it_wants() {
    let host = host(FLOWS, 5, 0);
    for port in 1..=5 {
        assert_eq!(by_app(&host, &query(port)), Reason::Forwarded);
    }
    for port in 6..20 {
        assert_eq!(by_app(&host, &query(port)), Reason::FlowQuota);
        assert!(host.flow_of(&query(port).tuple).is_none());
    }
    for port in 1..=5 {
        assert_eq!(
            by_app(&host, &query(port)),
            Reason::Forwarded,
            "a known flow"
        );
        assert_eq!(
            by_web(&host, &other(port)),
            Reason::Forwarded,
            "a neighbour"
        );
    }
    assert_eq!((held(&host, APP), held(&host, WEB)), (5, 5));
}

#[test]
fn a_quota_of_nothing_is_none_and_still_counts() {
    let mut host = host(FLOWS, 0, 0);
    for port in 1..=10 {
        assert_eq!(by_app(&host, &query(port)), Reason::Forwarded);
    }
    assert_eq!(held(&host, APP), 10);
    // An agent that comes with one finds what was there before it.
    host.settings.flow_quota = 10;
    assert_eq!(by_app(&host, &query(11)), Reason::FlowQuota);
}

#[test]
fn only_who_opens_a_flow_is_charged_and_nobody_for_those_from_outside() {
    let host = host(FLOWS, 1, 0);
    for port in 1..=4 {
        host.by_uplink(&Spec::tcp((CLIENT, port), (HOST, 8080), SYN));
    }
    assert_eq!(held(&host, WEB), 0);
    let hairpin = Spec::tcp((APP, 7), (HOST, 8080), SYN);
    assert_eq!(by_app(&host, &hairpin), Reason::Forwarded);
    assert_eq!((held(&host, APP), held(&host, WEB)), (1, 0));
    assert_eq!(by_app(&host, &query(1)), Reason::FlowQuota);
}

#[test]
fn what_expires_is_given_back_by_its_own_late_packet() {
    let mut host = host(FLOWS, 1, 0);
    assert_eq!(by_app(&host, &query(1)), Reason::Forwarded);
    host.wait(timeouts::UDP);
    assert_eq!(by_app(&host, &query(1)), Reason::Forwarded);
    assert_eq!(by_app(&host, &query(2)), Reason::FlowQuota);
    assert_eq!(held(&host, APP), 1);
}

#[test]
fn what_expires_is_given_back_by_the_sweep() {
    let mut host = host(FLOWS, 3, 0);
    for port in 1..=3 {
        by_app(&host, &query(port));
    }
    host.wait(timeouts::UDP);
    assert_eq!(by_app(&host, &query(9)), Reason::FlowQuota);
    for port in 1..=FLOWS as u16 / 2 {
        host.by_uplink(&Spec::udp((CLIENT, port), (HOST, 8080)));
    }
    assert_eq!(held(&host, APP), 0);
    assert_eq!(by_app(&host, &query(9)), Reason::Forwarded);
}

#[test]
fn what_a_flood_pushes_out_is_given_back() {
    let host = host(FLOWS, 3, 0);
    let flood = |ports| {
        for port in ports {
            host.by_uplink(&Spec::udp((CLIENT, port), (HOST, 8080)));
        }
    };
    // Once around the ring, of which the very first place is spared.
    flood(1..=1);
    for port in 1..=3 {
        by_app(&host, &query(port));
    }
    flood(2..=FLOWS as u16 / 4 - 3);
    assert_eq!(by_app(&host, &query(9)), Reason::FlowQuota);
    flood(998..=999);
    assert_eq!(held(&host, APP), 2);
    assert_eq!(by_app(&host, &query(9)), Reason::Forwarded);
}

#[test]
fn a_connection_opened_anew_counts_once() {
    let host = host(FLOWS, 1, 0);
    let out = |flags| Spec::tcp((APP, 7), (REMOTE, 80), flags);
    assert_eq!(by_app(&host, &out(SYN)), Reason::Forwarded);
    let answer = Spec::tcp((REMOTE, 80), (HOST, 7), SYN | ACK);
    host.by_uplink(&answer);
    host.by_uplink(&Spec {
        flags: model::frames::RST | ACK,
        ..answer
    });
    for _ in 0..3 {
        assert_eq!(by_app(&host, &out(SYN)), Reason::Forwarded);
        assert_eq!(held(&host, APP), 1);
    }
}

#[test]
fn what_comes_to_nothing_is_not_charged() {
    // No record.
    let full = host(FLOWS, 1000, 0);
    for port in 1..=FLOWS as u16 {
        by_app(&full, &Spec::tcp((APP, port), (REMOTE, 80), SYN));
        full.by_uplink(&Spec::tcp((REMOTE, 80), (HOST, port), SYN | ACK));
        by_app(&full, &Spec::tcp((APP, port), (REMOTE, 80), ACK));
    }
    let (outcome, _) = full.by_veth(APP_VETH, &query(5000));
    assert_eq!(outcome.reason, Some(Reason::TableFull));
    assert_eq!(outcome.target, Some(Target::Back(APP_VETH)), "it is told");
    assert_eq!(held(&full, APP), FLOWS as i32);
    // No port: all of the class are the host's own sockets'.
    let mut host = host(FLOWS, 1, 0);
    for port in 1..512 {
        host.socket(HOST, port, 17);
    }
    let (outcome, _) = host.by_veth(APP_VETH, &query(100));
    assert_eq!(outcome.reason, Some(Reason::PortsExhausted));
    assert_eq!(outcome.target, Some(Target::Back(APP_VETH)), "it is told");
    assert_eq!(held(&host, APP), 0);
    assert_eq!(by_app(&host, &query(1000)), Reason::Forwarded);
}

#[test]
fn the_next_incarnation_begins_with_nothing_and_keeps_what_it_has() {
    let mut host = host(FLOWS, 3, 0);
    for port in 1..=3 {
        by_app(&host, &query(port));
    }
    let slot = host.endpoint_slots[&APP] as usize;
    host.endpoints[slot].incarnation += 1;
    for port in 11..=13 {
        assert_eq!(by_app(&host, &query(port)), Reason::Forwarded, "{port}");
    }
    assert_eq!(by_app(&host, &query(14)), Reason::FlowQuota);
    // The old ones' ends are none of its own.
    for port in 1..=3 {
        let tuple = query(port).tuple;
        let reference = host.index.borrow()[&tuple];
        let gate = Gate(host.flows[reference.index as usize].gate.get());
        assert!(flow::claim(&host, reference.index, gate, News::Deleted));
        host.free.borrow_mut().push_back(reference.index);
    }
    assert_eq!(held(&host, APP), 3);
    assert_eq!(by_app(&host, &query(14)), Reason::FlowQuota);
}

#[test]
fn who_restarts_again_and_again_does_not_fill_the_table() {
    let mut host = host(FLOWS, 20, 0);
    let slot = host.endpoint_slots[&APP] as usize;
    for life in 0..10 {
        for port in 1..=20 {
            let port = 100 * life + port;
            let out = |flags| Spec::tcp((APP, port), (REMOTE, 80), flags);
            assert_eq!(by_app(&host, &out(SYN)), Reason::Forwarded, "life {life}");
            host.by_uplink(&Spec::tcp((REMOTE, 80), (HOST, port), SYN | ACK));
            by_app(&host, &out(ACK));
        }
        host.endpoints[slot].incarnation += 1;
    }
}

#[test]
fn an_incarnation_that_comes_back_is_never_below_nothing() {
    let mut host = host(FLOWS, 2, 0);
    by_app(&host, &query(1));
    let slot = host.endpoint_slots[&APP] as usize;
    let first = host.endpoints[slot].incarnation;
    for incarnation in [first + 1, first] {
        host.endpoints[slot].incarnation = incarnation;
        let word = u64::from(incarnation) << 32 | 1 << 31;
        host.quotas[slot].held.set(word);
    }
    // A flow that it had before it went: not counted any more, and not given back either.
    let reference = host.index.borrow()[&query(1).tuple];
    let gate = Gate(host.flows[reference.index as usize].gate.get());
    assert!(flow::claim(&host, reference.index, gate, News::Deleted));
    assert_eq!(held(&host, APP), 0);
}

/// How many of a few thousand flows a container may open now.
fn opens(host: &Host, next: &mut u16) -> usize {
    let open = |port| by_app(host, &query(port));
    let mut opened = 0;
    loop {
        *next += 1;
        match open(*next) {
            Reason::Forwarded => opened += 1,
            reason => {
                assert_eq!(reason, Reason::FlowRate);
                return opened;
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "thousands of flows: too many for Miri")]
fn new_flows_are_bounded_by_time_whatever_the_clock_says() {
    // Also where the ticks begin anew.
    for start in [1_000, u32::MAX - 20, u32::MAX - 70] {
        let mut host = host(8192, 0, 1000);
        host.clock.set(start);
        host.wait(0);
        let mut next = 0;
        assert_eq!(opens(&host, &mut next), 1000, "a second's worth at once");
        assert_eq!(opens(&host, &mut next), 0);
        host.wait(1);
        assert_eq!(opens(&host, &mut next), 16);
        for _ in 0..3 {
            host.wait(seconds(1) / 2);
            let opened = opens(&host, &mut next);
            assert!((480..=500).contains(&opened), "{opened} in half a second");
        }
        // What was not used is kept for a second, no longer.
        host.wait(seconds(30));
        assert_eq!(opens(&host, &mut next), 1000);
        // Its neighbour has its own.
        assert_eq!(by_web(&host, &other(1)), Reason::Forwarded);
    }
}

#[test]
fn after_years_of_rest_a_bucket_is_full() {
    let mut host = host(8192, 0, 10);
    let mut next = 0;
    for rest in [seconds(2), 1 << 31, u32::MAX - 100] {
        opens(&host, &mut next);
        host.wait(rest);
        assert_eq!(opens(&host, &mut next), 10, "after {rest} ticks");
    }
}

#[test]
fn a_clock_that_was_read_a_little_earlier_fills_nothing() {
    let host = host(8192, 0, 100);
    let mut next = 0;
    assert_eq!(opens(&host, &mut next), 100);
    for back in [1, 1, 5] {
        host.clock.set(host.clock.get() - back);
        assert_eq!(opens(&host, &mut next), 0);
    }
}

#[test]
fn one_in_a_second_is_one_in_a_second() {
    let mut host = host(8192, 0, 1);
    let mut next = 0;
    for _ in 0..20 {
        assert_eq!(opens(&host, &mut next), 1);
        host.wait(seconds(1) / 2);
        assert_eq!(opens(&host, &mut next), 0);
        host.wait(seconds(1) / 2 + 2);
    }
}

#[test]
#[cfg_attr(miri, ignore = "thousands of flows: too many for Miri")]
fn the_highest_rate_does_not_overflow() {
    let mut host = host(8192, 0, quota::RATE_MAX);
    for port in 1..2000 {
        assert_eq!(by_app(&host, &query(port)), Reason::Forwarded);
    }
    for ticks in [1, 30, 59, 60, 61, 1 << 30] {
        host.wait(ticks);
        assert_eq!(
            by_app(&host, &query(3000 + ticks as u16)),
            Reason::Forwarded
        );
        let word = host.quotas[host.endpoint_slots[&APP] as usize].opens.get();
        let level = quota::count(word) as u32;
        assert!(level <= quota::RATE_MAX << 11 && level > quota::RATE_MAX << 10);
    }
}

/// Checks that a packet was answered, and as it should be.
fn answered(outcome: &Outcome, answer: &[u8], spec: &Spec, quoted: usize) {
    assert!(sums_up(answer), "{answer:02x?}");
    assert_eq!(answer.len(), 28 + quoted);
    assert_eq!(answer[12..16], GATEWAY.octets());
    assert_eq!(answer[16..20], spec.tuple.src.octets());
    assert_eq!((answer[9], answer[20], answer[21]), (1, UNREACHABLE, 13));
    assert_eq!(answer[24..28], [0; 4]);
    assert_eq!(answer[28..], spec.packet()[..quoted]);
    assert_eq!(outcome.reason, Some(Reason::FlowQuota));
}

#[test]
fn a_container_is_told_that_it_is_refused() {
    let host = host(FLOWS, 1, 0);
    by_app(&host, &query(1));
    let refused = [
        (query(2), 28),
        (query(2).payload(0), 28),
        (query(2).payload(1400), 28),
        (Spec::tcp((APP, 2), (REMOTE, 80), SYN), 40),
        (Spec::tcp((APP, 2), (HOST, 8080), SYN), 40),
        (Spec::ping(APP, REMOTE, 2), 28),
    ];
    for (spec, quoted) in refused {
        let (outcome, answer) = host.by_veth(APP_VETH, &spec);
        answered(&outcome, &answer, &spec, quoted);
        assert_eq!(outcome.target, Some(Target::Back(APP_VETH)));
        assert_eq!(outcome.mark, mark::DONE);
    }
    // To the station that sent it, from the one that it was sent to.
    let (to, from) = (host.devices[&APP_VETH].mac, far_mac(APP_VETH));
    let mut frame = query(2).between(to, from).build();
    let arrival = Arrival {
        ifindex: APP_VETH,
        ..Arrival::default()
    };
    host.run(Hook::ContainerIn, &mut frame, arrival);
    let answer = host.answer.take().unwrap();
    assert_eq!((&answer[..6], &answer[6..12]), (&from[..], &to[..]));
    // By the bridge, to a container without a hook.
    let query = |port| Spec::udp((BARE, port), (REMOTE, 53));
    host.by_bridge(BRIDGE, 0, &query(1));
    let (outcome, answer) = host.by_bridge(BRIDGE, 0, &query(2));
    answered(&outcome, &answer, &query(2), 28);
    assert_eq!(outcome.target, Some(Target::Back(BRIDGE)));
    assert_eq!(outcome.mark, mark::ROUTED);
}

#[test]
fn nobody_else_is_told_and_nobody_too_often() {
    let mut host = host(FLOWS, 1, 0);
    by_app(&host, &query(1));
    let (outcome, _) = host.by_veth(APP_VETH, &query(2).options());
    assert_eq!(
        (outcome.reason, outcome.target),
        (Some(Reason::FlowQuota), None)
    );
    let told = |host: &Host| host.by_veth(APP_VETH, &query(2)).0.target.is_some();
    let answers = (0..2 * ANSWERS).filter(|_| told(&host)).count();
    assert_eq!(answers, ANSWERS as usize);
    host.wait(1);
    assert!(told(&host));
    // From outside.
    let open = |port, flags| Spec::tcp((CLIENT, port), (HOST, 8080), flags);
    for port in 1..=FLOWS as u16 {
        host.by_uplink(&open(port, SYN));
        host.by_veth(WEB_VETH, &Spec::tcp((WEB, 80), (CLIENT, port), SYN | ACK));
        host.by_uplink(&open(port, ACK));
    }
    let (outcome, _) = host.by_uplink(&open(9999, SYN));
    assert_eq!(
        (outcome.reason, outcome.target),
        (Some(Reason::TableFull), None)
    );
    let record = host.flow_of(&open(5, SYN).tuple).unwrap().0;
    assert_eq!(record.tuples[ORIGINAL].get().sport, Be16::new(5));
    assert_eq!(
        State::from_u8(Gate(record.gate.get()).state()),
        State::Established
    );
}
