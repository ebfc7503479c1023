// SPDX-License-Identifier: MIT OR Apache-2.0
//! Fragments: the way round and back, the way onward, the train behind a first piece, and what one
//! container may hold.

use forwarder_common::abi::network;
use forwarder_common::conntrack::quota::FRAGMENT_BYTES;
use forwarder_common::conntrack::timeouts::REASSEMBLY;
use forwarder_common::family::Be32;
use forwarder_common::mark;
use forwarder_common::reason::Reason;
use forwarder_testkit::model::frames::{ACK, SYN, Spec, cut, ip};
use forwarder_testkit::model::host::{
    APP, APP_VETH, BRIDGE, CLIENT, FAR, GATEWAY, HOST, REMOTE, UPLINK, WEB, WEB_VETH, far_mac, mac,
};
use forwarder_testkit::model::{Arrival, Carried, Hook, Host, Outcome, Target};
use forwarder_testkit::packet::seal_header;

/// The device that pieces go round by.
const DEFRAG_LOOPBACK: u32 = 90;
const MORE: u16 = 0x2000;

fn host() -> Host {
    let mut host = Host::usual(64);
    host.settings.defrag_loopback = DEFRAG_LOOPBACK;
    host
}

fn request() -> Spec {
    Spec::udp((CLIENT, 40_000), (HOST, 8080))
}

fn query() -> Spec {
    Spec::udp((APP, 5000), (REMOTE, 53))
}

/// The `nth` piece of a datagram of `of` pieces, eight bytes of payload each; the first one has a
/// header before them.
fn is_fragment(spec: Spec, nth: u16, of: u16) -> Spec {
    let offset = if nth == 0 { 0 } else { nth + 1 };
    spec.payload(8)
        .fragment(offset | if nth + 1 < of { MORE } else { 0 })
}

fn bytes(spec: &Spec) -> Vec<u8> {
    spec.packet()
}

fn at(
    host: &Host,
    hook: Hook,
    ifindex: u32,
    carried: impl Into<Carried>,
    packet: &[u8],
) -> (Outcome, Vec<u8>) {
    let Carried(mark, hash) = carried.into();
    let src = if hook == Hook::ContainerIn {
        far_mac(ifindex)
    } else {
        mac(ifindex)
    };
    let dst = if hook == Hook::ContainerIn {
        mac(BRIDGE)
    } else {
        mac(ifindex)
    };
    let ingress_ifindex = if ifindex == DEFRAG_LOOPBACK {
        UPLINK
    } else {
        0
    };
    let mut frame = [&dst, &src, &[8, 0][..], packet].concat();
    let arrival = Arrival {
        ifindex,
        ingress_ifindex,
        mark,
        hash,
        segment: 0,
    };
    let outcome = host.run(hook, &mut frame, arrival);
    (outcome, frame.split_off(14))
}

/// From outside, round and back: what becomes of it there.
fn defrag_loopback(host: &Host, packet: &[u8]) -> (Outcome, Vec<u8>) {
    let (there, lost) = at(host, Hook::OutsideIn, UPLINK, 0, packet);
    assert_eq!(there.reason, Some(Reason::Reassembled));
    // Nobody's address; one hop more, which forwarding takes.
    assert_eq!((lost[16], lost[8]), (0, packet[8] + 1));
    let mut lost = lost;
    lost[8] -= 1;
    let sum = u16::from_be_bytes([lost[10], lost[11]]);
    let (sum, forward_established) = sum.overflowing_add(0x100);
    lost[10..12].copy_from_slice(&(sum + u16::from(forward_established)).to_be_bytes());
    let (back, found) = at(host, Hook::DefragOut, DEFRAG_LOOPBACK, there, &lost);
    assert_eq!(
        (back.reason, back.target, back.mark),
        (
            Some(Reason::Whole),
            Some(Target::Ingress(UPLINK)),
            mark::DEFRAGMENTED
        )
    );
    assert_eq!(found, packet);
    at(host, Hook::OutsideIn, UPLINK, back, &found)
}

