// SPDX-License-Identifier: MIT OR Apache-2.0
//! SCTP: its checksum follows its ports without the packet, and what an association lives through.

use forwarder_common::abi::Tuple;
use forwarder_common::clock::{Ticks, seconds};
use forwarder_common::conntrack::sctp::chunk::*;
use forwarder_common::conntrack::timeouts;
use forwarder_common::family::{Be16, Be32};
use forwarder_common::mark;
use forwarder_common::reason::Reason;
use forwarder_common::wire::crc::shift;
use forwarder_testkit::checksum::crc32c;
use forwarder_testkit::model::frames::{Spec, TIME_EXCEEDED, cut, ip, left_by};
use forwarder_testkit::model::host::{
    APP, APP_VETH, BRIDGE, CLIENT, HOST, REMOTE, UPLINK, WEB, WEB_VETH,
};
use forwarder_testkit::model::{self, Arrival, Hook, Host, Target};
use forwarder_testkit::packet::sums_up;
use proptest::prelude::*;

const SCTP: u16 = 132;
const PORT: u16 = 36_412;
const LENGTH: usize = 28;

fn host() -> Host {
    Host::usual(64)
}

fn request(chunk: u8) -> Spec {
    Spec::sctp((CLIENT, 40_000), (HOST, 8080), chunk)
}

fn response(chunk: u8) -> Spec {
    Spec::sctp((WEB, 80), (CLIENT, 40_000), chunk)
}

fn query(chunk: u8) -> Spec {
    Spec::sctp((APP, 5000), (REMOTE, PORT), chunk)
}

fn answer(chunk: u8) -> Spec {
    Spec::sctp((REMOTE, PORT), (HOST, 5000), chunk)
}

/// As it has to arrive: from and to these ends, one hop fewer.
fn seen(spec: &Spec, src: (Be32, u16), dst: (Be32, u16)) -> Vec<u8> {
    let tuple = Tuple {
        src: src.0,
        dst: dst.0,
        sport: Be16::new(src.1),
        dport: Be16::new(dst.1),
        proto: u32::from(SCTP),
    };
    Spec {
        tuple,
        hops: spec.hops - 1,
        ..spec.clone()
    }
    .packet()
}

#[test]
fn reference_crc_matches_rfc_3720_vectors() {
    let of = |bytes: &[u8]| crc32c(bytes.iter().copied());
    assert_eq!(of(b"123456789"), 0xe306_9283);
    assert_eq!(of(&[0; 32]), 0x8a91_36aa);
    assert_eq!(of(&[0xff; 32]), 0x62a8_ab43);
    assert_eq!(crc32c(0..32), 0x46dd_794e);
    assert_eq!(crc32c((0..32).rev()), 0x113f_db5c);
}

proptest! {
    /// The CRC follows a change of four bytes wherever they are.
    #[test]
    fn crc_update_works_at_every_offset(
        before in proptest::collection::vec(any::<u8>(), 0..40),
        old in any::<[u8; 4]>(),
        new in any::<[u8; 4]>(),
        length in 0_usize..65_532,
        seed in any::<u8>(),
    ) {
        let behind = (0..length).map(|n| (n * 31) as u8 ^ seed);
        let crc = |word: [u8; 4]| crc32c(before.iter().copied().chain(word).chain(behind.clone()));
        let change = u32::from_le_bytes(old) ^ u32::from_le_bytes(new);
        prop_assert_eq!(crc(new), crc(old) ^ shift(change, length as u16 + 4));
    }

    /// A packet has the right checksum whatever its length is.
    #[test]
    fn checksum_is_right_at_every_length(length in 0_usize..1400, port: u16) {
        let host = host();
        let spec = Spec { tuple: Tuple { sport: Be16::new(port), ..request(INIT).tuple }, ..request(INIT) };
        let (outcome, packet) = host.by_uplink(&spec.payload(length));
        prop_assert_eq!(outcome.reason, Some(Reason::Forwarded));
        prop_assert!(sums_up(&packet) && packet[LENGTH..LENGTH + 4] != [0; 4]);
    }
}

