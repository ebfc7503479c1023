// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ports of the host over time: what is published or listened on later is nobody else's, and who
//! publishes a port is seen by it.

use forwarder_common::abi::REPLY;
use forwarder_common::conntrack::timeouts;
use forwarder_common::family::Be32;
use forwarder_common::reason::Reason;
use forwarder_testkit::model::frames::{ACK, SYN, Spec};
use forwarder_testkit::model::host::{
    APP, APP_VETH, CLIENT, GATEWAY, HOST, WEB, WEB_VETH, far_mac, mac,
};
use forwarder_testkit::model::{Arrival, Hook, Host, Target};

const FLOWS: u32 = 256;
const ANY: Be32 = Be32::from_octets([0; 4]);
const PORT: u16 = 5060;

/// As the agent publishes a port: the row first, then the generation.
fn publish(host: &mut Host, at: (Be32, u16, u16), to: (Be32, u16)) {
    host.publish(at, to);
    host.settings.policy += 1;
}

/// The container that a packet from outside was sent into.
fn delivered(host: &Host, spec: &Spec) -> Option<u32> {
    match host.by_uplink(spec).0.target {
        Some(Target::Peer(veth)) => Some(veth),
        _ => None,
    }
}

/// The port that a container's packet leaves with.
fn leaves_by(host: &Host, veth: u32, spec: &Spec) -> u16 {
    let (outcome, _) = host.by_veth(veth, spec);
    assert_eq!(outcome.reason, Some(Reason::Forwarded), "{:?}", spec.tuple);
    let (flow, _) = host.flow_of(&spec.tuple).unwrap();
    flow.tuples[REPLY].get().dport.get()
}

#[test]
fn published_port_is_taken_from_earlier_flow() {
    for (at, proto) in [(ANY, 17), (HOST, 17), (ANY, 6), (HOST, 6)] {
        let mut host = Host::usual(FLOWS);
        let to = |src: (Be32, u16), dst: (Be32, u16)| match proto {
            6 => Spec::tcp(src, dst, SYN),
            _ => Spec::udp(src, dst),
        };
        let lurking = to((APP, PORT), (CLIENT, 700));
        assert_eq!(leaves_by(&host, APP_VETH, &lurking), PORT);
        let asks = to((CLIENT, 700), (HOST, PORT));
        publish(&mut host, (at, PORT, proto), (WEB, PORT));
        assert_eq!(delivered(&host, &asks), Some(WEB_VETH));
        // Who held it is translated to another one, and that one is its own.
        let other = to((APP, PORT), (CLIENT, 701));
        assert_ne!(leaves_by(&host, APP_VETH, &other), PORT);
        assert_ne!(leaves_by(&host, APP_VETH, &lurking), PORT);
        assert_eq!(delivered(&host, &asks), Some(WEB_VETH));
    }
}

#[test]
fn xdp_leaves_packets_of_outdated_flows_alone() {
    let mut host = Host::usual(FLOWS);
    let lurking = Spec::udp((WEB, PORT), (CLIENT, 700));
    leaves_by(&host, WEB_VETH, &lurking);
    publish(&mut host, (ANY, PORT, 17), (APP, PORT));
    let asks = Spec::udp((CLIENT, 700), (HOST, PORT));
    let mut frame = asks.between(mac(2), far_mac(2)).build();
    let on = Arrival {
        ifindex: 2,
        ..Arrival::default()
    };
    assert_eq!(host.run(Hook::Uplink, &mut frame, on).reason, None);
}

#[test]
fn other_flows_survive_a_publication() {
    let mut host = Host::usual(FLOWS);
    let out = Spec::udp((APP, 4000), (CLIENT, 53));
    let answer = Spec::udp((CLIENT, 53), (HOST, 4000));
    leaves_by(&host, APP_VETH, &out);
    let inward = Spec::udp((CLIENT, PORT), (HOST, 8080));
    assert_eq!(delivered(&host, &inward), Some(WEB_VETH));
    let gates = |host: &Host| [&out, &inward].map(|spec| host.flow_of(&spec.tuple).unwrap().1.id());
    let before = gates(&host);
    // Also where the client has by chance the port that is published, on its own address.
    publish(&mut host, (ANY, PORT, 17), (WEB, PORT));
    assert_eq!(delivered(&host, &answer), Some(APP_VETH));
    assert_eq!(delivered(&host, &inward), Some(WEB_VETH));
    host.by_veth(WEB_VETH, &Spec::udp((WEB, 80), (CLIENT, PORT)));
    assert_eq!(gates(&host), before);
}

