// SPDX-License-Identifier: MIT OR Apache-2.0
//! An attacker's toolbox: frames with any link header from a container, the LAN or the host, what a
//! user without privileges can do, and where the frames arrive.
//!
//! ```no_run
//! use harness::attack::{Arp, Attacker, Watch};
//! use harness::{Packet, Scene};
//!
//! # fn attack(scene: &Scene, packet: &Packet) -> anyhow::Result<()> {
//! let liar = scene.host.container("liar");
//! let mallory = Attacker::new(&liar.space()?, "eth0", scene.host.mac("docker0")?)?;
//! let watch = Watch::new(&[("LAN", scene.lan(), "h1")])?;
//! mallory.send(&mallory.dress().priority(5).ipv4(packet))?;
//! let steals = Arp::announce(mallory.mac(), [172, 17, 0, 1].into());
//! mallory.send(&mallory.dress().to_all().arp(&steals))?;
//! assert!(watch.saw(|frame| frame.packet().as_ref() == Some(packet))?.is_empty());
//! # Ok(())
//! # }
//! ```

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context as _, Result};
use forwarder_testkit::packet::{Packet, proto};
use forwarder_testkit::packet6::Packet6;

use crate::capture::{Capture, Frame};
use crate::image::peer_bin;
use crate::netns::Space;
use crate::process::Process;

/// A hardware address.
pub type Mac = [u8; 6];

/// The broadcast address.
pub const BROADCAST: Mac = [0xff; 6];
/// The address of a bridge's control frames, which a bridge does not forward.
pub const BRIDGE_GROUP: Mac = [0x01, 0x80, 0xc2, 0, 0, 0];

/// `EtherType`s.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// An IEEE 802.1Q tag.
    pub const VLAN: u16 = 0x8100;
    /// An IEEE 802.1ad tag.
    pub const SERVICE_VLAN: u16 = 0x88a8;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// IEEE Std 802: for local experiments.
    pub const EXPERIMENTAL: u16 = 0x88b5;
}

/// An attacker that can send raw frames out of a device.
#[derive(Debug, Clone)]
pub struct Attacker {
    space: Space,
    device: String,
    mac: Mac,
    victim: Mac,
}

impl Attacker {
    /// Creates an attacker on a device of a namespace, adjacent to the station with the hardware
    /// address `victim`: a container's gateway, or the host's uplink.
    ///
    /// # Errors
    /// There is no such device.
    pub fn new(space: &Space, device: &str, victim: Mac) -> Result<Self> {
        let mac = space.mac(device)?;
        Ok(Self {
            space: space.clone(),
            device: device.to_owned(),
            mac,
            victim,
        })
    }

    /// Returns the attacker's own hardware address.
    #[must_use]
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// Returns the link header of honest frames: from the attacker's own address to the victim,
    /// without a tag.
    #[must_use]
    pub fn dress(&self) -> Dress {
        Dress {
            to: self.victim,
            from: self.mac,
            tags: Vec::new(),
        }
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// The device does not accept it.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        self.space.send_frame(&self.device, frame)
    }

    /// Sends many frames.
    ///
    /// # Errors
    /// The device does not accept one.
    pub fn send_all(&self, frames: &[Vec<u8>]) -> Result<()> {
        self.space.send_frames(&self.device, frames)
    }
}

/// Everything before the network header: addresses and tags.
#[derive(Debug, Clone)]
pub struct Dress {
    to: Mac,
    from: Mac,
    tags: Vec<u8>,
}

impl Dress {
    /// Sets another destination.
    #[must_use]
    pub fn to(self, to: Mac) -> Self {
        Self { to, ..self }
    }

    /// Sets the broadcast address as destination.
    #[must_use]
    pub fn to_all(self) -> Self {
        self.to(BROADCAST)
    }

    /// Sets another source.
    #[must_use]
    pub fn from(self, from: Mac) -> Self {
        Self { from, ..self }
    }

    /// Adds a tag inside the existing ones: its `EtherType`, priority and VLAN id.
    #[must_use]
    pub fn tag(mut self, kind: u16, priority: u8, vlan: u16) -> Self {
        self.tags.extend(kind.to_be_bytes());
        let control = u16::from(priority) << 13 | vlan;
        self.tags.extend(control.to_be_bytes());
        self
    }

