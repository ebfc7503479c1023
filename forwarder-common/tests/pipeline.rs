// SPDX-License-Identifier: MIT OR Apache-2.0
//! The packet's way: the hand-on matrix line by line, and XDP beside it.

use forwarder_common::family::Be32;
use forwarder_common::mark;
use forwarder_common::reason::Reason;
use forwarder_testkit::model::frames::{ACK, SYN, Spec, TIME_EXCEEDED, ip, left_by};
use forwarder_testkit::model::host::{
    APP, APP_VETH, BARE, BRIDGE, CLIENT, FAR, FAR_VETH, GATEWAY, HOST, OTHER_BRIDGE, REMOTE,
    UPLINK, VPN, WEB, WEB_VETH, far_mac, mac,
};
use forwarder_testkit::model::{Arrival, Hook, Host, Target};
use forwarder_testkit::packet::sums_up;

/// What is done to a packet.
type How = fn(Spec) -> Spec;

/// The ways to need the kernel's help, and what they are called.
const HANDED: [(How, Reason); 3] = [
    (|spec| spec.hops(1), Reason::HopLimit),
    (|spec| spec.options(), Reason::Options),
    (|spec| spec.payload(1600), Reason::TooBig),
];

fn request() -> Spec {
    Spec::udp((CLIENT, 40_000), (HOST, 8080))
}

fn response() -> Spec {
    Spec::udp((WEB, 80), (CLIENT, 40_000))
}

fn query() -> Spec {
    Spec::udp((APP, 5000), (REMOTE, 53))
}

fn answer() -> Spec {
    Spec::udp((REMOTE, 53), (HOST, 5000))
}

fn hairpin() -> Spec {
    Spec::udp((APP, 5000), (HOST, 8080))
}

fn addresses(packet: &[u8]) -> (Be32, Be32) {
    let at = |at: usize| ip(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]);
    (at(12), at(16))
}

#[test]
fn outside_reaches_a_published_port() {
    let host = Host::usual(64);
    let (outcome, packet) = host.by_uplink(&request());
    assert_eq!(outcome.reason, Some(Reason::Forwarded));
    assert_eq!(outcome.target, Some(Target::Peer(WEB_VETH)));
    assert_eq!(addresses(&packet), (CLIENT, WEB));
    assert_eq!(packet[8], 63);

    for (how, reason) in HANDED {
        let spec = how(request());
        let (outcome, packet) = host.by_uplink(&spec);
        assert_eq!((outcome.reason, outcome.target), (Some(reason), None));
        // The destination is the container, the source is still the client, no hop is counted.
        assert_eq!(addresses(&packet), (CLIENT, WEB));
        assert_eq!(packet[8], spec.hops);
        assert!(outcome.mark == mark::FLOW && sums_up(&packet));
        let (done, after) = host.to_bridge(BRIDGE, UPLINK, outcome, &packet);
        assert_eq!((done.reason, done.mark), (Some(Reason::Admitted), 0));
        assert_eq!(after, packet);
        // The host's own error about it shows what the client sent.
        let error = Spec::error(TIME_EXCEEDED, HOST, CLIENT, &packet, 548).packet();
        let (outcome, error) = host.to_outside(0, 0, &error);
        assert_eq!(outcome.reason, Some(Reason::HostError));
        assert!(sums_up(&error));
        let sent = spec.packet();
        assert_eq!(error[28..], sent[..sent.len().min(548)]);
    }
}

#[test]
fn published_port_replies_are_translated() {
    let host = Host::usual(64);
    host.by_uplink(&request());
    let (outcome, packet) = host.by_veth(WEB_VETH, &response());
    assert_eq!(outcome.reason, Some(Reason::Forwarded));
    assert_eq!(outcome.target, Some(Target::Neighbour(UPLINK, CLIENT)));
    assert_eq!(outcome.mark, mark::DONE);
    assert_eq!(addresses(&packet), (HOST, CLIENT));
    let (done, after) = host.to_outside(APP_VETH, outcome, &packet);
    assert_eq!((done.reason, done.mark), (Some(Reason::Admitted), 0));
    assert_eq!(after, packet);

    for (how, reason) in HANDED {
        outward(&host, WEB_VETH, &how(response()), reason, 8080);
    }
}