/// A hairpin flow on a port that is published later ends.
#[test]
fn publication_ends_a_hairpin_flow() {
    let mut host = Host::usual(FLOWS);
    let hairpin = Spec::udp((APP, PORT), (HOST, 8080));
    host.by_veth(APP_VETH, &hairpin);
    let held = host.flow_of(&hairpin.tuple).unwrap().0.tuples[REPLY].get();
    assert_eq!((held.dst, held.dport.get()), (GATEWAY, PORT));
    publish(&mut host, (ANY, PORT, 17), (APP, 9));
    // The server asks the newly published port from the port that it serves.
    let asks = Spec::udp((WEB, 80), (GATEWAY, PORT));
    host.by_veth(WEB_VETH, &asks);
    let (flow, _) = host.flow_of(&asks.tuple).unwrap();
    assert_eq!(flow.tuples[REPLY].get().sport.get(), 9);
}

#[test]
fn container_is_seen_by_the_port_it_publishes() {
    for (at, proto) in [(ANY, 17), (HOST, 17), (ANY, 6), (HOST, 6)] {
        let mut host = Host::usual(FLOWS);
        publish(&mut host, (at, PORT, proto), (WEB, PORT));
        // The shim's reservation.
        host.socket(HOST, PORT, proto);
        let to = |src: (Be32, u16), flags| match proto {
            6 => Spec::tcp(src, (CLIENT, 700), flags),
            _ => Spec::udp(src, (CLIENT, 700)),
        };
        assert_eq!(leaves_by(&host, WEB_VETH, &to((WEB, PORT), SYN)), PORT);
        // Another container's, and its own other port: never that one.
        assert_ne!(leaves_by(&host, APP_VETH, &to((APP, PORT), SYN)), PORT);
        let answers = match proto {
            6 => Spec::tcp((CLIENT, 700), (HOST, PORT), SYN | ACK),
            _ => Spec::udp((CLIENT, 700), (HOST, PORT)),
        };
        assert_eq!(delivered(&host, &answers), Some(WEB_VETH));
        // A list that changes asks it again, and it stays.
        host.settings.policy += 1;
        assert_eq!(leaves_by(&host, WEB_VETH, &to((WEB, PORT), ACK)), PORT);
        assert_eq!(delivered(&host, &answers), Some(WEB_VETH));
    }
}

#[test]
fn container_is_seen_by_the_hosts_port() {
    for (at, proto) in [(ANY, 17), (HOST, 17), (ANY, 6), (HOST, 6)] {
        let mut host = Host::usual(FLOWS);
        publish(&mut host, (at, 9000, proto), (WEB, PORT));
        host.seen_as(at, (WEB, PORT, proto), 9000);
        host.socket(HOST, 9000, proto);
        let to = |src: (Be32, u16), dst: (Be32, u16)| match proto {
            6 => Spec::tcp(src, dst, SYN),
            _ => Spec::udp(src, dst),
        };
        assert_eq!(
            leaves_by(&host, WEB_VETH, &to((WEB, PORT), (CLIENT, 700))),
            9000
        );
        assert_eq!(
            leaves_by(&host, WEB_VETH, &to((WEB, PORT), (CLIENT, 701))),
            9000
        );
        // Another port of its own, and another container's.
        assert_eq!(
            leaves_by(&host, WEB_VETH, &to((WEB, 5061), (CLIENT, 700))),
            5061
        );
        assert_eq!(
            leaves_by(&host, APP_VETH, &to((APP, PORT), (CLIENT, 700))),
            PORT
        );
        let answers = match proto {
            6 => Spec::tcp((CLIENT, 700), (HOST, 9000), SYN | ACK),
            _ => Spec::udp((CLIENT, 700), (HOST, 9000)),
        };
        assert_eq!(delivered(&host, &answers), Some(WEB_VETH));
        // And the other way round, as any client.
        assert_eq!(
            delivered(&host, &to((CLIENT, 702), (HOST, 9000))),
            Some(WEB_VETH)
        );
    }
}