fn destination(packet: &[u8]) -> [u8; 4] {
    [packet[16], packet[17], packet[18], packet[19]]
}

/// Fragments to the host go through the defragmentation loopback and come back unchanged.
#[test]
fn fragments_to_the_host_survive_defragmentation() {
    let host = host();
    for nth in 0..3 {
        let packet = bytes(&is_fragment(request(), nth, 3));
        let (outcome, out) = defrag_loopback(&host, &packet);
        assert_eq!(outcome.reason, Some(Reason::Forwarded), "piece {nth}");
        assert_eq!(outcome.target, Some(Target::Peer(WEB_VETH)));
        assert_eq!(destination(&out), WEB.octets());
        // Ports are in the first one only: what follows is payload.
        if nth > 0 {
            assert_eq!(out[20..], packet[20..]);
        }
    }
}

/// An acknowledgement of all fragments of a segment passes the TCP window check.
#[test]
fn ack_of_a_fragmented_segment_passes() {
    let host = host();
    let (client, server) = ((CLIENT, 40_000), (WEB, 80));
    let asks = |flags| Spec::tcp(client, (HOST, 8080), flags);
    let answers = |flags| Spec::tcp(server, client, flags);
    let inward = |spec: Spec, mark| {
        let (outcome, _) = at(&host, Hook::OutsideIn, UPLINK, mark, &bytes(&spec));
        outcome.reason
    };
    let outward = |spec: Spec| {
        let (outcome, _) = at(&host, Hook::ContainerIn, WEB_VETH, 0, &bytes(&spec));
        outcome.reason
    };
    let through = Some(Reason::Forwarded);
    assert_eq!(inward(asks(SYN), 0), through);
    assert_eq!(outward(answers(SYN | ACK)), through);
    assert_eq!(inward(asks(ACK), 0), through);
    // Without any piece, nothing may be acknowledged.
    let early = answers(ACK).numbers(2, 2 + 24, 0x1000);
    assert_eq!(outward(early.clone()), Some(Reason::TcpWindow));
    let whole = asks(ACK).payload(24).packet();
    for is_fragment in cut(&whole, 24, 7) {
        let (outcome, _) = at(
            &host,
            Hook::OutsideIn,
            UPLINK,
            mark::DEFRAGMENTED,
            &is_fragment,
        );
        assert_eq!(outcome.reason, through);
    }
    assert_eq!(outward(early), through);
    assert_eq!(
        inward(asks(ACK).numbers(2 + 24, 2, 0x1000).payload(8), 0),
        through
    );
}

/// A fragment that belongs to no known series is dropped.
#[test]
fn fragment_without_its_series_is_dropped() {
    let host = host();
    let back = |nth, of| {
        let packet = bytes(&is_fragment(request(), nth, of));
        at(&host, Hook::OutsideIn, UPLINK, mark::DEFRAGMENTED, &packet)
            .0
            .reason
    };
    assert_eq!(back(1, 3), Some(Reason::Fragment));
    assert_eq!(back(0, 3), Some(Reason::Forwarded));
    // One left out; then the right one comes late, to a train that has not moved; then twice.
    assert_eq!(back(2, 3), Some(Reason::Fragment));
    assert_eq!(back(1, 3), Some(Reason::Forwarded));
    assert_eq!(back(1, 3), Some(Reason::Fragment));
    assert_eq!(back(2, 3), Some(Reason::Forwarded));
    // The last one ends it.
    assert_eq!(back(2, 3), Some(Reason::Fragment));
    // Another source, though everything else is as it has to be.
    assert_eq!(back(0, 3), Some(Reason::Forwarded));
    let other = Spec::udp((REMOTE, 40_000), (HOST, 8080));
    let packet = bytes(&is_fragment(other, 1, 3));
    let (outcome, _) = at(&host, Hook::OutsideIn, UPLINK, mark::DEFRAGMENTED, &packet);
    assert_eq!(outcome.reason, Some(Reason::Fragment));
    // Of another datagram, likewise.
    assert_eq!(back(0, 3), Some(Reason::Forwarded));
    let mut packet = bytes(&is_fragment(request(), 1, 3));
    packet[5] ^= 1;
    seal_header(&mut packet);
    let (outcome, _) = at(&host, Hook::OutsideIn, UPLINK, mark::DEFRAGMENTED, &packet);
    assert_eq!(outcome.reason, Some(Reason::Fragment));
}

