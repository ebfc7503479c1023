// SPDX-License-Identifier: MIT OR Apache-2.0
//! What one container may open: counted while it lives, however it ends, and never a neighbour's.

use forwarder_common::abi::{FlowState, ORIGINAL, REPLY};
use forwarder_common::clock::seconds;
use forwarder_common::conntrack::flow_operation::{self, Ending};
use forwarder_common::conntrack::quota::{self, ANSWERS};
use forwarder_common::conntrack::timeouts;
use forwarder_common::family::{Be16, Be32};
use forwarder_common::mark;
use forwarder_common::reason::Reason;
use forwarder_common::tracking::tcp::State;
use forwarder_testkit::model::frames::{ACK, SYN, Spec, UNREACHABLE, ip};
use forwarder_testkit::model::host::{
    APP, APP_VETH, BARE, BRIDGE, CLIENT, GATEWAY, HOST, REMOTE, WEB, WEB_VETH, far_mac,
};
use forwarder_testkit::model::{self, Arrival, Hook, Host, Outcome, Target};
use forwarder_testkit::packet::sums_up;

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

/// Deletes a flow, as the command line does.
fn delete(host: &Host, spec: &Spec) {
    let reference = host.index.borrow()[&spec.tuple];
    let ending = flow_operation::end(host, reference);
    assert_eq!(ending, Ending::Ended, "{spec:?}");
}

