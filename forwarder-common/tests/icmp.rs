// SPDX-License-Identifier: MIT OR Apache-2.0
//! ICMP errors: the quoted packet is restored to what its sender sent, as far as it is quoted.

use forwarder_common::reason::Reason;
use forwarder_testkit::model::frames::{ACK, SYN, Spec, TIME_EXCEEDED, UNREACHABLE, ip};
use forwarder_testkit::model::host::{
    APP, APP_VETH, BRIDGE, CLIENT, GATEWAY, HOST, REMOTE, UPLINK, WEB, WEB_VETH, far_mac, mac,
};
use forwarder_testkit::model::{Arrival, Hook, Host, Target};
use forwarder_testkit::packet::sums_up;
use proptest::prelude::*;

const ROUTER: forwarder_common::family::Be32 = ip(198, 19, 200, 1);

fn quoted(packet: &[u8]) -> &[u8] {
    &packet[28..]
}

/// A container's packet out, and how it left.
fn out(host: &Host, spec: &Spec) -> Vec<u8> {
    let (outcome, packet) = host.by_veth(APP_VETH, spec);
    assert_eq!(outcome.reason, Some(Reason::Forwarded));
    packet
}

/// An error from a router on the path reaches the container with the container's own packet inside.
#[test]
fn router_error_quotes_the_containers_packet() {
    for spec in [
        Spec::udp((APP, 5000), (REMOTE, 53)),
        Spec::tcp((APP, 5000), (REMOTE, 80), SYN),
        Spec::ping(APP, REMOTE, 77),
        Spec::query(13, APP, REMOTE, 77),
    ] {
        let host = Host::usual(64);
        let left = out(&host, &spec);
        let sent = spec.clone().hops(63).packet();
        for length in [28, 40, 100] {
            let error = Spec::error(TIME_EXCEEDED, ROUTER, HOST, &left, length);
            let (outcome, packet) = host.by_uplink(&error);
            assert_eq!(outcome.reason, Some(Reason::IcmpError));
            assert_eq!(outcome.target, Some(Target::Peer(APP_VETH)));
            assert!(sums_up(&packet), "{length} of {spec:?}");
            assert_eq!(
                packet[12..16],
                ROUTER.octets(),
                "the router stays the sender"
            );
            assert_eq!(packet[16..20], APP.octets());
            assert_eq!(packet[8], 63, "one hop fewer");
            let quote = quoted(&packet);
            assert_eq!(quote, &sent[..quote.len()], "{length} of {spec:?}");
        }
    }
}

/// A container's error about a request shows the host's address.
#[test]
fn container_error_comes_from_the_host() {
    let host = Host::usual(64);
    let request = Spec::udp((CLIENT, 40_000), (HOST, 8080));
    let (_, delivered) = host.by_uplink(&request);
    let error = Spec::error(UNREACHABLE, WEB, CLIENT, &delivered, 100);
    let (outcome, packet) = host.by_veth(WEB_VETH, &error);
    assert_eq!(outcome.reason, Some(Reason::IcmpError));
    assert!(sums_up(&packet));
    assert_eq!(packet[12..20], [HOST.octets(), CLIENT.octets()].concat());
    assert_eq!(quoted(&packet), request.clone().hops(63).packet());
}

#[test]
fn quote_without_udp_checksum_gets_none() {
    let host = Host::usual(64);
    let spec = Spec {
        unsummed: true,
        ..Spec::udp((APP, 5000), (REMOTE, 53))
    };
    let left = out(&host, &spec);
    let (outcome, packet) = host.by_uplink(&Spec::error(UNREACHABLE, ROUTER, HOST, &left, 100));
    assert_eq!(outcome.reason, Some(Reason::IcmpError));
    assert!(sums_up(&packet));
    assert_eq!(quoted(&packet)[26..28], [0, 0]);
}

/// An error whose quote does not name a flow is not forwarded to a container.
#[test]
fn error_without_a_flow_is_not_forwarded() {
    let host = Host::usual(64);
    let left = out(&host, &Spec::udp((APP, 5000), (REMOTE, 53)));
    let reason = |spec: &Spec| host.by_uplink(spec).0.reason;
    // Too short for ports: the host's to look at, no container's.
    for length in [0, 8, 19, 20, 24, 27] {
        let error = Spec::error(UNREACHABLE, ROUTER, HOST, &left, length);
        assert_eq!(reason(&error), Some(Reason::ToHost), "{length} bytes");
    }
    // A redirect must not cross a translation.
    assert_eq!(
        reason(&Spec::error(5, ROUTER, HOST, &left, 28)),
        Some(Reason::IcmpStray)
    );
    // About somebody else's flow.
    let strange = Spec::udp((HOST, 5001), (REMOTE, 53)).packet();
    assert_eq!(
        reason(&Spec::error(3, ROUTER, HOST, &strange, 28)),
        Some(Reason::ToHost)
    );
    // Out of a container, about nothing.
    let error = Spec::error(UNREACHABLE, APP, CLIENT, &strange, 28);
    assert_eq!(
        host.by_veth(APP_VETH, &error).0.reason,
        Some(Reason::IcmpStray)
    );
    // A tail quoted.
    let tail = Spec::udp((HOST, 0), (REMOTE, 0)).fragment(0x2001).packet();
    assert_eq!(
        reason(&Spec::error(11, ROUTER, HOST, &tail, 100)),
        Some(Reason::ToHost)
    );
}

