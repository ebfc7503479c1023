// SPDX-License-Identifier: MIT OR Apache-2.0
//! What came to the testers, field by field, with drawn ports called drawn: two arms that agree show
//! the same.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use forwarder_testkit::checksum::sum;
use forwarder_testkit::packet::proto::{ICMP, SCTP, TCP, UDP};
use forwarder_testkit::packet::{Packet, is_transport_right};

use crate::arm::Arrival;
use crate::place::{At, End};

/// Fields by their names, in the order of the packet.
pub(crate) type Fields = Vec<(String, String)>;

/// A packet that came, with the pieces that it came in.
pub(crate) struct Came {
    /// Where.
    pub(crate) at: At,
    /// Who sent the frame.
    pub(crate) mac: [u8; 6],
    /// The packet, pieced together if all is there.
    pub(crate) packet: Vec<u8>,
    /// Where each piece begins and how long its transport is; one for a packet in one.
    pub(crate) pieces: Vec<(usize, usize)>,
}

/// Pieces fragments together, and takes everything else as it came.
pub(crate) fn gather(arrivals: Vec<Arrival>) -> Result<Vec<Came>> {
    let mut all: Vec<Came> = Vec::new();
    let mut parts: Vec<(usize, Vec<Packet>)> = Vec::new();
    for Arrival { at, bytes } in arrivals {
        let mac = bytes[6..12].try_into()?;
        let packet = Packet::read(&bytes[14..]).context("no IPv4 packet")?;
        let piece = (packet.offset(), packet.transport().len());
        let same = |(place, parts): &&mut (usize, Vec<Packet>)| {
            let (head, came): (&[u8], &Came) = (parts[0].bytes(), &all[*place]);
            let ours = packet.bytes();
            packet.is_fragment()
                && came.at == at
                && (&head[4..6], &head[9], &head[12..20]) == (&ours[4..6], &ours[9], &ours[12..20])
        };
        if let Some((place, parts)) = parts.iter_mut().find(same) {
            parts.push(packet);
            let came = &mut all[*place];
            came.pieces.push(piece);
            if let Some(whole) = parts[0].whole(parts) {
                came.packet = whole.bytes().to_vec();
            }
            continue;
        }
        if packet.is_fragment() {
            parts.push((all.len(), vec![packet.clone()]));
        }
        all.push(Came {
            at,
            mac,
            packet: packet.bytes().to_vec(),
            pieces: vec![piece],
        });
    }
    Ok(all)
}

/// A reader of packets, by the ports that are drawn.
pub(crate) struct Reader<'a> {
    /// What servers see as their clients, where the port, or the identifier of echo, is not the
    /// originator's own.
    pub(crate) drawn: &'a [End],
}