    /// Adds a priority tag: VLAN id 0 (IEEE 802.1p), which a receiver treats as untagged.
    #[must_use]
    pub fn priority(self, priority: u8) -> Self {
        self.tag(ethertype::VLAN, priority, 0)
    }

    /// Adds a VLAN tag.
    #[must_use]
    pub fn vlan(self, id: u16) -> Self {
        self.tag(ethertype::VLAN, 0, id)
    }

    /// Adds a VLAN tag inside a service VLAN tag (IEEE 802.1ad, `QinQ`).
    #[must_use]
    pub fn qinq(self, outer: u16, inner: u16) -> Self {
        self.tag(ethertype::SERVICE_VLAN, 0, outer).vlan(inner)
    }

    /// Returns a frame with any body, padded to Ethernet's 60 bytes.
    #[must_use]
    pub fn frame(&self, ethertype: u16, body: &[u8]) -> Vec<u8> {
        let mut frame = [&self.to[..], &self.from, &self.tags].concat();
        frame.extend(ethertype.to_be_bytes());
        frame.extend(body);
        frame.resize(frame.len().max(60), 0);
        frame
    }

    /// Returns the frame of an IPv4 packet.
    #[must_use]
    pub fn ipv4(&self, packet: &Packet) -> Vec<u8> {
        self.frame(ethertype::IPV4, packet.bytes())
    }

    /// Returns the frame of an ARP message.
    #[must_use]
    pub fn arp(&self, arp: &Arp) -> Vec<u8> {
        self.frame(ethertype::ARP, &arp.body())
    }

    /// Returns the frame of an IPv6 packet.
    #[must_use]
    pub fn ipv6(&self, packet: &Packet6) -> Vec<u8> {
        self.frame(ethertype::IPV6, &packet.bytes())
    }

