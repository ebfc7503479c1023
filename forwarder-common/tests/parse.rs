// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reading packets: every way to be malformed or cut short ends in a reason, never in a panic and
//! never in a packet half written.

use forwarder_common::family::V4;
use forwarder_common::reason::{Path, Reason};
use forwarder_common::wire::frame::Frame;
use forwarder_common::wire::parse::{Class, Packet, parse};
use forwarder_common::wire::proto;
use forwarder_testkit::model::frames::{ACK, ECHO_REPLY, FIN, PSH, SYN, Spec, TIME_EXCEEDED};
use forwarder_testkit::model::host::{
    APP, APP_VETH, BRIDGE, CLIENT, HOST, REMOTE, UPLINK, WEB_VETH, far_mac, mac,
};
use forwarder_testkit::model::{Arrival, Hook, Host};
use proptest::prelude::*;

fn read(packet: &mut [u8]) -> Result<Packet<V4>, Reason> {
    let mut parsed = Packet::default();
    parse(&Frame::new(packet), 0, &mut parsed).map(|()| parsed)
}

/// A packet with one byte replaced.
fn with(spec: &Spec, at: usize, byte: u8) -> Vec<u8> {
    let mut packet = spec.packet();
    packet[at] = byte;
    packet
}

fn tcp() -> Spec {
    Spec::tcp((CLIENT, 40_000), (HOST, 8080), SYN)
}

fn udp() -> Spec {
    Spec::udp((CLIENT, 40_000), (HOST, 8080))
}

/// Headers that contradict themselves are malformed.
#[test]
fn contradictory_headers_are_malformed() {
    let ping = Spec::ping(CLIENT, HOST, 7).payload(0);
    let cases = [
        ("version 6", with(&tcp(), 0, 0x65)),
        ("version 0", with(&tcp(), 0, 0x05)),
        ("header of 16 bytes", with(&tcp(), 0, 0x44)),
        ("no header at all", with(&tcp(), 0, 0x40)),
        ("shorter than its header", with(&tcp(), 3, 19)),
        ("no room for TCP", with(&tcp(), 3, 39)),
        ("TCP header of 16 bytes", with(&tcp(), 32, 0x40)),
        ("TCP header longer than the packet", with(&tcp(), 32, 0xf0)),
        ("no room for UDP", with(&udp(), 3, 27)),
        ("no room for ICMP", with(&ping, 3, 27)),
        // Only TCP may be longer than the field can say.
        ("no length of UDP", with(&udp(), 3, 0)),
        ("no length of ICMP", with(&ping, 3, 0)),
    ];
    for (name, mut packet) in cases {
        assert_eq!(read(&mut packet).err(), Some(Reason::Malformed), "{name}");
    }
}

#[test]
fn damaged_header_is_left_to_the_kernel() {
    let host = Host::usual(64);
    let (sent, left) = host.by_veth(APP_VETH, &Spec::udp((APP, 5000), (REMOTE, 53)));
    assert_eq!(sent.reason, Some(Reason::Forwarded));
    let run = |hook, packet: &[u8]| {
        let mut frame = [&mac(UPLINK)[..], &far_mac(UPLINK), &[8, 0], packet].concat();
        let arrival = Arrival {
            ifindex: UPLINK,
            ..Arrival::default()
        };
        let outcome = host.run(hook, &mut frame, arrival);
        (outcome.reason, frame)
    };
    let packets = [
        (udp().packet(), Reason::Forwarded),
        (
            Spec::udp((REMOTE, 53), (HOST, 5000)).packet(),
            Reason::Forwarded,
        ),
        (
            Spec::error(TIME_EXCEEDED, REMOTE, HOST, &left, 28).packet(),
            Reason::IcmpError,
        ),
    ];
    for (packet, whole) in packets {
        let flows = host.index.borrow().len();
        for at in [1, 4, 8, 10, 11] {
            let mut damaged = packet.clone();
            damaged[at] ^= 0x10;
            for (hook, reason) in [
                (Hook::Uplink, None),
                (Hook::OutsideIn, Some(Reason::Malformed)),
            ] {
                let (found, frame) = run(hook, &damaged);
                assert_eq!(found, reason, "byte {at}");
                assert_eq!(frame[14..], damaged);
            }
        }
        assert_eq!(host.index.borrow().len(), flows, "it opened a flow");
        assert_eq!(run(Hook::OutsideIn, &packet).0, Some(whole));
    }
}