impl Reader<'_> {
    /// The identifier of an echo between these two.
    fn identifier(&self, ends: (Ipv4Addr, Ipv4Addr), bytes: &[u8]) -> String {
        let port = u16::from_be_bytes([bytes[0], bytes[1]]);
        let drawn = [ends.0, ends.1].map(|end| self.drawn.contains(&(end, port)));
        match drawn.contains(&true) {
            // Of no class.
            true => "drawn".to_owned(),
            false => port.to_string(),
        }
    }

    /// The port of the end that has this address.
    fn port(&self, end: Ipv4Addr, bytes: &[u8]) -> String {
        let port = u16::from_be_bytes([bytes[0], bytes[1]]);
        if !self.drawn.contains(&(end, port)) {
            return port.to_string();
        }
        let class = match port {
            0..512 => "below 512",
            512..1024 => "below 1024",
            _ => "from 1024 on",
        };
        format!("drawn {class}")
    }

    /// All fields of a packet that came; `named` unless its identification is the host's own.
    pub(crate) fn fields(&self, came: &Came, named: bool) -> Fields {
        let packet = &came.packet;
        let mut fields = Fields::new();
        let mut put = |name: &str, value: String| fields.push((name.to_owned(), value));
        put("mac", hex(&came.mac));
        put("pieces", format!("{:?}", came.pieces));
        let header = usize::from(packet[0] & 0xf) * 4;
        put("tos", packet[1].to_string());
        put(
            "length",
            u16::from_be_bytes([packet[2], packet[3]]).to_string(),
        );
        if named {
            put("id", hex(&packet[4..6]));
        }
        put("flags", (packet[6] >> 5).to_string());
        put("ttl", packet[8].to_string());
        put("proto", packet[9].to_string());
        put(
            "header checksum",
            right(sum(&[&packet[..header]]) == 0xffff),
        );
        put("src", address(&packet[12..16]).to_string());
        put("dst", address(&packet[16..20]).to_string());
        put("options", hex(&packet[20..header]));
        self.transport(packet, &mut fields);
        fields
    }

    fn transport(&self, packet: &[u8], fields: &mut Fields) {
        let (proto, transport) = (packet[9], &packet[usize::from(packet[0] & 0xf) * 4..]);
        let ends = (address(&packet[12..16]), address(&packet[16..20]));
        let checksum = right(is_transport_right(packet));
        let mut put = |name: &str, value: String| fields.push((name.to_owned(), value));
        let least = match proto {
            TCP => 20,
            UDP | ICMP => 8,
            SCTP => 12,
            _ => usize::MAX,
        };
        if transport.len() < least {
            put("payload", hex(transport));
            return;
        }
        if proto == ICMP {
            put("type", format!("{} {}", transport[0], transport[1]));
            put("checksum", checksum);
            if matches!(transport[0], 0 | 8 | 13..=18) {
                put("sport", self.identifier(ends, &transport[4..6]));
                put("payload", hex(&transport[6..]));
            } else {
                put("word", hex(&transport[4..8]));
                self.quote(&transport[8..], fields);
            }
            return;
        }
        put("sport", self.port(ends.0, &transport[..2]));
        put("dport", self.port(ends.1, &transport[2..4]));
        if proto == UDP {
            let none = transport[6..8] == [0, 0];
            put("checksum", if none { "none".into() } else { checksum });
            put("payload", hex(&transport[8..]));
        } else if proto == SCTP {
            put("tag", hex(&transport[4..8]));
            put("checksum", checksum);
            put("payload", hex(&transport[12..]));
        } else {
            let options = usize::from(transport[12] >> 4) * 4;
            put("seq", hex(&transport[4..8]));
            put("ack", hex(&transport[8..12]));
            put("tcp flags", hex(&transport[12..14]));
            put("window", hex(&transport[14..16]));
            put("checksum", checksum);
            put("urgent", hex(&transport[18..20]));
            put(
                "tcp options",
                hex(transport.get(20..options).unwrap_or(&[])),
            );
            put("payload", hex(transport.get(options..).unwrap_or(&[])));
        }
    }

    fn quote(&self, quoted: &[u8], fields: &mut Fields) {
        let mut put = |name: &str, value: String| fields.push((format!("quote {name}"), value));
        let header = quoted
            .first()
            .map_or(0, |first| usize::from(first & 0xf) * 4);
        if header < 20 || quoted.len() < header + 8 {
            put("payload", hex(quoted));
            return;
        }
        let (proto, transport) = (quoted[9], &quoted[header..]);
        let ends = (address(&quoted[12..16]), address(&quoted[16..20]));
        put("before", hex(&quoted[..8]));
        put("ttl", quoted[8].to_string());
        put("proto", proto.to_string());
        put(
            "header checksum",
            right(sum(&[&quoted[..header]]) == 0xffff),
        );
        put("src", ends.0.to_string());
        put("dst", ends.1.to_string());
        put("options", hex(&quoted[20..header]));
        let (ports, checksum) = match proto {
            UDP => (&[0, 2][..], 6),
            TCP => (&[0, 2][..], 16),
            SCTP => (&[0, 2][..], usize::MAX - 2),
            ICMP => (&[4][..], 2),
            _ => (&[][..], usize::MAX - 2),
        };
        let mut rest = transport.to_vec();
        let mut drawn = false;
        for at in ports {
            let port = match *at {
                4 => self.identifier(ends, &rest[4..6]),
                at => self.port(if at == 0 { ends.0 } else { ends.1 }, &rest[at..at + 2]),
            };
            drawn |= port.starts_with("drawn");
            rest[*at..at + 2].fill(0);
            put(if *at == 2 { "dport" } else { "sport" }, port);
        }
        // A checksum shows a drawn port, too: then it is only right or wrong, if all of the packet
        // is there to tell.
        let length = usize::from(u16::from_be_bytes([quoted[2], quoted[3]]));
        if let Some(field) = rest.get_mut(checksum..checksum + 2) {
            let whole = quoted.len() >= length && length > header;
            let value = if drawn && !whole {
                "cut".to_owned()
            } else if drawn && proto == UDP && *field == [0, 0] {
                "none".to_owned()
            } else if drawn {
                right(is_transport_right(&quoted[..length]))
            } else {
                hex(field)
            };
            field.fill(0);
            put("checksum", value);
        }
        if proto == SCTP && rest.len() >= 12 {
            let whole = quoted.len() >= length && length > header;
            let value = match (whole, drawn) {
                (true, _) => right(is_transport_right(&quoted[..length])),
                (false, true) => "cut".to_owned(),
                (false, false) => hex(&rest[8..12]),
            };
            put("checksum", value);
            rest[8..12].fill(0);
        }
        put("payload", hex(&rest));
    }
}

