// SPDX-License-Identifier: MIT OR Apache-2.0
//! Followed flows: what the kernel lets out takes the fast path for a while, and nothing else does.

use forwarder_common::abi::{End, FlowRef, Tuple, armed, device, others};
use forwarder_common::conntrack::flow_operation::{self, Followed, Following};
use forwarder_common::conntrack::timeouts;
use forwarder_common::family::{Be32, V4};
use forwarder_common::mark;
use forwarder_common::reason::Reason;
use forwarder_common::wire::frame::Frame;
use forwarder_testkit::model::frames::{ACK, FIN, RST, SYN, Spec, UNREACHABLE, ip};
use forwarder_testkit::model::host::{
    APP, APP_VETH, BRIDGE, CLIENT, FAR, FAR_VETH, HOST, REMOTE, SECOND, UPLINK, WEB, WEB_VETH,
    far_mac, mac,
};
use forwarder_testkit::model::{Arrival, Hook, Host, Outcome, Target};

/// A host on which the kernel decides about the traffic of one network.
fn host() -> Host {
    let mut host = Host::usual(64);
    host.settings.armed = armed::ADOPT;
    host.settings.tcp_strict = 1;
    host.settings.others = others::FOLLOWED;
    host.networks.remove(&BRIDGE);
    host.subnets.retain(|_, bridge| *bridge != BRIDGE);
    host.published.clear();
    for veth in [WEB_VETH, APP_VETH] {
        host.devices.get_mut(&veth).unwrap().kind = device::FOLLOWED;
    }
    host.devices.get_mut(&BRIDGE).unwrap().kind = device::OTHER;
    host
}

fn end(host: &Host, slot: u32) -> End {
    let generation = host.endpoints[slot as usize].generation;
    End { slot, generation }
}

/// A connection from outside to a container, by a published port.
fn inward(host: &Host, proto: u32) -> Followed<V4> {
    let spec = |from, to| Tuple {
        proto,
        ..Spec::udp(from, to).tuple
    };
    Followed {
        original: spec((CLIENT, 40_000), (HOST, 8080)),
        reply: spec((WEB, 80), (CLIENT, 40_000)),
        to: end(host, host.endpoint_slots[&WEB]),
        from: End::OUTSIDE,
    }
}

/// A connection from a container outwards, which the kernel masquerades.
fn outward(host: &Host) -> Followed<V4> {
    Followed {
        original: Spec::tcp((APP, 5000), (REMOTE, 443), ACK).tuple,
        reply: Spec::tcp((REMOTE, 443), (HOST, 61_001), ACK).tuple,
        to: End::OUTSIDE,
        from: end(host, host.endpoint_slots[&APP]),
    }
}

fn follow(host: &Host, connection: &Followed<V4>) {
    let following = flow_operation::follow(host, connection);
    assert_eq!(following, Following::Followed);
    host.check();
}

/// A container's packet on its veth.
fn by_veth(host: &Host, veth: u32, spec: &Spec) -> (Outcome, Vec<u8>) {
    let arrival = Arrival {
        ifindex: veth,
        ..Arrival::default()
    };
    let mut frame = spec.clone().between(mac(BRIDGE), far_mac(veth)).build();
    let outcome = host.run(Hook::FollowedIn, &mut frame, arrival);
    (outcome, frame.split_off(14))
}

/// The kernel sends a packet out on a veth.
fn to_veth(host: &Host, veth: u32, spec: &Spec) -> Outcome {
    let arrival = Arrival {
        ifindex: veth,
        ingress_ifindex: UPLINK,
        ..Arrival::default()
    };
    host.raw(Hook::FollowedOut, &spec.packet(), arrival).0
}

fn is_left(outcome: &Outcome) {
    assert_eq!(outcome.reason, Some(Reason::KernelOwned));
    assert_eq!(outcome.mark, mark::NONE, "others see no mark of ours");
}

#[test]
fn connection_survives_its_frame() {
    let host = host();
    for connection in [inward(&host, 6), outward(&host)] {
        let mut bytes = [0; Followed::<V4>::LEN];
        assert!(connection.write(&mut Frame::new(&mut bytes)));
        assert_eq!(Followed::read(&Frame::new(&mut bytes)), Some(connection));
    }
}