/// Ports and checksum are translated in every direction.
#[test]
fn ports_and_checksum_change_in_all_directions() {
    let host = host();
    let (outcome, packet) = host.by_uplink(&request(INIT));
    assert_eq!(outcome.target, Some(Target::Peer(WEB_VETH)));
    assert_eq!(packet, seen(&request(INIT), (CLIENT, 40_000), (WEB, 80)));
    let (outcome, packet) = host.by_veth(WEB_VETH, &response(INIT_ACK));
    assert_eq!(outcome.target, Some(Target::Neighbour(UPLINK, CLIENT)));
    assert_eq!(
        packet,
        seen(&response(INIT_ACK), (HOST, 8080), (CLIENT, 40_000))
    );

    // Outwards the port stays, and so does the checksum.
    let (_, packet) = host.by_veth(APP_VETH, &query(INIT));
    assert_eq!(packet, seen(&query(INIT), (HOST, 5000), (REMOTE, PORT)));
    let (outcome, packet) = host.by_uplink(&answer(INIT_ACK));
    assert_eq!(outcome.target, Some(Target::Peer(APP_VETH)));
    assert_eq!(packet, seen(&answer(INIT_ACK), (REMOTE, PORT), (APP, 5000)));

    // Of a second container it does not.
    let second = Spec::sctp((WEB, 5000), (REMOTE, PORT), INIT);
    let (outcome, packet) = host.by_veth(WEB_VETH, &second);
    assert_eq!(outcome.reason, Some(Reason::Forwarded));
    let port = left_by(&packet);
    assert!(port >= 1024 && port != 5000);
    assert_eq!(packet, seen(&second, (HOST, port), (REMOTE, PORT)));
    let back = Spec::sctp((REMOTE, PORT), (HOST, port), INIT_ACK);
    let (_, packet) = host.by_uplink(&back);
    assert_eq!(packet, seen(&back, (REMOTE, PORT), (WEB, 5000)));

    // To a neighbour's published port.
    let hairpin = Spec::sctp((APP, 6000), (HOST, 8080), INIT);
    let (outcome, packet) = host.by_veth(APP_VETH, &hairpin);
    assert_eq!(outcome.target, Some(Target::Peer(WEB_VETH)));
    assert_eq!(
        packet,
        seen(&hairpin, (model::host::GATEWAY, 6000), (WEB, 80))
    );
}

/// A checksum that the device has yet to make stays so.
#[test]
fn offloaded_checksum_stays_offloaded() {
    let host = host();
    let spec = Spec {
        unsummed: true,
        ..request(INIT)
    };
    let (outcome, packet) = host.by_uplink(&spec);
    assert_eq!(outcome.reason, Some(Reason::Forwarded));
    assert_eq!(packet, seen(&spec, (CLIENT, 40_000), (WEB, 80)));
    assert_eq!(packet[LENGTH..LENGTH + 4], [0; 4]);
}

/// The checksum does not cover padding behind the packet.
#[test]
fn checksum_ignores_padding_behind_the_packet() {
    let host = host();
    let mut padded = request(INIT).packet();
    padded.extend([0x55; 30]);
    let arrival = Arrival {
        ifindex: UPLINK,
        ..Arrival::default()
    };
    let (_, packet) = host.raw(Hook::OutsideIn, &padded, arrival);
    assert_eq!(
        packet[..packet.len() - 30],
        seen(&request(INIT), (CLIENT, 40_000), (WEB, 80))
    );
}

/// A packet that the kernel path finishes has the right checksum at both ends.
#[test]
fn kernel_path_checksum_is_right_at_both_ends() {
    let host = host();
    host.by_uplink(&request(INIT));
    let spec = response(INIT_ACK).hops(1);
    let (outcome, packet) = host.by_veth(WEB_VETH, &spec);
    assert_eq!(outcome.reason, Some(Reason::HopLimit));
    let (done, packet) = host.to_outside(BRIDGE, outcome, &packet);
    assert_eq!(done.reason, Some(Reason::Completed));
    assert_eq!(
        packet,
        Spec {
            hops: 1,
            ..Spec::sctp((HOST, 8080), (CLIENT, 40_000), INIT_ACK)
        }
        .packet()
    );
    let arrival = Arrival {
        ifindex: WEB_VETH,
        segment: 0xffff,
        ..Arrival::default()
    };
    let mut frame = response(DATA)
        .between(model::host::mac(BRIDGE), model::host::far_mac(WEB_VETH))
        .build();
    let outcome = host.run(Hook::ContainerIn, &mut frame, arrival);
    assert_eq!(outcome.reason, Some(Reason::TooBig), "the kernel cuts it");
}

/// An error quotes what was sent, as far as the quote goes.
#[test]
fn error_quote_is_what_was_sent() {
    let host = host();
    let router = ip(198, 19, 200, 1);
    host.by_veth(APP_VETH, &query(INIT));
    let spec = Spec::sctp((WEB, 5000), (REMOTE, PORT), INIT);
    let (_, left) = host.by_veth(WEB_VETH, &spec);
    let sent = spec.clone().hops(63).packet();
    assert_ne!(left[20..22], sent[20..22]);
    for length in [28, 32, 36, 100] {
        let error = Spec::error(TIME_EXCEEDED, router, HOST, &left, length);
        let (outcome, packet) = host.by_uplink(&error);
        assert_eq!(outcome.reason, Some(Reason::IcmpError));
        assert_eq!(outcome.target, Some(Target::Peer(WEB_VETH)));
        assert!(sums_up(&packet), "{length} bytes");
        let quote = &packet[28..];
        assert_eq!(quote, &sent[..quote.len()], "{length} bytes");
    }
    // The host's own, about what it was handed.
    let asked = request(INIT).hops(1);
    let (_, handed) = host.by_uplink(&asked);
    let error = Spec::error(TIME_EXCEEDED, HOST, CLIENT, &handed, 548).packet();
    let (outcome, error) = host.to_outside(0, 0, &error);
    assert_eq!(outcome.reason, Some(Reason::HostError));
    assert!(sums_up(&error));
    assert_eq!(error[28..], asked.packet());
}