#[test]
fn port_at_another_address_is_not_seen() {
    let mut host = Host::usual(FLOWS);
    let other = Be32::from_octets([198, 18, 2, 1]);
    publish(&mut host, (other, 9000, 17), (WEB, PORT));
    host.seen_as(other, (WEB, PORT, 17), 9000);
    let calls = Spec::udp((WEB, PORT), (CLIENT, 700));
    assert_eq!(leaves_by(&host, WEB_VETH, &calls), PORT);
    // Nor one that leads elsewhere by now.
    host.seen_as(HOST, (APP, PORT, 17), 9001);
    publish(&mut host, (HOST, 9001, 17), (WEB, 1));
    let calls = Spec::udp((APP, PORT), (CLIENT, 701));
    assert_eq!(leaves_by(&host, APP_VETH, &calls), PORT);
}

#[test]
fn server_keeps_being_seen_by_the_hosts_port() {
    let mut host = Host::usual(FLOWS);
    publish(&mut host, (ANY, 9000, 6), (WEB, PORT));
    host.seen_as(ANY, (WEB, PORT, 6), 9000);
    let asks = Spec::tcp((CLIENT, 700), (HOST, 9000), SYN);
    assert_eq!(delivered(&host, &asks), Some(WEB_VETH));
    host.wait(timeouts::TCP_UNACKNOWLEDGED * 2);
    let goes_on = Spec::tcp((WEB, PORT), (CLIENT, 700), ACK);
    assert_eq!(leaves_by(&host, WEB_VETH, &goes_on), 9000);
}

/// A server goes on by its port after the flow is gone.
#[test]
fn server_keeps_its_port_after_the_flow_is_gone() {
    let mut host = Host::usual(FLOWS);
    publish(&mut host, (ANY, PORT, 6), (WEB, PORT));
    host.socket(HOST, PORT, 6);
    let asks = Spec::tcp((CLIENT, 700), (HOST, PORT), SYN);
    assert_eq!(delivered(&host, &asks), Some(WEB_VETH));
    // Half open, its time is over: the server's side is the first to be heard of again.
    host.wait(timeouts::TCP_UNACKNOWLEDGED * 2);
    let goes_on = Spec::tcp((WEB, PORT), (CLIENT, 700), ACK);
    assert_eq!(leaves_by(&host, WEB_VETH, &goes_on), PORT);
    let client = Spec::tcp((CLIENT, 700), (HOST, PORT), ACK);
    assert_eq!(delivered(&host, &client), Some(WEB_VETH));
}

/// A socket that is bound later gets the connection of its client.
#[test]
fn later_socket_gets_its_clients_connection() {
    let mut host = Host::usual(FLOWS);
    let lurking = Spec::tcp((APP, PORT), (CLIENT, 700), SYN);
    assert_eq!(leaves_by(&host, APP_VETH, &lurking), PORT);
    let opens = Spec::tcp((CLIENT, 700), (HOST, PORT), SYN);
    // Nobody listens: a simultaneous open, as in nf_conntrack.
    assert_eq!(delivered(&host, &opens), Some(APP_VETH));
    host.socket(HOST, PORT, 6);
    assert_eq!(host.by_uplink(&opens).0.reason, Some(Reason::ToHost));
    assert!(host.flow_of(&lurking.tuple).is_none());
    assert_ne!(leaves_by(&host, APP_VETH, &lurking), PORT);
}

/// A service of the host's binds a port, as the programs tell it: the row first, then the generation.
fn bind(host: &mut Host, port: u16) {
    host.socket(HOST, port, 17);
    host.bound.insert(port, host.clock.get());
    host.settings.policy += 1;
}

/// A service that is bound later gets the clients of a container whose flow had taken its port.
#[test]
fn later_service_gets_clients_of_a_container() {
    let mut host = Host::usual(FLOWS);
    let lurking = Spec::udp((APP, PORT), (CLIENT, 700));
    let asks = Spec::udp((CLIENT, 700), (HOST, PORT));
    assert_eq!(leaves_by(&host, APP_VETH, &lurking), PORT);
    // It has even answered the thief.
    assert_eq!(delivered(&host, &asks), Some(APP_VETH));
    bind(&mut host, PORT);
    assert_eq!(host.by_uplink(&asks).0.reason, Some(Reason::ToHost));
    assert_ne!(leaves_by(&host, APP_VETH, &lurking), PORT);
    assert_eq!(host.by_uplink(&asks).0.reason, Some(Reason::ToHost));
}