/// Each direction waits for its own packet to come out.
#[test]
fn direction_is_fast_once_let_out() {
    let mut host = host();
    follow(&host, &inward(&host, 6));
    let asks = Spec::tcp((CLIENT, 40_000), (HOST, 8080), ACK).payload(10);
    let seen = Spec::tcp((CLIENT, 40_000), (WEB, 80), ACK).payload(10);
    let answers = Spec::tcp((WEB, 80), (CLIENT, 40_000), ACK).payload(10);
    let translated = Spec::tcp((HOST, 8080), (CLIENT, 40_000), ACK).payload(10);
    let (outcome, packet) = host.by_uplink(&asks);
    is_left(&outcome);
    assert_eq!(packet, asks.packet());
    assert_eq!(
        to_veth(&host, WEB_VETH, &seen).reason,
        Some(Reason::Admitted)
    );
    let (outcome, packet) = host.by_uplink(&asks);
    assert_eq!(outcome.target, Some(Target::Peer(WEB_VETH)));
    assert_eq!(packet, seen.clone().hops(63).packet());
    is_left(&by_veth(&host, WEB_VETH, &answers).0);
    let (outcome, _) = host.to_outside(BRIDGE, mark::NONE, &translated.packet());
    assert_eq!(outcome.reason, Some(Reason::Admitted));
    let (outcome, packet) = by_veth(&host, WEB_VETH, &answers);
    assert_eq!(outcome.reason, Some(Reason::Forwarded));
    assert_eq!(packet, translated.clone().hops(63).packet());
    host.wait(timeouts::LET_OUT);
    is_left(&host.by_uplink(&asks).0);
    is_left(&by_veth(&host, WEB_VETH, &answers).0);
}

/// The kernel's translation is the flow's, whatever masquerade would choose.
#[test]
fn outward_flow_has_the_kernels_port() {
    let host = host();
    follow(&host, &outward(&host));
    let asks = Spec::tcp((APP, 5000), (REMOTE, 443), ACK);
    let translated = Spec::tcp((HOST, 61_001), (REMOTE, 443), ACK);
    is_left(&by_veth(&host, APP_VETH, &asks).0);
    let (outcome, _) = host.to_outside(BRIDGE, mark::NONE, &translated.packet());
    assert_eq!(outcome.reason, Some(Reason::Admitted));
    let (outcome, packet) = by_veth(&host, APP_VETH, &asks);
    assert_eq!(outcome.reason, Some(Reason::Forwarded));
    assert_eq!(packet, translated.hops(63).packet());
    let answer = Spec::tcp((REMOTE, 443), (HOST, 61_001), ACK);
    is_left(&host.by_uplink(&answer).0);
    let seen = Spec::tcp((REMOTE, 443), (APP, 5000), ACK);
    assert_eq!(
        to_veth(&host, APP_VETH, &seen).reason,
        Some(Reason::Admitted)
    );
    let (outcome, _) = host.by_uplink(&answer);
    assert_eq!(outcome.target, Some(Target::Peer(APP_VETH)));
}

/// What leaves by another device than the fast path's says nothing about the fast path.
#[test]
fn other_way_out_does_not_count() {
    let host = host();
    follow(&host, &outward(&host));
    let asks = Spec::tcp((APP, 5000), (REMOTE, 443), ACK);
    let translated = Spec::tcp((HOST, 61_001), (REMOTE, 443), ACK).packet();
    // Before any packet arrived, the flow has no route.
    host.to_outside(BRIDGE, mark::NONE, &translated);
    is_left(&by_veth(&host, APP_VETH, &asks).0);
    let arrival = Arrival {
        ifindex: UPLINK + 1,
        ingress_ifindex: BRIDGE,
        ..Arrival::default()
    };
    host.raw(Hook::OutsideOut, &translated, arrival);
    is_left(&by_veth(&host, APP_VETH, &asks).0);
    let seen = Spec::tcp((REMOTE, 443), (APP, 5000), ACK);
    to_veth(&host, WEB_VETH, &seen);
    is_left(
        &host
            .by_uplink(&Spec::tcp((REMOTE, 443), (HOST, 61_001), ACK))
            .0,
    );
}