#[test]
fn damaged_error_is_not_forwarded() {
    let host = Host::usual(64);
    let left = out(&host, &Spec::udp((APP, 5000), (REMOTE, 53)).payload(301));
    let (_, delivered) = host.by_uplink(&Spec::udp((CLIENT, 40_000), (HOST, 8080)));
    let inward = Spec::error(TIME_EXCEEDED, ROUTER, HOST, &left, 500).packet();
    let outward = Spec::error(UNREACHABLE, WEB, CLIENT, &delivered, 100).packet();
    for (error, hook, (station, ifindex), stray) in [
        (inward, Hook::OutsideIn, (UPLINK, UPLINK), Reason::ToHost),
        (
            outward,
            Hook::ContainerIn,
            (BRIDGE, WEB_VETH),
            Reason::IcmpStray,
        ),
    ] {
        let run = |packet: &[u8]| {
            let mut frame = [&mac(station)[..], &far_mac(ifindex), &[8, 0], packet].concat();
            let arrival = Arrival {
                ifindex,
                ..Arrival::default()
            };
            (host.run(hook, &mut frame, arrival).reason.unwrap(), frame)
        };
        assert_eq!(run(&error).0, Reason::IcmpError);
        // Type, code, the quote's first byte that is not looked at, the very last one.
        for at in [21, 24, 50, error.len() - 1] {
            let mut damaged = error.clone();
            damaged[at] ^= 0x10;
            let (reason, frame) = run(&damaged);
            assert_eq!(reason, stray, "byte {at}");
            assert_eq!(frame[14..], damaged);
        }
        // Cut short on its way.
        assert_eq!(run(&error[..error.len() - 1]).0, stray);
        // What stands behind it is not its.
        assert_eq!(run(&[&error[..], &[1, 2, 3]].concat()).0, Reason::IcmpError);
    }
}

#[test]
fn container_cannot_forge_anothers_error() {
    let host = Host::usual(64);
    let (_, delivered) = host.by_uplink(&Spec::udp((CLIENT, 40_000), (HOST, 8080)));
    let error = Spec::error(UNREACHABLE, WEB, CLIENT, &delivered, 100);
    assert_eq!(
        host.by_veth(APP_VETH, &error).0.reason,
        Some(Reason::IcmpStray)
    );
    let error = Spec::error(UNREACHABLE, APP, CLIENT, &delivered, 100);
    assert_eq!(
        host.by_veth(APP_VETH, &error).0.reason,
        Some(Reason::IcmpStray)
    );
}

/// An error is only for the sender of the packet that it quotes.
#[test]
fn error_goes_to_the_sender_of_its_quote() {
    let host = Host::usual(64);
    let left = out(&host, &Spec::udp((APP, 5000), (REMOTE, 53)));
    let (_, delivered) = host.by_uplink(&Spec::udp((CLIENT, 40_000), (HOST, 8080)));
    let error = |to| Spec::error(UNREACHABLE, WEB, to, &delivered, 100);
    let by_web = |to| host.by_veth(WEB_VETH, &error(to)).0.reason;
    assert_eq!(by_web(REMOTE), Some(Reason::IcmpStray));
    assert_eq!(by_web(CLIENT), Some(Reason::IcmpError));
    // The same from outside, to another address of the host's.
    let error = Spec::error(UNREACHABLE, ROUTER, GATEWAY, &left, 100);
    assert_ne!(host.by_uplink(&error).0.reason, Some(Reason::IcmpError));
}

/// Extensions behind the quote (RFC 4884) stay.
#[test]
fn icmp_extensions_are_kept() {
    // RFC 4884: the quote is padded to 128 bytes, extensions follow.
    let host = Host::usual(64);
    let left = out(&host, &Spec::udp((APP, 5000), (REMOTE, 53)));
    let mut error = Spec::error(TIME_EXCEEDED, ROUTER, HOST, &left, 128);
    error.payload.resize(128, 0);
    error
        .payload
        .extend([0x20, 0, 0xaa, 0xbb, 0, 8, 1, 1, 0, 1, 2, 3]);
    let (outcome, packet) = host.by_uplink(&error);
    assert_eq!(outcome.reason, Some(Reason::IcmpError));
    assert!(sums_up(&packet));
    assert_eq!(quoted(&packet)[left.len()..], error.payload[left.len()..]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// The quote in a translated error is the packet that the container sent.
    #[test]
    fn quote_restores_what_was_sent(
        kind in 0..3, sport in 1..=u16::MAX, dport in 1..=u16::MAX, length in 0..60_usize,
        cut in 28..128_usize, taken in any::<bool>(), options in any::<bool>(),
    ) {
        let host = Host::usual(64);
        let make = |src| match kind {
            0 => Spec::udp((src, sport), (REMOTE, dport)),
            1 => Spec::tcp((src, sport), (REMOTE, dport), ACK),
            _ => Spec::ping(src, REMOTE, sport),
        };
        if taken {
            // Somebody else has the port: this one is translated to another.
            host.by_veth(WEB_VETH, &make(WEB));
        }
        let spec = make(APP).payload(length);
        let spec = if options { spec.options() } else { spec };
        let (outcome, left) = host.by_veth(APP_VETH, &spec);
        let (hops, left) = if options {
            (64, host.to_outside(10, outcome, &left).1)
        } else {
            (63, left)
        };
        let cut = cut.max(if options { 36 } else { 28 });
        // Half a checksum cannot be restored; nf_nat does not try, either.
        prop_assume!(kind != 1 || cut != if options { 45 } else { 37 });
        let error = Spec::error(TIME_EXCEEDED, ROUTER, HOST, &left, cut);
        let (outcome, packet) = host.by_uplink(&error);
        prop_assert_eq!(outcome.reason, Some(Reason::IcmpError));
        prop_assert!(sums_up(&packet));
        let sent = spec.hops(hops).packet();
        let quote = quoted(&packet);
        prop_assert_eq!(quote, &sent[..quote.len()]);
    }
}