/// The identification of the packet that an ICMP error quotes.
pub(crate) fn quoted_id(packet: &[u8]) -> Option<u16> {
    let transport = &packet[usize::from(packet[0] & 0xf) * 4..];
    let error = packet[9] == ICMP && !matches!(transport.first()?, 0 | 8 | 13..=18);
    let id = transport.get(12..14)?;
    error.then(|| u16::from_be_bytes([id[0], id[1]]))
}

/// The destination of the packet that an ICMP error quotes, and its source.
pub(crate) fn quoted_ends(packet: &[u8]) -> Option<[Ipv4Addr; 2]> {
    quoted_id(packet)?;
    let quoted = packet[usize::from(packet[0] & 0xf) * 4..].get(8..28)?;
    Some([address(&quoted[12..16]), address(&quoted[16..20])])
}

/// An address of four bytes.
pub(crate) fn address(bytes: &[u8]) -> Ipv4Addr {
    Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])
}

fn right(is: bool) -> String {
    if is { "right" } else { "wrong" }.to_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Fragments are gathered in any order, and a hole is seen.
#[test]
fn fragments_are_gathered_in_any_order() {
    use crate::place::{HOST, NEAR, socket};
    let whole = Packet::udp(socket((NEAR, 1)), socket((HOST, 2)), &[7; 100]);
    let pieces = [16..64, 64..108, 0..16].map(|range| whole.piece(range));
    let arrive = |pieces: &[Packet]| {
        let arrivals = pieces.iter().map(|piece| Arrival {
            at: At::Lan,
            bytes: piece.frame([0; 6], [0; 6]),
        });
        gather(arrivals.collect()).unwrap()
    };
    let [came] = &arrive(&pieces)[..] else {
        panic!("not one")
    };
    assert_eq!(came.packet, whole.bytes());
    assert_eq!(came.pieces, [(16, 48), (64, 44), (0, 16)]);
    assert_ne!(arrive(&pieces[..2])[0].packet, whole.bytes());
}

#[test]
fn drawn_port_is_named_at_its_own_end_only() {
    use crate::place::{HOST, NEAR, socket};
    let came = Came {
        at: At::Lan,
        mac: [0; 6],
        packet: Packet::udp(socket((HOST, 80)), socket((NEAR, 80)), b"x").into_bytes(),
        pieces: vec![],
    };
    let fields = Reader {
        drawn: &[(HOST, 80)],
    }
    .fields(&came, true);
    let value = |name: &str| {
        fields
            .iter()
            .find(|field| field.0 == name)
            .map(|f| f.1.as_str())
    };
    assert_eq!(value("sport"), Some("drawn below 512"));
    assert_eq!(value("dport"), Some("80"));
    assert_eq!(value("checksum"), Some("right"));
}