/// What the kernel has let out one way says nothing about a new way, as past a kill switch.
#[test]
fn new_route_is_judged_anew() {
    let mut host = host();
    follow(&host, &outward(&host));
    let asks = Spec::tcp((APP, 5000), (REMOTE, 443), ACK);
    by_veth(&host, APP_VETH, &asks);
    let translated = Spec::tcp((HOST, 61_001), (REMOTE, 443), ACK).packet();
    host.to_outside(BRIDGE, mark::NONE, &translated);
    let (outcome, _) = by_veth(&host, APP_VETH, &asks);
    assert_eq!(outcome.reason, Some(Reason::Forwarded));
    host.route((Be32::default(), 0), SECOND, CLIENT, 1500);
    host.settings.route_generation += 1;
    is_left(&by_veth(&host, APP_VETH, &asks).0);
    is_left(&by_veth(&host, APP_VETH, &asks).0);
    let arrival = Arrival {
        ifindex: SECOND,
        ingress_ifindex: BRIDGE,
        ..Arrival::default()
    };
    host.raw(Hook::OutsideOut, &translated, arrival);
    let (outcome, _) = by_veth(&host, APP_VETH, &asks);
    assert_eq!(outcome.reason, Some(Reason::Forwarded));
    // The same way once more needs no new packet of the kernel's.
    host.settings.route_generation += 1;
    let (outcome, _) = by_veth(&host, APP_VETH, &asks);
    assert_eq!(outcome.reason, Some(Reason::Forwarded));
}

/// Lets both directions of the inward connection out.
fn let_out(host: &Host) {
    host.by_uplink(&Spec::tcp((CLIENT, 40_000), (HOST, 8080), ACK));
    to_veth(host, WEB_VETH, &Spec::tcp((CLIENT, 40_000), (WEB, 80), ACK));
    by_veth(host, WEB_VETH, &Spec::tcp((WEB, 80), (CLIENT, 40_000), ACK));
    let translated = Spec::tcp((HOST, 8080), (CLIENT, 40_000), ACK).packet();
    host.to_outside(BRIDGE, mark::NONE, &translated);
    let (outcome, _) = host.by_uplink(&Spec::tcp((CLIENT, 40_000), (HOST, 8080), ACK));
    assert_eq!(outcome.reason, Some(Reason::Forwarded));
}

/// Ends and beginnings of connections are the kernel's, and so is all that comes after an end.
#[test]
fn ends_are_the_kernels() {
    for flags in [FIN | ACK, RST | ACK] {
        let host = host();
        follow(&host, &inward(&host, 6));
        let_out(&host);
        is_left(
            &host
                .by_uplink(&Spec::tcp((CLIENT, 40_000), (HOST, 8080), flags))
                .0,
        );
        let more = Spec::tcp((WEB, 80), (CLIENT, 40_000), ACK);
        is_left(&by_veth(&host, WEB_VETH, &more).0);
    }
    let host = host();
    follow(&host, &inward(&host, 6));
    let_out(&host);
    is_left(
        &host
            .by_uplink(&Spec::tcp((CLIENT, 40_000), (HOST, 8080), SYN))
            .0,
    );
}

/// What the fast path cannot finish, the kernel gets as it came.
#[test]
fn doubtful_packets_are_untouched() {
    let host = host();
    follow(&host, &inward(&host, 6));
    let_out(&host);
    let asks = || Spec::tcp((CLIENT, 40_000), (HOST, 8080), ACK);
    let large = asks().payload(3000);
    for spec in [asks().hops(1), large] {
        let (outcome, packet) = host.by_uplink(&spec);
        is_left(&outcome);
        assert_eq!(packet, spec.packet());
    }
    let quoted = Spec::tcp((WEB, 80), (CLIENT, 40_000), ACK).packet();
    let error = Spec::error(UNREACHABLE, WEB, CLIENT, &quoted, 28);
    is_left(&by_veth(&host, WEB_VETH, &error).0);
    let quoted = Spec::tcp((HOST, 8080), (CLIENT, 40_000), ACK).packet();
    let error = Spec::error(UNREACHABLE, REMOTE, HOST, &quoted, 28);
    let (outcome, packet) = host.by_uplink(&error);
    is_left(&outcome);
    assert_eq!(packet, error.packet());
}

