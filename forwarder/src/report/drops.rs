// SPDX-License-Identifier: MIT OR Apache-2.0
//! Dropped packets: what their headers say.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use etherparse::{IpNumber, LaxNetSlice, LaxSlicedPacket};
use forwarder_common::clock::Ticks;
use forwarder_common::dropped::{DroppedPacket, TAGGED};
use forwarder_common::reason::Reason;
use serde::{Deserialize, Serialize};

use super::events::{millis, since};
use super::proto_name;
use crate::datapath::name_of;

/// The bits of a VLAN tag's control information that hold the VLAN's id (IEEE 802.1Q).
const VLAN_ID: u16 = 0xfff;

/// A dropped packet. What its headers do not say, or what is not shown of them, is missing.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DropRow {
    /// Always `drop`.
    pub event: String,
    /// Seconds since 1970, in steps of 17 ms.
    pub time: f64,
    /// Why it was dropped.
    pub reason: String,
    /// The device at which it was dropped: its name, or its index if it has gone.
    pub device: String,
    /// The id of its VLAN, if it has a tag; 0 is a tag with a priority alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// Its protocol: a name, the number of an IP protocol, or `0x` and an EtherType.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proto: Option<String>,
    /// Source address; of an ARP message, the sender's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src: Option<IpAddr>,
    /// Source port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    /// Destination address; of an ARP message, the one that is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst: Option<IpAddr>,
    /// Destination port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
    /// Its length in bytes, link header included; of segments that the kernel has put together, that
    /// of all.
    pub bytes: u32,
}

/// Returns a packet's row. `now` is the present as a tick, and `wall` the present since 1970.
#[must_use]
pub fn dropped(packet: &DroppedPacket, now: Ticks, wall: Duration) -> DropRow {
    let reason = Reason::from_u8(packet.reason as u8).map_or("unknown", Reason::label);
    let row = DropRow {
        event: "drop".to_owned(),
        time: millis(wall.saturating_sub(since(packet.at, now))),
        reason: reason.to_owned(),
        device: name_of(packet.ifindex).unwrap_or_else(|| packet.ifindex.to_string()),
        vlan: (packet.vlan & TAGGED != 0).then_some(packet.vlan as u16 & VLAN_ID),
        proto: None,
        src: None,
        sport: None,
        dst: None,
        dport: None,
        bytes: packet.len,
    };
    let shown = packet.bytes.get(..packet.shown as usize);
    with_headers(row, shown.unwrap_or_default(), packet.l3 != 0)
}

fn with_headers(mut row: DropRow, frame: &[u8], has_ethernet: bool) -> DropRow {
    let parsed = if has_ethernet {
        LaxSlicedPacket::from_ethernet(frame).ok()
    } else {
        LaxSlicedPacket::from_ip(frame).ok()
    };
    match parsed.as_ref().and_then(|packet| packet.net.as_ref()) {
        Some(LaxNetSlice::Ipv4(ip)) => {
            let header = ip.header();
            row.src = Some(header.source_addr().into());
            row.dst = Some(header.destination_addr().into());
            let is_whole = header.fragments_offset().value() == 0;
            with_ports(
                &mut row,
                ip.payload().ip_number,
                ip.payload().payload,
                is_whole,
            );
        }
        Some(LaxNetSlice::Ipv6(ip)) => {
            row.src = Some(ip.header().source_addr().into());
            row.dst = Some(ip.header().destination_addr().into());
            let payload = ip.payload();
            with_ports(
                &mut row,
                payload.ip_number,
                payload.payload,
                !payload.fragmented,
            );
        }
        Some(LaxNetSlice::Arp(arp)) => {
            let address = |frame: &[u8]| {
                let frame: Option<[u8; 4]> = frame.try_into().ok();
                frame.map(|frame| Ipv4Addr::from(frame).into())
            };
            row.proto = Some("arp".to_owned());
            row.src = address(arp.sender_protocol_addr());
            row.dst = address(arp.target_protocol_addr());
        }
        None if has_ethernet => {
            let kind = frame.get(12..14).and_then(|kind| kind.try_into().ok());
            row.proto = kind.map(|kind| format!("{:#06x}", u16::from_be_bytes(kind)));
        }
        None => {}
    }
    row
}