/// A container at its quota keeps the flows that it has, and its neighbour gets all the flows that
/// it wants.
#[test]
fn quota_binds_its_own_container_only() {
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

/// A quota of zero means that there is none; flows are counted all the same.
#[test]
fn zero_quota_is_unlimited_and_counts() {
    let mut host = host(FLOWS, 0, 0);
    for port in 1..=10 {
        assert_eq!(by_app(&host, &query(port)), Reason::Forwarded);
    }
    assert_eq!(held(&host, APP), 10);
    // An agent that comes with one finds what was there before it.
    host.settings.flow_quota = 10;
    assert_eq!(by_app(&host, &query(11)), Reason::FlowQuota);
}

/// Only the container that opens a flow is charged; nobody is charged for flows from outside.
#[test]
fn only_the_originator_is_charged() {
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

/// The quota of an expired flow is given back by the flow's own late packet.
#[test]
fn late_packet_gives_back_the_expired_flow() {
    let mut host = host(FLOWS, 1, 0);
    assert_eq!(by_app(&host, &query(1)), Reason::Forwarded);
    host.wait(timeouts::UDP);
    assert_eq!(by_app(&host, &query(1)), Reason::Forwarded);
    assert_eq!(by_app(&host, &query(2)), Reason::FlowQuota);
    assert_eq!(held(&host, APP), 1);
}

#[test]
fn sweep_gives_back_expired_flows() {
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
fn evicted_flows_are_given_back() {
    let host = host(FLOWS, 0, 0);
    for port in 1..=100 {
        assert_eq!(by_app(&host, &query(port)), Reason::Forwarded);
        assert_eq!(held(&host, APP), i32::from(port).min(FLOWS as i32 / 4));
    }
}

#[test]
fn flood_evicts_the_flooders_own_flows() {
    for from_outside in [false, true] {
        let host = host(4 * FLOWS, 0, 0);
        for port in 1..=8 {
            assert_eq!(by_web(&host, &other(port)), Reason::Forwarded);
        }
        // Enough for ten turns of the ring, and a few more of the neighbour's in between.
        for n in 0..10 * FLOWS as u16 {
            if from_outside {
                host.by_uplink(&Spec::udp((CLIENT, 1000 + n), (HOST, 8080)));
            } else {
                assert_eq!(by_app(&host, &query(1000 + n)), Reason::Forwarded);
            }
            if n % FLOWS as u16 == 0 {
                assert_eq!(by_web(&host, &other(100 + n)), Reason::Forwarded);
            }
        }
        for port in (1..=8).chain((0..10).map(|n| 100 + n * FLOWS as u16)) {
            assert!(host.flow_of(&other(port).tuple).is_some(), "port {port}");
        }
        let unassured = host.index.borrow().len() / 2;
        assert_eq!(unassured, FLOWS as usize, "the whole ring is used");
    }
}

/// Forged packets without ports, which the host would get, take no more than the ring, cost a
/// container nothing, and pass though there is no record for them.
#[test]
fn forged_portless_packets_spare_containers() {
    let host = host(4 * FLOWS, 0, 0);
    for port in 1..=8 {
        assert_eq!(by_web(&host, &other(port)), Reason::Forwarded);
    }
    let forged = |host: &Host, n: u32| {
        let mut spec = Spec::udp((ip(198, 19, (n >> 8) as u8, n as u8), 0), (HOST, 0)).payload(40);
        spec.tuple.proto = 47;
        let (outcome, packet) = host.by_uplink(&spec);
        assert_eq!(packet, spec.packet());
        outcome.reason.unwrap()
    };
    for n in 0..20 * FLOWS {
        assert_eq!(forged(&host, n), Reason::ToHost);
        if n % FLOWS == 0 {
            let port = 100 + n as u16;
            assert_eq!(by_web(&host, &other(port)), Reason::Forwarded);
        }
    }
    for port in (1..=8).chain((0..20).map(|n| 100 + n * FLOWS as u16)) {
        assert!(host.flow_of(&other(port).tuple).is_some(), "port {port}");
    }
    assert_eq!(host.index.borrow().len() / 2, FLOWS as usize);
    // Connections take the rest of the table.
    let opened = (1024..).take_while(|&port| connects(&host, APP_VETH, (APP, port)));
    assert!(opened.count() as u32 >= 2 * FLOWS);
    for n in 0..4 * FLOWS {
        assert_eq!(forged(&host, 0x8000 + n), Reason::ToHost);
    }
    for port in 1..=8 {
        assert!(host.flow_of(&other(port).tuple).is_some(), "port {port}");
    }
}

/// Opens a connection from behind a veth; whether it may.
fn connects(host: &Host, veth: u32, (src, port): (Be32, u16)) -> bool {
    let out = |flags| Spec::tcp((src, port), (REMOTE, 80), flags);
    let opened = host.by_veth(veth, &out(SYN)).0.reason == Some(Reason::Forwarded);
    if opened {
        let outer = host.flow_of(&out(SYN).tuple).unwrap().0.tuples[REPLY].get();
        host.by_uplink(&Spec::tcp(
            (REMOTE, 80),
            (HOST, outer.dport.get()),
            SYN | ACK,
        ));
        host.by_veth(veth, &out(ACK));
    }
    opened
}

#[cfg_attr(miri, ignore = "thousands of flows: too many for Miri")]
#[test]
fn greedy_containers_leave_room_for_another() {
    const LARGE: u32 = 4096;
    let mut host = host(LARGE, LARGE / 2, 0);
    let mut opened = Vec::new();
    for n in 0..12 {
        let (addr, veth) = (ip(172, 17, 7, n), 100 + u32::from(n));
        host.container(BRIDGE, veth, addr);
        let open =
            (10_000..10_000 + LARGE as u16).take_while(|&port| connects(&host, veth, (addr, port)));
        opened.push(open.count() as u32);
    }
    // The first has half of the table, all of them three quarters and their least.
    assert_eq!(opened[0], LARGE / 2);
    assert!(opened.iter().sum::<u32>() <= LARGE / 4 * 3 + 12 * (LARGE / 256));
    assert!(
        opened.iter().all(|&opened| opened >= LARGE / 256),
        "{opened:?}"
    );
    // Whoever comes from outside does not get all of the rest.
    let mut asked = 0;
    let refused = loop {
        asked += 1;
        let asks = |flags| Spec::tcp((CLIENT, asked), (HOST, 8080), flags);
        let (outcome, _) = host.by_uplink(&asks(SYN));
        if outcome.reason != Some(Reason::Forwarded) {
            break outcome.reason;
        }
        host.by_veth(WEB_VETH, &Spec::tcp((WEB, 80), (CLIENT, asked), SYN | ACK));
        host.by_uplink(&asks(ACK));
    };
    assert_eq!(refused, Some(Reason::TableFull));
    assert!((20_000..20_016).all(|port| connects(&host, APP_VETH, (APP, port))));
    // As flows end, those who have much do not get them back before the others.
    assert!(!connects(&host, 100, (ip(172, 17, 7, 0), 30_000)));
}

/// Forged datagrams get no more than half of the flow table.
#[cfg_attr(miri, ignore = "thousands of flows: too many for Miri")]
#[test]
fn forged_datagrams_get_half_of_the_table() {
    const LARGE: u32 = 4096;
    let mut host = host(LARGE, 0, 0);
    let asks = |port| Spec::udp((CLIENT, port), (HOST, 8080));
    let answers = |port| Spec::udp((WEB, 80), (CLIENT, port));
    let exchange = |host: &Host, port| {
        host.by_uplink(&asks(port));
        host.by_veth(WEB_VETH, &answers(port));
    };
    exchange(&host, 1);
    host.wait(timeouts::UDP_STREAM_AFTER + 1);
    exchange(&host, 1);
    assert!(host.flow_of(&asks(1).tuple).unwrap().1.is_assured());
    for defrag_loopback in 0..8 {
        let ports = 2 + defrag_loopback * 900..2 + (defrag_loopback + 1) * 900;
        ports.clone().for_each(|port| exchange(&host, port));
        host.wait(timeouts::UDP_STREAM_AFTER + 1);
        ports.for_each(|port| exchange(&host, port));
        exchange(&host, 1);
    }
    let used = host.flows.len() - host.free.borrow().len();
    assert!(used as u32 <= LARGE / 2 + LARGE / 4 + 1, "{used}");
    let first = host.flow_of(&asks(1).tuple).unwrap().0;
    assert_eq!(first.packets[ORIGINAL].get(), 10, "who was there stays");
    host.check();
}

#[test]
fn reopened_connection_counts_once() {
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

/// A flow that cannot be created is not charged.
#[test]
fn failed_flow_is_not_charged() {
    // No record.
    let full = host(FLOWS, 0, 0);
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

/// The next generation of an endpoint begins with no flows charged and keeps what it opens itself.
#[test]
fn next_generation_starts_at_zero() {
    let mut host = host(FLOWS, 3, 0);
    for port in 1..=3 {
        by_app(&host, &query(port));
    }
    let slot = host.endpoint_slots[&APP] as usize;
    host.endpoints[slot].generation += 1;
    for port in 11..=13 {
        assert_eq!(by_app(&host, &query(port)), Reason::Forwarded, "{port}");
    }
    assert_eq!(by_app(&host, &query(14)), Reason::FlowQuota);
    // The old ones' ends are none of its own.
    for port in 1..=3 {
        delete(&host, &query(port));
    }
    assert_eq!(held(&host, APP), 3);
    assert_eq!(by_app(&host, &query(14)), Reason::FlowQuota);
}

/// A container that restarts again and again does not fill the table.
#[test]
fn restarts_do_not_fill_the_table() {
    let mut host = host(4 * FLOWS, 20, 0);
    let slot = host.endpoint_slots[&APP] as usize;
    for life in 0..10 {
        for port in 1..=20 {
            let port = 100 * life + port;
            let out = |flags| Spec::tcp((APP, port), (REMOTE, 80), flags);
            assert_eq!(by_app(&host, &out(SYN)), Reason::Forwarded, "life {life}");
            host.by_uplink(&Spec::tcp((REMOTE, 80), (HOST, port), SYN | ACK));
            by_app(&host, &out(ACK));
        }
        host.endpoints[slot].generation += 1;
    }
}

/// The count of a generation that comes back is never below zero.
#[test]
fn returning_generation_is_never_below_zero() {
    let mut host = host(FLOWS, 2, 0);
    by_app(&host, &query(1));
    let slot = host.endpoint_slots[&APP] as usize;
    let first = host.endpoints[slot].generation;
    for generation in [first + 1, first] {
        host.endpoints[slot].generation = generation;
        let word = u64::from(generation) << 32 | 1 << 31;
        host.quotas[slot].held.set(word);
    }
    // A flow that it had before it went: not counted any more, and not given back either.
    delete(&host, &query(1));
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

/// New flows are bounded by time, whatever the clock says.
#[test]
#[cfg_attr(miri, ignore = "thousands of flows: too many for Miri")]
fn flow_rate_is_bounded_whatever_the_clock() {
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

/// A rate bucket is full, and not more than full, after years of rest.
#[test]
fn rate_bucket_is_full_after_years() {
    let mut host = host(8192, 0, 10);
    let mut next = 0;
    for rest in [seconds(2), 1 << 31, u32::MAX - 100] {
        opens(&host, &mut next);
        host.wait(rest);
        assert_eq!(opens(&host, &mut next), 10, "after {rest} ticks");
    }
}

/// A clock that was read a little earlier fills no rate bucket.
#[test]
fn earlier_clock_fills_no_rate_bucket() {
    let host = host(8192, 0, 100);
    let mut next = 0;
    assert_eq!(opens(&host, &mut next), 100);
    for back in [1, 1, 5] {
        host.clock.set(host.clock.get() - back);
        assert_eq!(opens(&host, &mut next), 0);
    }
}

#[test]
fn rate_of_one_is_one_flow_a_second() {
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
fn highest_rate_does_not_overflow() {
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
fn refused_container_gets_an_icmp_error() {
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

/// Nobody but the refused container gets an ICMP error, and it gets them not too often.
#[test]
fn refusal_errors_are_rate_limited() {
    let mut host = host(FLOWS, 1, 0);
    by_app(&host, &query(1));
    let (outcome, _) = host.by_veth(APP_VETH, &query(2).options());
    assert_eq!(
        (outcome.reason, outcome.target),
        (Some(Reason::FlowQuota), None)
    );
    let is_answered = |host: &Host| host.by_veth(APP_VETH, &query(2)).0.target.is_some();
    let answers = (0..2 * ANSWERS).filter(|_| is_answered(&host)).count();
    assert_eq!(answers, ANSWERS as usize);
    host.wait(1);
    assert!(is_answered(&host));
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
        State::from_u8(FlowState(record.flow_state.get()).state()),
        State::Established
    );
}