#[test]
fn container_is_masqueraded() {
    let host = Host::usual(64);
    let (outcome, packet) = host.by_veth(APP_VETH, &query());
    assert_eq!(outcome.reason, Some(Reason::Forwarded));
    assert_eq!(outcome.target, Some(Target::Neighbour(UPLINK, CLIENT)));
    assert_eq!(addresses(&packet), (HOST, REMOTE));
    assert_eq!(packet[8], 63);

    for (how, reason) in HANDED {
        outward(&Host::usual(64), APP_VETH, &how(query()), reason, 5000);
    }
    // By a device without Ethernet header only the kernel sends.
    let mut host = Host::usual(64);
    host.route((REMOTE, 32), VPN, ip(198, 18, 3, 2), 1400);
    let (outcome, packet) = host.by_veth(APP_VETH, &query());
    assert_eq!(outcome.reason, Some(Reason::NoEthernet));
    assert_eq!(packet, query().packet());
    let arrival = Arrival {
        ifindex: VPN,
        ingress_ifindex: BRIDGE,
        mark: outcome.mark,
        hash: outcome.hash,
        segment: 0,
    };
    let mut raw = packet.clone();
    let done = host.run(Hook::OutsideOutRaw, &mut raw, arrival);
    assert_eq!(done.reason, Some(Reason::Completed));
    assert_eq!(addresses(&raw), (ip(198, 18, 3, 1), REMOTE));
    // Back by the same device.
    let back = Spec::udp((REMOTE, 53), (ip(198, 18, 3, 1), 5000));
    let mut raw = back.packet();
    let came = host.run(
        Hook::OutsideInRaw,
        &mut raw,
        Arrival {
            ifindex: VPN,
            ..arrival
        },
    );
    assert_eq!(came.reason, Some(Reason::NoEthernet));
    assert_eq!(addresses(&raw), (REMOTE, APP));
}

/// A packet that leaves by the kernel: untouched at first, its source rewritten on the way out.
fn outward(host: &Host, veth: u32, spec: &Spec, reason: Reason, port: u16) {
    let (outcome, packet) = host.by_veth(veth, spec);
    assert_eq!((outcome.reason, outcome.target), (Some(reason), None));
    assert_eq!(
        packet,
        spec.packet(),
        "a source is rewritten together with a redirect only"
    );
    let (passed, packet) = host.by_bridge(BRIDGE, outcome, spec);
    assert_eq!(
        (passed.reason, passed.mark),
        (Some(Reason::Admitted), outcome.mark)
    );
    let (done, after) = host.to_outside(BRIDGE, outcome, &packet);
    assert_eq!((done.reason, done.mark), (Some(Reason::Completed), 0));
    assert_eq!(addresses(&after), (HOST, spec.tuple.dst));
    assert_eq!(after[8], spec.hops, "the kernel counts the hop");
    let l4 = 20 + spec.options.len();
    assert_eq!(after[l4..l4 + 2], port.to_be_bytes());
    assert!(sums_up(&after));
    // Fragmented on the way, its tails are found by the mark.
    let tail = Spec {
        tuple: spec.tuple,
        ..spec.clone().fragment(0x0010)
    };
    let (done, after) = host.to_outside(BRIDGE, outcome, &tail.packet());
    assert_eq!(done.reason, Some(Reason::Completed));
    assert_eq!(addresses(&after), (HOST, spec.tuple.dst));
    assert_eq!(after[20..], tail.packet()[20..]);
}

#[test]
fn replies_reach_the_container() {
    let host = Host::usual(64);
    host.by_veth(APP_VETH, &query());
    let (outcome, packet) = host.by_uplink(&answer());
    assert_eq!(outcome.target, Some(Target::Peer(APP_VETH)));
    assert_eq!(addresses(&packet), (REMOTE, APP));
    for (how, reason) in HANDED {
        let (outcome, packet) = host.by_uplink(&how(answer()));
        assert_eq!(outcome.reason, Some(reason));
        assert_eq!(addresses(&packet), (REMOTE, APP));
        let (done, after) = host.to_bridge(BRIDGE, UPLINK, outcome, &packet);
        assert_eq!(done.reason, Some(Reason::Admitted));
        assert_eq!(after, packet);
    }
}