/// A frame that ends within its headers is truncated.
#[test]
fn frame_ending_in_its_headers_is_truncated() {
    let cases = [
        (tcp(), 40),
        (udp(), 28),
        (Spec::ping(CLIENT, HOST, 7), 28),
        (tcp().options(), 48),
        (udp().options(), 36),
        (
            Spec {
                tuple: forwarder_common::abi::Tuple {
                    proto: 47,
                    ..udp().tuple
                },
                ..udp()
            },
            20,
        ),
    ];
    for (spec, headers) in cases {
        let packet = spec.packet();
        for len in 0..headers {
            let cut = read(&mut packet.clone()[..len]);
            assert_eq!(
                cut.err(),
                Some(Reason::Truncated),
                "{len} bytes of {spec:?}"
            );
        }
        assert!(read(&mut packet.clone()[..headers]).is_ok(), "{spec:?}");
    }
}

#[test]
fn whole_packet_is_read() {
    let packet = read(&mut tcp().options().packet()).unwrap();
    assert_eq!(packet.tuple, tcp().tuple);
    assert_eq!((packet.class, packet.flags), (Class::Flow, SYN));
    assert_eq!((packet.l4, packet.headers, packet.hops), (28, 48, 64));
    assert!(packet.options && !packet.later_fragment && !packet.answer);

    // PSH, ECE and CWR are nobody's business.
    let push = Spec {
        flags: ACK | PSH | FIN | 0xc0,
        ..tcp()
    };
    assert_eq!(read(&mut push.packet()).unwrap().flags, ACK | FIN);

    let pong = read(&mut Spec::pong(CLIENT, HOST, 7).packet()).unwrap();
    assert!(pong.answer && pong.class == Class::Flow);
    assert_eq!((pong.tuple.sport.get(), pong.tuple.dport.get()), (0, 7));

    for kind in [3, 4, 5, 11, 12] {
        let error = Spec::error(kind, CLIENT, HOST, &tcp().packet(), 28);
        assert_eq!(read(&mut error.packet()).unwrap().class, Class::IcmpError);
    }
    for kind in 13..=18 {
        let query = Spec::query(kind, CLIENT, HOST, 7);
        let read = read(&mut query.packet()).unwrap();
        assert_eq!((read.class, read.tuple), (Class::Flow, query.tuple));
        assert_eq!(read.answer, kind % 2 == 0);
    }
    for kind in [ECHO_REPLY + 1, 9, 10, 19, 42] {
        let other = Spec {
            kind,
            ..Spec::ping(CLIENT, HOST, 7)
        };
        assert_eq!(read(&mut other.packet()).unwrap().class, Class::Other);
    }
}

#[test]
fn fragments_are_known_by_offset_and_flag() {
    let head = read(&mut udp().fragment(0x2000).packet()).unwrap();
    assert_eq!(
        (head.class, head.later_fragment, head.tuple),
        (Class::Fragment, false, udp().tuple)
    );
    for word in [0x2001, 0x0001, 0x1fff] {
        let tail = read(&mut udp().fragment(word).packet()).unwrap();
        assert_eq!((tail.class, tail.later_fragment), (Class::Fragment, true));
        assert_eq!(tail.tuple.dport.get(), 0, "a tail has no ports");
        assert_eq!(tail.tuple.proto, proto::UDP);
    }
    assert_eq!(
        read(&mut udp().fragment(0x4000).packet()).unwrap().class,
        Class::Flow
    );
    assert_eq!(
        read(&mut udp().fragment(0x8000).packet()).unwrap().class,
        Class::Flow
    );
}