#[test]
fn later_service_calls_from_its_own_port() {
    let mut host = Host::usual(FLOWS);
    let lurking = Spec::udp((APP, PORT), (CLIENT, 700));
    assert_eq!(leaves_by(&host, APP_VETH, &lurking), PORT);
    bind(&mut host, PORT);
    let calls = Spec::udp((HOST, PORT), (CLIENT, 700));
    let (outcome, after) = host.to_outside(0, 0, &calls.packet());
    assert_eq!(
        (outcome.reason, after),
        (Some(Reason::FromHost), calls.packet())
    );
    assert!(host.flow_of(&lurking.tuple).is_none());
}

#[test]
fn service_ends_no_flow_but_those_on_its_port() {
    let mut host = Host::usual(FLOWS);
    let out = |port| Spec::udp((APP, port), (CLIENT, 53));
    for port in [4000, 4001] {
        leaves_by(&host, APP_VETH, &out(port));
    }
    publish(&mut host, (ANY, PORT, 17), (WEB, PORT));
    leaves_by(&host, WEB_VETH, &Spec::udp((WEB, PORT), (CLIENT, 53)));
    let inward = Spec::udp((CLIENT, 4001), (HOST, 8080));
    assert_eq!(delivered(&host, &inward), Some(WEB_VETH));
    // The second is that of a container which publishes it: the shim's reservation, bound anew.
    bind(&mut host, 4001);
    bind(&mut host, PORT);
    let answer = |port| Spec::udp((CLIENT, 53), (HOST, port));
    assert_eq!(delivered(&host, &answer(4000)), Some(APP_VETH));
    assert_eq!(host.by_uplink(&answer(4001)).0.reason, Some(Reason::ToHost));
    assert_eq!(delivered(&host, &answer(PORT)), Some(WEB_VETH));
    assert_eq!(delivered(&host, &inward), Some(WEB_VETH));
}

/// A socket that is bound later gets the first datagram of its client.
#[test]
fn later_socket_gets_its_clients_first_datagram() {
    let mut host = Host::usual(FLOWS);
    let lurking = Spec::udp((APP, PORT), (CLIENT, 700));
    assert_eq!(leaves_by(&host, APP_VETH, &lurking), PORT);
    host.socket(HOST, PORT, 17);
    host.wait(timeouts::UDP_STREAM_AFTER + 1);
    let asks = Spec::udp((CLIENT, 700), (HOST, PORT));
    assert_eq!(host.by_uplink(&asks).0.reason, Some(Reason::ToHost));
    assert_ne!(leaves_by(&host, APP_VETH, &lurking), PORT);
}

/// A socket takes no answer that a container is waiting for.
#[test]
fn socket_takes_no_expected_answer() {
    let mut host = Host::usual(FLOWS);
    let asks = |port| Spec::udp((APP, port), (CLIENT, 53));
    let answers = |port| Spec::udp((CLIENT, 53), (HOST, port));
    leaves_by(&host, APP_VETH, &asks(4000));
    leaves_by(&host, APP_VETH, &asks(4001));
    assert_eq!(delivered(&host, &answers(4001)), Some(APP_VETH));
    // A user of the host binds both: neither a prompt answer nor a conversation is his, also while
    // services bind other ports, or had these before.
    host.bound.insert(4001, host.clock.get() - 1);
    host.socket(HOST, 4000, 17);
    host.socket(HOST, 4001, 17);
    host.settings.policy += 1;
    assert_eq!(delivered(&host, &answers(4000)), Some(APP_VETH));
    host.wait(timeouts::UDP_STREAM_AFTER + 1);
    assert_eq!(delivered(&host, &answers(4001)), Some(APP_VETH));
    // Nor the SYN-ACK of a connection.
    leaves_by(&host, APP_VETH, &Spec::tcp((APP, 4002), (CLIENT, 80), SYN));
    host.socket(HOST, 4002, 6);
    let answer = Spec::tcp((CLIENT, 80), (HOST, 4002), SYN | ACK);
    assert_eq!(delivered(&host, &answer), Some(APP_VETH));
}
