// SPDX-License-Identifier: MIT OR Apache-2.0
//! What may befall any packet: octets wrong or missing, options, fragments, hops, sizes, marks.

use forwarder_common::parse::proto;
use forwarder_common::pipeline::mark;

use super::model::Dice;
use super::model::frames::{seal, seal_header};
use super::model::host::{BRIDGE, UPLINK, WEB_VETH};
use super::traffic::Case;

/// What may befall any packet.
pub(super) fn damage(dice: &mut Dice, mut case: Case) -> Case {
    let frame = &mut case.frame;
    let what = dice.below(24);
    match what {
        0 | 1 => {
            let at = 14 + dice.below(frame.len() - 14);
            frame[at] = dice.roll() as u8;
        }
        2 => {
            let at = dice.below(frame.len());
            frame[at] ^= 1 << dice.below(8);
        }
        3 => frame.truncate(34 + dice.below(frame.len().saturating_sub(33))),
        4 if frame[14] == 0x45 && frame.len() < 200 => {
            let rest = frame.split_off(34);
            frame.extend([7, 7, 4, 0, 0, 0, 0, 0]);
            frame.extend(rest);
            frame[14] = 0x47;
            lengthen(frame, 8);
        }
        5 => frame[20..22].copy_from_slice(
            &dice
                .pick(&[0x2000_u16, 0x2001, 0x00b9, 0x4000])
                .to_be_bytes(),
        ),
        6 | 7 => frame[22] = dice.pick(&[0, 1, 2, 255]),
        8 | 9 if frame.len() < 400 => {
            let more = dice.pick(&[1, 90, 600, 1100, 1300, 1472, 1600]);
            frame.extend((0..more).map(|octet| octet as u8));
            lengthen(frame, more);
        }
        10 => case.arrival.segment = dice.pick(&[1, 100, 1200, 1460, 1480]) as u32,
        11 => case.arrival.mark = dice.pick(&[mark::HOST, mark::DONE, mark::FLOW | 1, 0x1234]),
        12 => case.arrival.came_by = dice.pick(&[0, UPLINK, BRIDGE, WEB_VETH, 77]),
        13 if frame[23] == 17 && frame.len() > 42 => frame[40..42].fill(0),
        14 if frame.len() > 42 => frame[40..42].fill(0xff),
        _ => {}
    }
    // What is damaged by accident says so by its checksum, what was sent like that does not.
    if matches!(what, 1 | 4..=9) {
        seal_header(&mut case.frame[14..]);
    }
    case
}

/// Tells the headers of a longer packet, as far as they are whole.
fn lengthen(frame: &mut [u8], more: usize) {
    let packet = &mut frame[14..];
    let len = u16::from_be_bytes([packet[2], packet[3]]).wrapping_add(more as u16);
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    let l4 = usize::from(packet[0] & 15) * 4;
    if u32::from(packet[9]) == proto::UDP && packet.len() > l4 + 8 && l4 >= 20 {
        let len = (packet.len() - l4) as u16;
        packet[l4 + 4..l4 + 6].copy_from_slice(&len.to_be_bytes());
    }
    if l4 >= 20 && packet.len() >= l4 + 20 {
        seal(packet);
    }
}