#[test]
fn hosts_own_fragments_reach_the_host() {
    let host = host();
    for nth in 0..2 {
        let packet = bytes(&is_fragment(Spec::udp((CLIENT, 1), (HOST, 53)), nth, 2));
        let (outcome, out) = defrag_loopback(&host, &packet);
        assert_eq!((outcome.reason, outcome.mark), (Some(Reason::ToHost), 0));
        assert_eq!(out, packet);
    }
}

/// Of outbound fragments the first carries the mark of the flow; the others carry a mark that leads
/// to no flow.
#[test]
fn outbound_first_fragment_carries_the_flow_mark() {
    let host = host();
    let (head, packet) = at(
        &host,
        Hook::ContainerIn,
        APP_VETH,
        0,
        &bytes(&is_fragment(query(), 0, 2)),
    );
    assert_eq!(head.reason, Some(Reason::Reassembled));
    assert_eq!(packet, bytes(&is_fragment(query(), 0, 2)));
    let (tail, _) = at(
        &host,
        Hook::ContainerIn,
        APP_VETH,
        0,
        &bytes(&is_fragment(query(), 1, 2)),
    );
    assert_eq!(
        (tail.reason, tail.mark),
        (Some(Reason::Reassembled), mark::FRAGMENT)
    );
    for nth in 0..2 {
        let is_fragment = bytes(&is_fragment(query(), nth, 2));
        let (out, packet) = host.to_outside(BRIDGE, head, &is_fragment);
        assert_eq!(out.reason, Some(Reason::Completed));
        assert_eq!(packet[12..16], HOST.octets());
        // Without the first one's mark nothing leaves.
        let (out, packet) = host.to_outside(BRIDGE, mark::FRAGMENT, &is_fragment);
        assert_eq!(out.reason, Some(Reason::Untranslated));
        assert_eq!(packet, is_fragment);
    }
}

/// A container's fragments are checked before they are passed on.
#[test]
fn container_fragments_are_checked_first() {
    let host = host();
    for (spec, reason) in [
        (Spec::udp((WEB, 1), (REMOTE, 53)), Reason::SpoofedSource),
        (Spec::udp((FAR, 1), (HOST, 8080)), Reason::SpoofedSource),
        (
            Spec::udp((APP, 1), (ip(127, 0, 0, 1), 53)),
            Reason::Loopback,
        ),
    ] {
        for nth in 0..2 {
            let packet = bytes(&is_fragment(spec.clone(), nth, 2));
            let (outcome, out) = at(&host, Hook::ContainerIn, APP_VETH, 0, &packet);
            assert_eq!((outcome.reason, out), (Some(reason), packet), "{nth}");
        }
    }
    // The first one to another network is refused, so its datagram is.
    let packet = bytes(&is_fragment(Spec::udp((APP, 1), (FAR, 53)), 0, 2));
    let (outcome, _) = at(&host, Hook::ContainerIn, APP_VETH, 0, &packet);
    assert_eq!(outcome.reason, Some(Reason::Isolated));
}

/// A first fragment that lacks a part of its transport header is not translated.
#[test]
fn first_fragment_needs_its_whole_header() {
    let host = host();
    let mut packet = Spec::tcp((APP, 5000), (REMOTE, 80), SYN)
        .fragment(MORE)
        .packet();
    packet.truncate(28);
    packet[2..4].copy_from_slice(&28_u16.to_be_bytes());
    let (outcome, out) = at(&host, Hook::ContainerIn, APP_VETH, 0, &packet);
    assert_eq!((outcome.reason, out), (Some(Reason::Fragment), packet));
}