#[test]
fn hairpins_reach_a_published_port() {
    let host = Host::usual(64);
    let (outcome, packet) = host.by_veth(APP_VETH, &hairpin());
    assert_eq!(outcome.target, Some(Target::Peer(WEB_VETH)));
    assert_eq!(addresses(&packet), (GATEWAY, WEB));
    let back = Spec::udp((WEB, 80), (GATEWAY, 5000));
    let (outcome, packet) = host.by_veth(WEB_VETH, &back);
    assert_eq!(outcome.target, Some(Target::Peer(APP_VETH)));
    assert_eq!(addresses(&packet), (HOST, APP));

    for (how, reason) in HANDED {
        let (outcome, packet) = host.by_veth(APP_VETH, &how(hairpin()));
        assert_eq!(outcome.reason, Some(reason));
        assert_eq!(
            addresses(&packet),
            (APP, WEB),
            "only the destination, before a hand-on"
        );
        let (done, packet) = host.to_bridge(BRIDGE, BRIDGE, outcome, &packet);
        assert_eq!(done.reason, Some(Reason::Completed));
        assert_eq!(addresses(&packet), (GATEWAY, WEB));
        assert!(sums_up(&packet));
    }
    // To itself, and from another network.
    let own = Spec::udp((WEB, 5000), (HOST, 8080));
    assert_eq!(
        host.by_veth(WEB_VETH, &own).0.target,
        Some(Target::Peer(WEB_VETH))
    );
    let far = Spec::udp((FAR, 5000), (HOST, 8080));
    let (outcome, packet) = host.by_veth(FAR_VETH, &far);
    assert_eq!(outcome.target, Some(Target::Peer(WEB_VETH)));
    assert_eq!(addresses(&packet), (GATEWAY, WEB));
}

/// The host's own errors about hairpins show what the container sent.
#[test]
fn hairpin_errors_of_the_host_quote_the_original() {
    let host = Host::usual(64);
    let tells = |veth, bridge, spec: &Spec| {
        let (outcome, handed) = host.by_veth(veth, spec);
        assert_eq!(outcome.reason, Some(Reason::HopLimit), "{spec:?}");
        let error = Spec::error(TIME_EXCEEDED, GATEWAY, spec.tuple.src, &handed, 100);
        let (judged, packet) = host.to_bridge(bridge, 0, 0, &error.packet());
        assert_eq!(judged.reason, Some(Reason::HostError), "{spec:?}");
        assert!(sums_up(&packet));
        assert_eq!(packet[28..], spec.packet());
        assert_eq!(
            packet[12..16],
            spec.tuple.dst.octets(),
            "from who was asked"
        );
        (outcome, handed)
    };
    let answer = |port| Spec::udp((WEB, 80), (GATEWAY, port)).hops(1);
    tells(APP_VETH, BRIDGE, &hairpin().hops(1));
    tells(WEB_VETH, BRIDGE, &answer(5000));
    // A second client with the same port was drawn another one.
    let far = Spec::udp((FAR, 5000), (HOST, 8080)).hops(1);
    let (mark, handed) = tells(FAR_VETH, OTHER_BRIDGE, &far);
    let (_, seen) = host.to_bridge(BRIDGE, OTHER_BRIDGE, mark, &handed);
    assert_ne!(left_by(&seen), 5000);
    tells(WEB_VETH, BRIDGE, &answer(left_by(&seen)));
    // Neither what was sent as it is, nor what tells no flow.
    let lone = Spec::udp((APP, 9), (REMOTE, 53)).packet();
    for length in [100, 20] {
        let error = Spec::error(TIME_EXCEEDED, GATEWAY, APP, &lone, length).packet();
        let (outcome, left) = host.to_bridge(BRIDGE, 0, 0, &error);
        assert_eq!(outcome.reason, Some(Reason::FromHost));
        assert_eq!(left, error);
    }
}

/// A target that cannot be redirected to gets its packets by the bridge.
#[test]
fn target_without_redirect_uses_the_bridge() {
    let host = Host::usual(64);
    let (outcome, packet) = host.by_uplink(&Spec::udp((CLIENT, 40_000), (HOST, 8081)));
    assert_eq!(outcome.reason, Some(Reason::NotHooked));
    assert_eq!(addresses(&packet), (CLIENT, BARE));
    let reply = Spec::udp((BARE, 80), (CLIENT, 40_000));
    let (outcome, packet) = host.by_bridge(BRIDGE, 0, &reply);
    assert_eq!(outcome.reason, Some(Reason::Forwarded));
    assert_eq!(addresses(&packet), (HOST, CLIENT));
}