    /// Returns this link header with every combination of tags behind which the kernel recognises
    /// an IPv4 packet, with a name for each: untagged, priority-tagged with and without a priority,
    /// in a VLAN, in two VLANs.
    #[must_use]
    pub fn every_tag(&self) -> [(&'static str, Self); 6] {
        [
            ("untagged", self.clone()),
            ("VLAN id 0", self.clone().priority(0)),
            ("VLAN id 0 with priority 5", self.clone().priority(5)),
            (
                "802.1ad VLAN id 0",
                self.clone().tag(ethertype::SERVICE_VLAN, 0, 0),
            ),
            ("VLAN id 7", self.clone().vlan(7)),
            ("QinQ 7.0", self.clone().qinq(7, 0)),
        ]
    }
}

/// An ARP message (RFC 826) for Ethernet and IPv4.
#[derive(Debug, Clone, Copy)]
pub struct Arp {
    /// 1 is a request, 2 a reply.
    pub operation: u16,
    /// The sender's addresses.
    pub sender: (Mac, Ipv4Addr),
    /// The addresses of the station that is asked for, or told.
    pub target: (Mac, Ipv4Addr),
}

impl Arp {
    /// Asks who has an address.
    #[must_use]
    pub fn ask(mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Self {
        Self {
            operation: 1,
            sender: (mac, sender),
            target: ([0; 6], target),
        }
    }

    /// Tells one station that `sender` is at `mac`.
    #[must_use]
    pub fn answer(mac: Mac, sender: Ipv4Addr, target: (Mac, Ipv4Addr)) -> Self {
        Self {
            operation: 2,
            sender: (mac, sender),
            target,
        }
    }

    /// Tells all stations that `sender` is at `mac` (gratuitous ARP).
    #[must_use]
    pub fn announce(mac: Mac, sender: Ipv4Addr) -> Self {
        Self::ask(mac, sender, sender)
    }

    /// Asks whether somebody has an address that the sender wants to use (RFC 5227).
    #[must_use]
    pub fn probe(mac: Mac, wanted: Ipv4Addr) -> Self {
        Self::ask(mac, Ipv4Addr::UNSPECIFIED, wanted)
    }

    /// Returns its bytes.
    #[must_use]
    pub fn body(&self) -> Vec<u8> {
        let mut body = vec![0, 1, 8, 0, 6, 4];
        body.extend(self.operation.to_be_bytes());
        for (mac, address) in [self.sender, self.target] {
            body.extend(mac);
            body.extend(address.octets());
        }
        body
    }

    /// Parses the ARP message in a frame.
    #[must_use]
    pub fn of(frame: &Frame) -> Option<Self> {
        let body = frame.body(ethertype::ARP)?.get(..28)?;
        let end = |at: usize| {
            let mac = body[at..at + 6].try_into().ok()?;
            let bytes: [u8; 4] = body[at + 6..at + 10].try_into().ok()?;
            Some((mac, Ipv4Addr::from(bytes)))
        };
        Some(Self {
            operation: u16::from_be_bytes([body[6], body[7]]),
            sender: end(8)?,
            target: end(18)?,
        })
    }
}

/// Returns packets with an invalid transport header, and what is wrong with each. A router that
/// checks only the network header forwards all of them.
#[must_use]
pub fn broken(from: SocketAddrV4, to: SocketAddrV4) -> Vec<(&'static str, Packet)> {
    let new = |protocol, transport: &[u8]| Packet::new(protocol, *from.ip(), *to.ip(), transport);
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    let segment = |offset: u8| {
        let numbers = [0, 0, 0, 1, 0, 0, 0, 0];
        let rest = [offset << 4, 2, 0xff, 0xff, 0, 0, 0, 0];
        [&ports[..], &numbers, &rest].concat()
    };
    let sctp = [&ports[..], &[0; 4]].concat();
    vec![
        ("TCP with data offset 4", new(proto::TCP, &segment(4))),
        ("TCP with data offset 15", new(proto::TCP, &segment(15))),
        ("TCP of 8 bytes", new(proto::TCP, &segment(5)[..8])),
        ("TCP of none", new(proto::TCP, &[])),
        (
            "UDP of 6 bytes",
            new(proto::UDP, &[&ports[..], &[0, 6]].concat()),
        ),
        ("UDP of 1 byte", new(proto::UDP, &ports[..1])),
        ("ICMP of 4 bytes", new(proto::ICMP, &[8, 0, 0, 0])),
        ("SCTP of 8 bytes", new(proto::SCTP, &sctp)),
        ("a protocol that nobody has", new(253, b"experiment")),
    ]
}

/// Captures at several places, from the moment of its creation.
pub struct Watch(Vec<(String, Capture)>);

impl Watch {
    /// Captures at devices of namespaces, each with a name for messages.
    ///
    /// # Errors
    /// There is no such device.
    pub fn new(places: &[(&str, &Space, &str)]) -> Result<Self> {
        let places = places.iter().map(|(name, space, device)| {
            let capture = space.capture(device);
            Ok(((*name).to_owned(), capture.context((*name).to_owned())?))
        });
        places.collect::<Result<_>>().map(Self)
    }

    /// Returns the frames that satisfy the closure and the places where they arrived. Frames that a
    /// place itself sent do not count.
    ///
    /// # Errors
    /// A device has gone.
    pub fn saw(&self, wanted: impl Fn(&Frame) -> bool) -> Result<Vec<(&str, Frame)>> {
        let mut seen = Vec::new();
        for (name, capture) in &self.0 {
            let frames = capture.frames()?.into_iter();
            let frames = frames.filter(|frame| !frame.outgoing && wanted(frame));
            seen.extend(frames.map(|frame| (name.as_str(), frame)));
        }
        Ok(seen)
    }
}

impl Frame {
    /// Returns its `EtherType` behind all tags, and the offset of its body.
    fn kind(&self) -> Option<(u16, usize)> {
        let word = |at: usize| {
            let bytes = self.bytes.get(at..at + 2)?;
            Some(u16::from_be_bytes([bytes[0], bytes[1]]))
        };
        let mut at = 12;
        while matches!(word(at)?, ethertype::VLAN | ethertype::SERVICE_VLAN) {
            at += 4;
        }
        Some((word(at)?, at + 2))
    }