/// How long a flow still lives.
fn left(host: &Host, spec: &Spec) -> Ticks {
    let (flow, _) = host.flow_of(&spec.tuple).unwrap();
    flow.expires.get().wrapping_sub(host.clock.get())
}

#[test]
fn association_states_match_nf_conntrack() {
    let mut host = host();
    let assured = |host: &Host| host.flow_of(&request(INIT).tuple).unwrap().1.is_assured();
    host.by_uplink(&request(INIT));
    assert_eq!(left(&host, &request(INIT)), timeouts::SCTP_CLOSED);
    host.wait(100);
    host.by_uplink(&request(INIT));
    let again = left(&host, &request(INIT));
    assert_eq!(
        again,
        timeouts::SCTP_CLOSED - 100,
        "sent again, it buys no time"
    );
    let steps = [
        (false, INIT_ACK, 3),
        (true, COOKIE_ECHO, 3),
        (false, COOKIE_ACK, 210),
        (true, DATA, 210),
        // Who knows whether that is the client's.
        (true, ABORT, 210),
        (true, SHUTDOWN, 210),
        (false, SHUTDOWN_ACK, 3),
        (true, SHUTDOWN_COMPLETE, 10),
        (true, INIT, 10),
        (false, COOKIE_ACK, 210),
        (false, ABORT, 10),
    ];
    for (nth, (asks, chunk, lives)) in steps.into_iter().enumerate() {
        host.wait(seconds(1));
        let (outcome, _) = if asks {
            host.by_uplink(&request(chunk))
        } else {
            host.by_veth(WEB_VETH, &response(chunk))
        };
        assert_eq!(outcome.reason, Some(Reason::Forwarded), "step {nth}");
        assert_eq!(left(&host, &request(INIT)), seconds(lives), "step {nth}");
        assert_eq!(assured(&host), nth > 1, "step {nth}");
    }
    host.wait(timeouts::SCTP_CLOSED);
    let (outcome, _) = host.by_veth(WEB_VETH, &response(DATA));
    assert_eq!(outcome.reason, Some(Reason::NoFlow));
}

#[test]
fn heartbeat_opens_a_second_path() {
    let host = host();
    host.by_veth(APP_VETH, &query(HEARTBEAT));
    assert_eq!(left(&host, &query(INIT)), seconds(30));
    host.by_uplink(&answer(HEARTBEAT_ACK));
    assert_eq!(left(&host, &query(INIT)), seconds(210));
}

/// A chunk that opens no flow in nf_conntrack opens none here.
#[test]
fn chunks_open_flows_as_in_nf_conntrack() {
    const SACK: u8 = 3;
    for chunk in [DATA, SACK, ABORT, COOKIE_ACK, SHUTDOWN_COMPLETE, 15, 192] {
        let host = host();
        let (outcome, _) = host.by_veth(APP_VETH, &query(chunk));
        assert_eq!(outcome.reason, Some(Reason::NoFlow), "chunk {chunk}");
        let (outcome, _) = host.by_uplink(&request(chunk));
        assert_eq!(outcome.reason, Some(Reason::NoFlow), "chunk {chunk}");
    }
    for chunk in [INIT, HEARTBEAT, COOKIE_ECHO, SHUTDOWN_ACK] {
        let (outcome, _) = host().by_veth(APP_VETH, &query(chunk));
        assert_eq!(outcome.reason, Some(Reason::Forwarded), "chunk {chunk}");
    }
}

/// Fragments pass where their ports stay as they are, and nowhere else.
#[test]
fn fragments_pass_only_with_unchanged_ports() {
    let mut host = host();
    host.settings.defrag_loopback = 90;
    let back = |host: &Host, is_fragment: &[u8]| {
        let arrival = Arrival {
            ifindex: UPLINK,
            mark: mark::DEFRAGMENTED,
            ..Arrival::default()
        };
        host.raw(Hook::OutsideIn, is_fragment, arrival)
    };
    host.by_veth(APP_VETH, &query(INIT));
    let whole = answer(DATA).fragment(0).payload(100).packet();
    for is_fragment in cut(&whole, 48, 7) {
        let (outcome, packet) = back(&host, &is_fragment);
        assert_eq!(outcome.reason, Some(Reason::Forwarded));
        assert_eq!(packet[20..], is_fragment[20..]);
    }
    host.by_uplink(&request(INIT));
    let whole = request(DATA).fragment(0).payload(100).packet();
    for is_fragment in cut(&whole, 48, 8) {
        let (outcome, packet) = back(&host, &is_fragment);
        assert_eq!(outcome.reason, Some(Reason::Fragment));
        assert_eq!(packet, is_fragment);
    }
    // What the kernel has cut on its way out.
    let spec = response(DATA).payload(1600);
    let (outcome, packet) = host.by_veth(WEB_VETH, &spec);
    assert_eq!(outcome.reason, Some(Reason::TooBig));
    for is_fragment in cut(&packet, 1200, 9) {
        let (outcome, after) = host.to_outside(BRIDGE, outcome, &is_fragment);
        assert_eq!(outcome.reason, Some(Reason::Fragment));
        assert_eq!(after, is_fragment);
    }
}