/// A frame for another router on the bridge, and another container's, do not take the flow's way.
#[test]
fn only_the_originator_overtakes() {
    let host = host();
    follow(&host, &outward(&host));
    let asks = Spec::tcp((APP, 5000), (REMOTE, 443), ACK);
    by_veth(&host, APP_VETH, &asks);
    let translated = Spec::tcp((HOST, 61_001), (REMOTE, 443), ACK).packet();
    host.to_outside(BRIDGE, mark::NONE, &translated);
    let (outcome, _) = by_veth(&host, APP_VETH, &asks);
    assert_eq!(outcome.reason, Some(Reason::Forwarded));
    is_left(&by_veth(&host, WEB_VETH, &asks).0);
    let arrival = Arrival {
        ifindex: APP_VETH,
        ..Arrival::default()
    };
    let mut frame = asks
        .clone()
        .between([2, 9, 9, 9, 9, 9], far_mac(APP_VETH))
        .build();
    is_left(&host.run(Hook::FollowedIn, &mut frame, arrival));
    // A container of a network about which the forwarder decides is judged as without the flow.
    let (outcome, _) = host.by_veth(FAR_VETH, &asks);
    assert_eq!(outcome.reason, Some(Reason::SpoofedSource));
    let (outcome, _) = host.by_uplink(&asks);
    assert_ne!(outcome.reason, Some(Reason::Forwarded));
}

/// A reset is the kernel's to judge, and a connection that goes on has to be followed anew.
#[test]
fn reset_ends_the_flow() {
    let host = host();
    follow(&host, &inward(&host, 6));
    let_out(&host);
    let reset = Spec::tcp((CLIENT, 40_000), (HOST, 8080), RST).numbers(100, 0, 0);
    is_left(&host.by_uplink(&reset).0);
    assert!(host.flow_of(&inward(&host, 6).original).is_none());
}

/// What does not fit the windows is the kernel's to judge, too.
#[test]
fn strange_segment_is_the_kernels() {
    let host = host();
    follow(&host, &inward(&host, 6));
    let_out(&host);
    let strange = Spec::tcp((CLIENT, 40_000), (HOST, 8080), SYN | ACK);
    is_left(&host.by_uplink(&strange).0);
    let null = Spec::tcp((CLIENT, 40_000), (HOST, 8080), 0);
    is_left(&host.by_uplink(&null).0);
}

/// Datagrams are followed too, and have nothing that begins or ends.
#[test]
fn datagrams_are_followed() {
    let host = host();
    follow(&host, &inward(&host, 17));
    let asks = Spec::udp((CLIENT, 40_000), (HOST, 8080));
    is_left(&host.by_uplink(&asks).0);
    to_veth(&host, WEB_VETH, &Spec::udp((CLIENT, 40_000), (WEB, 80)));
    let (outcome, _) = host.by_uplink(&asks);
    assert_eq!(outcome.target, Some(Target::Peer(WEB_VETH)));
}

/// The record that keeps the kernel's port from containers makes room; a flow or a connection that
/// is left to the kernel does not.
#[test]
fn connection_takes_only_the_hosts_record() {
    let host = host();
    let begins = Spec::tcp((HOST, 61_001), (REMOTE, 443), SYN).packet();
    host.to_outside(BRIDGE, mark::NONE, &begins);
    let connection = outward(&host);
    assert!(host.index.borrow().contains_key(&connection.reply));
    follow(&host, &connection);
    assert_eq!(flow_operation::follow(&host, &connection), Following::Taken);
    let (_, flow_state) = host.flow_of(&connection.original).unwrap();
    assert!(flow_state.is_followed());
    host.check();
}