/// Adds the protocol, and the ports if the packet begins with its transport header.
fn with_ports(row: &mut DropRow, number: IpNumber, transport: &[u8], is_whole: bool) {
    row.proto = Some(match number {
        IpNumber::IPV6_ICMP => "icmpv6".to_owned(),
        IpNumber(number) => proto_name(number.into()),
    });
    let has_ports = matches!(number, IpNumber::TCP | IpNumber::UDP | IpNumber::SCTP);
    if let (true, true, [a, b, c, d, ..]) = (has_ports, is_whole, transport) {
        row.sport = Some(u16::from_be_bytes([*a, *b]));
        row.dport = Some(u16::from_be_bytes([*c, *d]));
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use forwarder_common::dropped::SHOWN;

    use super::*;

    /// What is shown of a packet of which the first bytes are there.
    fn row(frame: &[u8], l3: u32) -> DropRow {
        let mut packet = DroppedPacket {
            at: 0,
            ifindex: u32::MAX,
            reason: Reason::Policy as u32,
            len: 1500,
            l3,
            vlan: TAGGED | 0xe005,
            shown: frame.len() as u32,
            bytes: [0xee; SHOWN],
        };
        packet.bytes[..frame.len()].copy_from_slice(frame);
        dropped(&packet, 0, Duration::from_secs(1))
    }

    fn ends(row: &DropRow) -> String {
        let DropRow {
            proto,
            src,
            sport,
            dst,
            dport,
            ..
        } = row;
        format!("{proto:?} {src:?} {sport:?} {dst:?} {dport:?}")
    }

    fn segment(ethernet: bool) -> Vec<u8> {
        let mut frame = Vec::new();
        if ethernet {
            frame.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
        }
        let builder = PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        builder
            .tcp(1000, 80, 1, 1)
            .write(&mut frame, &[0; 40])
            .unwrap();
        frame
    }

    /// Addresses and ports are read from the first bytes, with and without Ethernet; the length of
    /// the packet is not the number of bytes that are shown.
    #[test]
    fn headers_are_read_from_the_first_bytes() {
        let wanted = r#"Some("tcp") Some(10.0.0.1) Some(1000) Some(10.0.0.2) Some(80)"#;
        for (ethernet, l3) in [(true, 14), (false, 0)] {
            let frame = segment(ethernet);
            for shown in [SHOWN.min(frame.len()), l3 + 24] {
                let row = row(&frame[..shown], l3 as u32);
                assert_eq!(ends(&row), wanted, "{shown}");
                assert_eq!((row.reason.as_str(), row.bytes), ("policy", 1500));
                assert_eq!((row.device, row.vlan), (u32::MAX.to_string(), Some(5)));
            }
        }
    }

    /// A later fragment has no ports, whatever its first bytes are.
    #[test]
    fn later_fragment_has_no_ports() {
        let mut frame = segment(true);
        frame[14 + 7] = 2;
        let wanted = r#"Some("tcp") Some(10.0.0.1) None Some(10.0.0.2) None"#;
        assert_eq!(ends(&row(&frame[..74], 14)), wanted);
    }

    #[test]
    fn other_frames_show_what_they_have() {
        let ethernet = |kind: u16, rest: &[u8]| {
            let [high, low] = kind.to_be_bytes();
            let head = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, high, low];
            [&head[..], rest].concat()
        };
        let arp = [
            0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2,
        ];
        let said = ends(&row(&ethernet(0x0806, &arp), 14));
        assert_eq!(
            said,
            r#"Some("arp") Some(10.0.0.1) None Some(10.0.0.2) None"#
        );
        let said = ends(&row(&ethernet(0x88cc, &[0; 28]), 14));
        assert_eq!(said, r#"Some("0x88cc") None None None None"#);
        let mut echo = Vec::new();
        PacketBuilder::ipv6([0xfd; 16], [0xfe; 16], 64)
            .icmpv6_echo_request(1, 1)
            .write(&mut echo, &[])
            .unwrap();
        let said = ends(&row(&ethernet(0x86dd, &echo), 14));
        assert!(said.starts_with(r#"Some("icmpv6") Some(fdfd:"#), "{said}");
        assert_eq!(ends(&row(&[], 14)), "None None None None None");
    }
}
