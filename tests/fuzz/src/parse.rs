// SPDX-License-Identifier: MIT OR Apache-2.0
//! Any bytes as a frame: what is read of them lies in them, and an edit that changes nothing leaves
//! them as they are.

use forwarder_common::family::V4;
use forwarder_common::wire::frame::Frame;
use forwarder_common::wire::parse::{Class, Packet, parse};
use forwarder_common::wire::rewrite::{self, Edit};
use forwarder_common::wire::{crc, proto};

const ETHERNET: usize = 14;

/// Runs the target.
///
/// # Panics
/// When a promise does not hold.
pub fn run(input: &[u8]) {
    let mut bytes = input.to_vec();
    let mut packet = Packet::<V4>::default();
    if parse(&Frame::new(&mut bytes), ETHERNET, &mut packet).is_err() {
        return;
    }
    assert_eq!(bytes, input, "reading wrote");
    let (l3, l4) = (usize::from(packet.l3), usize::from(packet.l4));
    assert!(l3 == ETHERNET && l4 >= l3 + 20 && l4 <= l3 + 60);
    // What is yet to be cut may be longer than the field can say, which is zero then.
    let uncut = packet.len == 0 && packet.class == Class::Flow && packet.tuple.proto == proto::TCP;
    assert!(uncut || usize::from(packet.len) >= l4 - l3);
    assert!(!packet.later_fragment || packet.class == Class::Fragment);
    if packet.class != Class::Flow {
        return;
    }
    assert!(bytes.len() >= l4 + 8, "ports that are not there");
    let edit = Edit::of(&packet);
    let mut frame = Frame::new(&mut bytes);
    let whole =
        rewrite::headers(&mut frame, &edit, crc::shift) && rewrite::checksum(&mut frame, &edit);
    assert!(whole, "half a packet written");
    assert_same(input, &bytes, &packet);
}

/// Both but for the two spellings of zero in one's complement.
fn assert_same(before: &[u8], after: &[u8], packet: &Packet<V4>) {
    let sums = [
        usize::from(packet.l3) + 10,
        Edit::of(packet)
            .checksum_at()
            .unwrap_or(usize::from(packet.l4) + 2),
    ];
    let zero = |pair: &[u8]| matches!(pair, [0, 0] | [0xff, 0xff]);
    let mut cleared = [before.to_vec(), after.to_vec()];
    for at in sums {
        if zero(&before[at..at + 2]) && zero(&after[at..at + 2]) {
            cleared
                .iter_mut()
                .for_each(|bytes| bytes[at..at + 2].fill(0));
        }
    }
    assert_eq!(
        cleared[0], cleared[1],
        "an edit of nothing changed something"
    );
}