    /// Returns the source address of the Ethernet header.
    #[must_use]
    pub fn source_mac(&self) -> Option<Mac> {
        self.bytes.get(6..12)?.try_into().ok()
    }

    /// Returns the bytes behind the Ethernet header and all tags, if they are of this `EtherType`.
    #[must_use]
    pub fn body(&self, ethertype: u16) -> Option<&[u8]> {
        let (kind, at) = self.kind()?;
        (kind == ethertype).then(|| &self.bytes[at..])
    }

    /// Returns its IPv4 packet, behind any tags.
    #[must_use]
    pub fn packet(&self) -> Option<Packet> {
        Packet::read(self.body(ethertype::IPV4)?)
    }

    /// Returns the identification of its IPv4 packet. It survives translation, so a test recognises
    /// its packets by it ([`Packet::numbered`]).
    #[must_use]
    pub fn number(&self) -> Option<u16> {
        let bytes = self.body(ethertype::IPV4)?.get(4..6)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    }
}

/// The command prefix that runs a program as an unprivileged user.
const AS_USER: [&str; 5] = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--inh-caps=-all",
];

/// What a user of a machine can do without privileges: user and group 65534, no capabilities.
impl Space {
    /// Runs the static peer inside as that user, and returns what it printed.
    ///
    /// # Errors
    /// It fails; the error shows its output.
    pub fn user_peer(&self, arguments: &[&str]) -> Result<String> {
        let program = peer_bin()?;
        let program = program.to_str().context("PEER_BIN is not UTF-8")?;
        self.cmd(&[&AS_USER[..], &[program], arguments].concat())
    }

    /// Starts the static peer inside as that user and leaves it running.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn_user_peer(&self, arguments: &[&str]) -> Result<Process> {
        let program = peer_bin()?;
        let mut command = self.command(AS_USER[0]);
        command.args(&AS_USER[1..]).arg(program).args(arguments);
        let what = format!("user's peer {}", arguments.join(" "));
        Process::spawn(&what, &mut command, &self.log_of("user"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn received(bytes: Vec<u8>) -> Frame {
        Frame {
            bytes,
            outgoing: false,
            at: SystemTime::UNIX_EPOCH,
        }
    }

    fn dress() -> Dress {
        Dress {
            to: [2; 6],
            from: [4; 6],
            tags: Vec::new(),
        }
    }

    #[test]
    fn frame_with_any_tags_is_read_back() {
        let end = |last, port| SocketAddrV4::new(Ipv4Addr::new(198, 18, 1, last), port);
        let packet = Packet::udp(end(1, 1), end(2, 2), b"x").numbered(77);
        for (name, dress) in dress().every_tag() {
            let frame = received(dress.ipv4(&packet));
            assert_eq!(frame.packet().as_ref(), Some(&packet), "{name}");
            assert_eq!(frame.number(), Some(77));
            assert_eq!(frame.source_mac(), Some([4; 6]));
        }
        let tagged = dress().qinq(7, 8).ipv4(&packet);
        assert_eq!(tagged[12..20], [0x88, 0xa8, 0, 7, 0x81, 0, 0, 8]);
        let tagged = dress().priority(5).ipv4(&packet);
        assert_eq!(tagged[12..18], [0x81, 0, 0xa0, 0, 8, 0]);
    }

    #[test]
    fn arp_message_is_read_back() {
        let arp = Arp::answer(
            [4; 6],
            [172, 17, 0, 1].into(),
            ([2; 6], [172, 17, 0, 3].into()),
        );
        let read = Arp::of(&received(dress().arp(&arp))).unwrap();
        assert_eq!(
            (read.operation, read.sender, read.target),
            (2, arp.sender, arp.target)
        );
    }

    #[test]
    fn broken_transport_has_a_valid_ip_header() {
        let end = |last, port| SocketAddrV4::new(Ipv4Addr::new(198, 18, 1, last), port);
        for (what, packet) in broken(end(1, 1), end(2, 2)) {
            let read = Packet::read(packet.bytes()).unwrap();
            assert_eq!(read.source(), Ipv4Addr::new(198, 18, 1, 1), "{what}");
            assert!(packet.bytes().len() < 48, "{what}");
        }
    }
}