/// A connection that was left to the kernel when its network was not followed yet is followed; if it
/// cannot be, it stays left to the kernel.
#[test]
fn connection_left_to_the_kernel_is_followed() {
    let host = host();
    let connection = inward(&host, 6);
    for tuple in [connection.original, connection.reply] {
        host.index.borrow_mut().insert(tuple, FlowRef::KERNEL);
    }
    let taken = FlowRef { index: 7, id: 0 };
    host.index.borrow_mut().insert(connection.original, taken);
    let following = flow_operation::follow(&host, &connection);
    assert_eq!(following, Following::Taken);
    assert_eq!(host.index.borrow()[&connection.reply], FlowRef::KERNEL);
    let mut index = host.index.borrow_mut();
    index.insert(connection.original, FlowRef::KERNEL);
    drop(index);
    follow(&host, &connection);
    let_out(&host);
}

/// The kernel's translated packet is not taken for one of the host's whose port a container has, also
/// before the programs look for followed flows.
#[test]
fn kernels_translation_stays() {
    let mut host = host();
    follow(&host, &outward(&host));
    by_veth(&host, APP_VETH, &Spec::tcp((APP, 5000), (REMOTE, 443), ACK));
    host.settings.others = 0;
    let translated = Spec::tcp((HOST, 61_001), (REMOTE, 443), ACK).packet();
    let (outcome, packet) = host.to_outside(BRIDGE, mark::NONE, &translated);
    assert!(outcome.passes(), "{outcome:?}");
    assert_eq!(packet, translated);
}

/// What a bridge switches, and what the host sends, says nothing about the kernel's rules: any
/// container may send in the client's name to a neighbour.
#[test]
fn switched_packet_lets_nobody_out() {
    let host = host();
    follow(&host, &inward(&host, 6));
    let asks = Spec::tcp((CLIENT, 40_000), (HOST, 8080), ACK);
    host.by_uplink(&asks);
    let forged = Spec::tcp((CLIENT, 40_000), (WEB, 80), ACK).packet();
    for ingress_ifindex in [APP_VETH, 77, 0] {
        let arrival = Arrival {
            ifindex: WEB_VETH,
            ingress_ifindex,
            ..Arrival::default()
        };
        host.raw(Hook::FollowedOut, &forged, arrival);
        is_left(&host.by_uplink(&asks).0);
    }
}

/// A followed flow lives as long as the kernel's connection, also if it is idle from the beginning:
/// nobody gets its port meanwhile.
#[test]
fn idle_flow_lives_as_its_connection() {
    let mut host = host();
    follow(&host, &outward(&host));
    follow(&host, &inward(&host, 17));
    host.wait(timeouts::UDP_STREAM - 1);
    let (flow, _) = host.flow_of(&inward(&host, 17).original).unwrap();
    assert_eq!(flow.expires.get() - host.clock.get(), 1);
    let (flow, _) = host.flow_of(&outward(&host).original).unwrap();
    assert!(flow.expires.get() - host.clock.get() > 10 * timeouts::UDP_STREAM);
}

/// A followed flow ends with its container.
#[test]
fn flow_ends_with_its_container() {
    let mut host = host();
    follow(&host, &inward(&host, 6));
    let_out(&host);
    let slot = host.endpoint_slots[&WEB];
    host.endpoints[slot as usize].generation += 1;
    let (outcome, _) = host.by_uplink(&Spec::tcp((CLIENT, 40_000), (HOST, 8080), ACK));
    assert_ne!(outcome.reason, Some(Reason::Forwarded));
    assert!(host.flow_of(&inward(&host, 6).original).is_none());
}

/// What is of no followed flow passes as before.
#[test]
fn stranger_passes_as_before() {
    let host = host();
    let strangers = Spec::udp((ip(10, 9, 9, 9), 1), (CLIENT, 2)).packet();
    let (outcome, _) = host.to_outside(BRIDGE, mark::NONE, &strangers);
    assert_eq!(outcome.reason, Some(Reason::FromHost));
    let (outcome, _) = by_veth(&host, APP_VETH, &Spec::udp((APP, 1), (FAR, 2)));
    is_left(&outcome);
}
