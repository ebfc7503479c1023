// SPDX-License-Identifier: MIT OR Apache-2.0
//! Checksums: whatever is updated by difference equals what a full recomputation gives.

use forwarder_common::family::Be16;
use forwarder_common::reason::Reason;
use forwarder_common::wire::checksum::{add, delta, fold, fold_wide, update, update_udp};
use forwarder_testkit::model::Host;
use forwarder_testkit::model::frames::{ACK, SYN, Spec, ip, left_by};
use forwarder_testkit::model::host::{APP, APP_VETH, HOST, REMOTE, WEB, WEB_VETH};
use forwarder_testkit::packet::sums_up;
use proptest::prelude::*;

fn total(words: &[u16]) -> u32 {
    words.iter().map(|&word| u32::from(word)).sum()
}

/// The checksum field of these words.
fn field(words: &[u16]) -> Be16 {
    Be16::from_word(!fold(total(words)))
}

/// A container's own port: any one, and often one that is published, which no flow keeps.
fn own_port() -> impl Strategy<Value = u16> {
    prop_oneof![1 => Just(8080), 3 => 1..=u16::MAX]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn update_equals_recomputation(
        kept in prop::collection::vec(any::<u16>(), 1..20),
        old in prop::collection::vec(any::<u16>(), 0..6),
        new in prop::collection::vec(any::<u16>(), 0..6),
    ) {
        // A header is never all zeros.
        prop_assume!(total(&kept) != 0);
        let difference = delta(total(&old), total(&new));
        let before = field(&[&kept[..], &old].concat());
        let after = field(&[&kept[..], &new].concat());
        prop_assert_eq!(update(before, difference), after);
        let udp = |sum: Be16| if sum.word() == 0 { Be16::from_word(0xffff) } else { sum };
        prop_assert_eq!(update_udp(udp(before), difference), udp(after));
    }

    #[test]
    fn wide_and_narrow_words_have_equal_sums(words in prop::collection::vec(any::<u32>(), 0..60)) {
        let wide = words.iter().map(|&word| u64::from(word)).sum();
        let narrow = words.iter().map(|&word| (word & 0xffff) + (word >> 16)).sum();
        prop_assert_eq!(fold_wide(wide), fold(narrow));
    }

    #[test]
    fn deltas_add_and_subtract(sum in 0..600_000_u32, other in 0..600_000_u32, word in any::<u16>()) {
        prop_assert_eq!(delta(sum, sum), 0);
        prop_assert!(delta(sum, other) != 0xffff);
        let word = Be16::from_word(word);
        let there = update(word, delta(sum, other));
        let back = update(there, delta(other, sum));
        // Zero has two names, and a sum that comes back from a change has the second.
        prop_assert_eq!(back.word() % 0xffff, word.word() % 0xffff);
        let both = add(delta(sum, other), delta(other, sum));
        prop_assert!(both == 0 || both == 0xffff);
    }

    #[test]
    fn update_keeps_a_missing_udp_checksum(difference in any::<u16>()) {
        prop_assert_eq!(update_udp(Be16::new(0), difference), Be16::new(0));
    }

    /// No update makes a UDP checksum zero, which would mean that there is none.
    #[test]
    fn update_never_drops_a_udp_checksum(word in 1..=u16::MAX, difference in any::<u16>()) {
        prop_assert!(update_udp(Be16::from_word(word), difference).word() != 0);
    }

    #[test]
    fn translated_packets_have_valid_checksums(
        proto in 0..3, sport in own_port(), remote in any::<u32>(), length in 0..70_usize,
        hops in 1..=255_u8, options in any::<bool>(), dport in 1..=u16::MAX,
    ) {
        let host = Host::usual(64);
        let remote = ip(198, 19, (remote >> 8) as u8, remote as u8);
        let out = match proto {
            0 => Spec::tcp((APP, sport), (remote, dport), SYN),
            1 => Spec::udp((APP, sport), (remote, dport)),
            _ => Spec::ping(APP, remote, sport),
        };
        let out = if options { out.options() } else { out };
        let (went, packet) = host.by_veth(APP_VETH, &out.payload(length).hops(hops));
        prop_assert!(sums_up(&packet));
        // Handed on, it is completed on the way out.
        let packet = if went.reason == Some(Reason::Forwarded) { packet } else {
            let (out, packet) = host.to_outside(10, went, &packet);
            prop_assert_eq!(out.reason, Some(Reason::Completed));
            packet
        };
        prop_assert!(sums_up(&packet));
        prop_assert_eq!(&packet[12..16], &HOST.octets());

        let port = left_by(&packet);
        let back = match proto {
            0 => Spec::tcp((remote, dport), (HOST, port), SYN | ACK),
            1 => Spec::udp((remote, dport), (HOST, port)),
            _ => Spec::pong(remote, HOST, port),
        };
        let (came, packet) = host.by_uplink(&back.payload(length));
        prop_assert_eq!(came.reason, Some(Reason::Forwarded));
        prop_assert!(sums_up(&packet));
        prop_assert_eq!(&packet[16..20], &APP.octets());
    }

    #[test]
    fn hairpin_checksums_are_valid_both_ways(sport in own_port(), length in 0..70_usize, udp in any::<bool>()) {
        let host = Host::usual(64);
        let make = |src, dst, flags| if udp { Spec::udp(src, dst) } else { Spec::tcp(src, dst, flags) };
        let out = make((APP, sport), (HOST, 8080), SYN).payload(length);
        let (went, packet) = host.by_veth(APP_VETH, &out);
        prop_assert_eq!(went.reason, Some(Reason::Forwarded));
        prop_assert!(sums_up(&packet));
        prop_assert_eq!(&packet[12..20], &[172, 17, 0, 1, 172, 17, 0, 2]);
        let back = make((WEB, 80), (ip(172, 17, 0, 1), left_by(&packet)), SYN | ACK).payload(length);
        let (came, packet) = host.by_veth(WEB_VETH, &back);
        prop_assert_eq!(came.reason, Some(Reason::Forwarded));
        prop_assert!(sums_up(&packet));
        prop_assert_eq!(&packet[12..20], &[198, 18, 1, 1, 172, 17, 0, 3]);
    }

    /// A UDP packet without a checksum is translated and stays without one.
    #[test]
    fn udp_packet_without_checksum_gets_none(sport in 1..=u16::MAX) {
        let host = Host::usual(64);
        let bare = Spec { unsummed: true, ..Spec::udp((APP, sport), (REMOTE, 53)) };
        let (went, packet) = host.by_veth(APP_VETH, &bare);
        prop_assert_eq!(went.reason, Some(Reason::Forwarded));
        prop_assert_eq!(&packet[26..28], &[0, 0]);
        prop_assert!(sums_up(&packet));
    }
}