/// Every hook, as frames reach it.
const EVERY: [(Hook, u32, u32); 9] = [
    (Hook::OutsideIn, UPLINK, 0),
    (Hook::OutsideInRaw, UPLINK, 0),
    (Hook::OutsideOut, UPLINK, BRIDGE),
    (Hook::OutsideOutRaw, UPLINK, BRIDGE),
    (Hook::ContainerIn, APP_VETH, 0),
    (Hook::ContainerOut, APP_VETH, WEB_VETH),
    (Hook::BridgeIn, BRIDGE, 0),
    (Hook::BridgeOut, BRIDGE, UPLINK),
    (Hook::Uplink, UPLINK, 0),
];

/// Runs a frame through every hook. What is refused or not read must be as it was.
fn through_all(host: &Host, frame: &[u8], mark: u32) -> Result<(), TestCaseError> {
    for (hook, ifindex, ingress_ifindex) in EVERY {
        let raw = matches!(hook, Hook::OutsideInRaw | Hook::OutsideOutRaw);
        let mut after = frame.to_vec();
        if !raw && after.len() >= 6 {
            after[..6].copy_from_slice(&host.devices[&ifindex].mac);
        }
        let before = after.clone();
        let bytes = if raw && after.len() >= 14 {
            &mut after[14..]
        } else {
            &mut after[..]
        };
        let outcome = host.run(
            hook,
            bytes,
            Arrival {
                ifindex,
                ingress_ifindex,
                mark,
                hash: mark,
                segment: 0,
            },
        );
        host.check();
        let unread = [Some(Reason::Malformed), Some(Reason::Truncated), None];
        let refused = outcome
            .reason
            .is_some_and(|reason| reason.path() == Path::Drop);
        if refused || unread.contains(&outcome.reason) {
            prop_assert_eq!(&after, &before, "{:?}: {:?}", hook, outcome);
        }
    }
    Ok(())
}

fn any_spec() -> impl Strategy<Value = Spec> {
    (0..6_u8, any::<u8>(), 0..3_u8, 0..200_usize, any::<bool>()).prop_map(
        |(kind, flags, from, payload, options)| {
            let src = [CLIENT, APP, HOST][usize::from(from)];
            let spec = match kind {
                0 => Spec::tcp((src, 40_000), (HOST, 8080), flags),
                1 => Spec::udp((src, 40_000), (HOST, 8080)),
                2 => Spec::ping(src, CLIENT, 9),
                3 => Spec::udp((src, 40_000), (HOST, 8080)).fragment(u16::from(flags) << 6),
                4 => Spec::tcp((src, 5000), (CLIENT, 80), SYN),
                _ => {
                    let quoted = Spec::udp((HOST, 8080), (src, 40_000)).payload(64).packet();
                    return Spec::error(TIME_EXCEEDED, src, HOST, &quoted, payload);
                }
            };
            let spec = spec.payload(payload);
            if options { spec.options() } else { spec }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn garbage_harms_nothing(
        bytes in prop::collection::vec(any::<u8>(), 0..160), mark in any::<u32>()
    ) {
        let mut frame = bytes;
        if frame.len() > 14 {
            frame[12..15].copy_from_slice(&[0x08, 0x00, 0x45]);
        }
        through_all(&Host::usual(64), &frame, mark)?;
    }

    #[test]
    fn cut_or_damaged_packet_harms_nothing(
        spec in any_spec(), keep in any::<prop::sample::Index>(), tagged in any::<bool>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    ) {
        let host = Host::usual(64);
        host.by_uplink(&udp());
        host.by_uplink(&tcp());
        let mut frame = spec.between(mac(UPLINK), far_mac(UPLINK)).build();
        for (at, byte) in damage {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        frame.truncate(keep.index(frame.len() + 1));
        through_all(&host, &frame, if tagged { 0xb000_0001 } else { 0 })?;
    }
}