/// A container that is not known yet is masqueraded by the default endpoint of its network.
#[test]
fn unknown_container_uses_default_endpoint() {
    let host = Host::usual(64);
    let stranger = Spec::udp((ip(172, 17, 0, 99), 5000), (REMOTE, 53));
    let (outcome, packet) = host.by_bridge(BRIDGE, 0, &stranger);
    assert_eq!(outcome.reason, Some(Reason::Forwarded));
    assert_eq!(addresses(&packet), (HOST, REMOTE));
    let (outcome, packet) = host.by_uplink(&answer());
    assert_eq!(outcome.reason, Some(Reason::NotHooked));
    assert_eq!(addresses(&packet), (REMOTE, ip(172, 17, 0, 99)));
    // But not behind somebody's own veth.
    let (outcome, _) = host.by_veth(WEB_VETH, &Spec::udp((APP, 1), (REMOTE, 53)));
    assert_eq!(outcome.reason, Some(Reason::SpoofedSource));
}

#[test]
fn target_without_its_device_gets_nothing() {
    let mut host = Host::usual(64);
    host.nics.remove(&WEB_VETH);
    for (how, _) in HANDED {
        let (outcome, _) = host.by_uplink(&how(request()));
        assert_eq!(outcome.reason, Some(Reason::TargetGone));
    }
}

/// XDP takes known flows and leaves all other packets alone.
#[test]
fn xdp_takes_known_flows_only() {
    let mut host = Host::usual(64);
    let arrival = Arrival {
        ifindex: UPLINK,
        ..Arrival::default()
    };
    let run = |host: &Host, spec: &Spec| {
        let mut frame = spec.clone().between(mac(UPLINK), far_mac(UPLINK)).build();
        let before = frame.clone();
        let outcome = host.run(Hook::Uplink, &mut frame, arrival);
        assert_eq!(outcome.reason.is_none(), frame == before);
        (outcome, frame)
    };
    assert_eq!(run(&host, &request()).0.reason, None, "a first packet");
    let (_, expected) = host.by_uplink(&request());
    let (outcome, frame) = run(&host, &request());
    assert_eq!(outcome.target, Some(Target::Peer(WEB_VETH)));
    assert_eq!(frame[14..], expected);
    for (how, _) in HANDED {
        assert_eq!(run(&host, &how(request())).0.reason, None);
    }
    let tcp = Spec::tcp((CLIENT, 40_000), (HOST, 8080), SYN);
    host.by_uplink(&tcp);
    assert_eq!(run(&host, &tcp).0.reason, None, "TCP is left to tcx");
    host.by_veth(WEB_VETH, &Spec::tcp((WEB, 80), (CLIENT, 40_000), SYN | ACK));
    let ack = Spec::tcp((CLIENT, 40_000), (HOST, 8080), ACK);
    assert_eq!(run(&host, &ack).0.reason, None);
    host.settings.xdp_tcp = 1;
    assert_eq!(run(&host, &ack).0.reason, Some(Reason::Forwarded));
    let stray = ack.clone().numbers(1 << 30, 2, 0x1000).payload(9);
    assert_eq!(run(&host, &stray).0.reason, None, "for tcx to refuse");
    assert_eq!(run(&host, &tcp).0.reason, None, "a SYN is left to tcx");
    host.by_veth(APP_VETH, &query());
    assert_eq!(
        run(&host, &answer()).0.reason,
        None,
        "its far end takes no frames"
    );
    host.ports.clear();
    assert_eq!(run(&host, &request()).0.reason, None);
}

/// The kernel decides about packets above the smallest MTU of a route.
#[test]
fn packet_over_route_mtu_is_left_to_kernel() {
    let mut host = Host::usual(64);
    host.settings.route_mtu = 1400;
    let asks = |length| Spec::udp((APP, 5000), (REMOTE, 53)).payload(length);
    for (length, reason) in [(1372, Reason::Forwarded), (1373, Reason::TooBig)] {
        let (outcome, _) = host.by_veth(APP_VETH, &asks(length));
        assert_eq!(outcome.reason, Some(reason), "{length}");
    }
}