/// A container holds no more fragments than its quota, and gets the quota back.
#[test]
fn fragment_quota_bounds_and_is_given_back() {
    let mut host = host();
    host.wait(REASSEMBLY);
    let tail = bytes(&is_fragment(query(), 1, 3));
    let send = |host: &Host| {
        at(host, Hook::ContainerIn, APP_VETH, 0, &tail)
            .0
            .reason
            .unwrap()
    };
    let until_refused = |host: &Host| {
        let sent = (0..FRAGMENT_BYTES).take_while(|_| send(host) == Reason::Reassembled);
        sent.count() as u32
    };
    let cost = tail.len() as u32 * 2 + 768;
    assert_eq!(until_refused(&host), FRAGMENT_BYTES / cost);
    assert_eq!(send(&host), Reason::FragmentQuota);
    // Its neighbour has its own.
    let other = bytes(&is_fragment(Spec::udp((WEB, 1), (REMOTE, 53)), 1, 3));
    let (outcome, _) = at(&host, Hook::ContainerIn, WEB_VETH, 0, &other);
    assert_eq!(outcome.reason, Some(Reason::Reassembled));
    // In time all of it comes back, half in half of the time.
    host.wait(REASSEMBLY / 2);
    let half = until_refused(&host);
    assert!(half.abs_diff(FRAGMENT_BYTES / cost / 2) <= 2, "{half}");
    host.wait(REASSEMBLY);
    assert_eq!(until_refused(&host), FRAGMENT_BYTES / cost);
    // What leaves whole is given back at once.
    host.wait(REASSEMBLY);
    let head = bytes(&is_fragment(query(), 0, 2));
    let (outcome, _) = at(&host, Hook::ContainerIn, APP_VETH, 0, &head);
    assert_eq!(outcome.reason, Some(Reason::Reassembled));
    assert_eq!(
        until_refused(&host),
        (FRAGMENT_BYTES - cost_of(&head)) / cost
    );
    let (out, _) = host.to_outside(BRIDGE, outcome, &head);
    assert_eq!(out.reason, Some(Reason::Completed));
    assert!(until_refused(&host) > 0);
}

fn cost_of(packet: &[u8]) -> u32 {
    packet.len() as u32 * 2 + 768
}

/// Every fragment that the kernel keeps is charged to its container.
#[test]
fn every_kept_fragment_is_charged() {
    const GROUP: [u8; 6] = [0x01, 0, 0x5e, 0, 0, 0xfb];
    let host = host();
    let gateway = host.devices[&APP_VETH].mac;
    let sends = |host: &Host, to: [u8; 6], dst: Be32| {
        let spec = is_fragment(Spec::udp((APP, 1), (dst, 53)), 1, 3);
        let mut frame = spec.between(to, far_mac(APP_VETH)).build();
        let arrival = Arrival {
            ifindex: APP_VETH,
            ..Arrival::default()
        };
        host.run(Hook::ContainerIn, &mut frame, arrival).reason
    };
    let ways = [
        ("multicast", GROUP, ip(224, 0, 0, 251), 0),
        ("everybody", [0xff; 6], ip(172, 17, 255, 255), 0),
        ("this network", gateway, ip(0, 0, 0, 9), 0),
        ("the gateway", gateway, GATEWAY, 0),
        (
            "the gateway of an internal network",
            gateway,
            GATEWAY,
            network::INTERNAL,
        ),
        ("a neighbour by the gateway", gateway, WEB, 0),
    ];
    for (what, mac, dst, flags) in ways {
        let mut host = self::host();
        host.wait(REASSEMBLY);
        host.networks.get_mut(&BRIDGE).unwrap().flags |= flags;
        let kept = (0..FRAGMENT_BYTES)
            .take_while(|_| sends(&host, mac, dst) != Some(Reason::FragmentQuota));
        let most = FRAGMENT_BYTES / 768;
        assert!((kept.count() as u32) < most, "{what}");
    }
    // What a bridge only switches is nobody's to keep.
    for _ in 0..FRAGMENT_BYTES / 768 {
        assert_eq!(sends(&host, far_mac(WEB_VETH), WEB), Some(Reason::Bridged));
    }
}
