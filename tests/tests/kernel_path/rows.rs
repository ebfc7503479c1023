// SPDX-License-Identifier: MIT OR Apache-2.0
//! The matrix' rows: a packet of each direction, as it is sent and as it has to arrive.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context as _, Result, ensure};
use harness::{Capture, Container, Packet, Peer, Scene, Space, eventually};

use crate::SOON;

/// A direction, in an order in which each reply finds its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Row {
    /// From outside to a published port.
    Published,
    /// Its reply.
    PublishedReply,
    /// From a container to the outside.
    Outgoing,
    /// Its reply.
    OutgoingReply,
    /// From a container to a published port of another container.
    Hairpin,
    /// Its reply.
    HairpinReply,
}

pub(crate) use Row::{Hairpin, HairpinReply, Outgoing, OutgoingReply, Published, PublishedReply};

/// All of them.
pub(crate) const ALL: [Row; 6] = [
    Published,
    PublishedReply,
    Outgoing,
    OutgoingReply,
    Hairpin,
    HairpinReply,
];

const LAN: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 2);
const HOST: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 1);

/// A place where packets are sent and seen.
struct Station {
    space: Space,
    device: &'static str,
    own: [u8; 6],
    host: [u8; 6],
    capture: Capture,
}

/// A host with a server (8080 on the host, 80 inside) and a client in containers, and captures
/// at all ends.
pub(crate) struct Stage {
    lan: Station,
    server: Station,
    client: Station,
    server_at: Ipv4Addr,
    client_at: Ipv4Addr,
    gateway: Ipv4Addr,
    /// The server's container.
    pub(crate) web: Container,
    /// Both containers and everything else.
    pub(crate) scene: Scene,
}

impl Stage {
    /// With the server in a network of its own options (`docker network create`), or in the default
    /// one, where the client is.
    pub(crate) fn new(label: &str, options: Option<&[&str]>) -> Result<Self> {
        let scene = Scene::new(label)?;
        let (host, lan) = (&scene.host, scene.lan().clone());
        host.ethtool("up0", "tx off")?;
        let mut network = "bridge";
        if let Some(options) = options {
            network = "own";
            host.docker(&[&["network", "create"], options, &[network]].concat())?;
        }
        let ports = [
            "-p",
            "8080:80/tcp",
            "-p",
            "8080:80/udp",
            "-p",
            "8081:81/udp",
            "--network",
            network,
        ];
        let web = scene.run("web", &ports, &Peer::serve(80))?;
        let client = scene.run("client", &[], &Peer::idle())?;
        let station = |container: &Container| {
            let space = container.space()?;
            let route = space.ip("route get 198.18.1.2")?;
            let gateway = route.split_whitespace().nth(2).context("no gateway")?;
            let bridge = host.ip(&format!("-br address show to {gateway}"))?;
            let bridge = bridge.split_whitespace().next().context("no bridge")?;
            let (own, mac) = (space.mac("eth0")?, host.mac(bridge)?);
            let capture = space.capture("eth0")?;
            let station = Station {
                space,
                device: "eth0",
                own,
                host: mac,
                capture,
            };
            let address: Ipv4Addr = container.ip()?.to_string().parse()?;
            Ok::<_, anyhow::Error>((station, address, gateway.parse::<Ipv4Addr>()?))
        };
        let (server, server_at, gateway) = station(&web)?;
        let (client, client_at, _) = station(&client)?;
        let lan = Station {
            own: lan.mac("h1")?,
            host: host.mac("up0")?,
            capture: lan.capture("h1")?,
            device: "h1",
            space: lan,
        };
        Ok(Self {
            lan,
            server,
            client,
            server_at,
            client_at,
            gateway,
            web,
            scene,
        })
    }

    /// The names in a row's packet, from and to, as its sender sends it.
    pub(crate) fn asked(&self, row: Row) -> (SocketAddrV4, SocketAddrV4) {
        let end = SocketAddrV4::new;
        match row {
            Published => (end(LAN, 5000), end(HOST, 8080)),
            PublishedReply => (end(self.server_at, 80), end(LAN, 5000)),
            Outgoing => (end(self.client_at, 5000), end(LAN, 9)),
            OutgoingReply => (end(LAN, 9), end(HOST, 5000)),
            Hairpin => (end(self.client_at, 6000), end(HOST, 8080)),
            HairpinReply => (end(self.server_at, 80), end(self.gateway, 6000)),
        }
    }

    /// The same as its receiver has to see them.
    pub(crate) fn given(&self, row: Row) -> (SocketAddrV4, SocketAddrV4) {
        let end = SocketAddrV4::new;
        match row {
            Published => (end(LAN, 5000), end(self.server_at, 80)),
            PublishedReply => (end(HOST, 8080), end(LAN, 5000)),
            Outgoing => (end(HOST, 5000), end(LAN, 9)),
            OutgoingReply => (end(LAN, 9), end(self.client_at, 5000)),
            Hairpin => (end(self.gateway, 6000), end(self.server_at, 80)),
            HairpinReply => (end(HOST, 8080), end(self.client_at, 6000)),
        }
    }

    /// A packet of a row as its sender sends it, with a payload of so many bytes.
    pub(crate) fn sent(&self, row: Row, size: usize) -> Packet {
        let (from, to) = self.asked(row);
        Packet::udp(from, to, &vec![row as u8 + b'0'; size])
    }

    /// The same as its receiver has to see it.
    pub(crate) fn seen(&self, row: Row, size: usize) -> Packet {
        let (from, to) = self.given(row);
        Packet::udp(from, to, &vec![row as u8 + b'0'; size]).ttl(63)
    }

    fn ends(&self, row: Row) -> (&Station, &Station) {
        match row {
            Published => (&self.lan, &self.server),
            PublishedReply => (&self.server, &self.lan),
            Outgoing => (&self.client, &self.lan),
            OutgoingReply => (&self.lan, &self.client),
            Hairpin => (&self.client, &self.server),
            HairpinReply => (&self.server, &self.client),
        }
    }

    /// Sends a row's packet.
    pub(crate) fn send(&self, row: Row, packet: &Packet) -> Result<()> {
        let from = self.ends(row).0;
        let frame = packet.frame(from.host, from.own);
        from.space.send_frame(from.device, &frame)
    }

    /// Sends packets of a row, one right after the other.
    pub(crate) fn send_all(&self, row: Row, packets: &[Packet]) -> Result<()> {
        let from = self.ends(row).0;
        let frame = |packet: &Packet| packet.frame(from.host, from.own);
        let frames: Vec<_> = packets.iter().map(frame).collect();
        from.space.send_frames(from.device, &frames)
    }

    /// What came to a row's receiver, or (`back`) to its sender.
    pub(crate) fn came(&self, row: Row, back: bool) -> Result<Vec<Packet>> {
        let (from, to) = self.ends(row);
        if back { from } else { to }.capture.packets(false)
    }

    /// Sends a packet of each row, changed by `with`, and checks that it arrives byte for byte as
    /// it has to: at once or in fragments.
    pub(crate) fn carries(
        &self,
        rows: &[Row],
        size: usize,
        with: impl Fn(Packet) -> Packet,
    ) -> Result<()> {
        for row in rows {
            static NUMBERS: AtomicU16 = AtomicU16::new(1);
            let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
            let expected = with(self.seen(*row, size)).numbered(number);
            self.send(*row, &with(self.sent(*row, size)).numbered(number))?;
            eventually(SOON, || {
                let came = self.came(*row, false)?;
                let whole = expected.whole(&came);
                let arrived = came.contains(&expected) || whole.as_ref() == Some(&expected);
                ensure!(arrived, "{row:?} brings no {expected:?}");
                Ok(())
            })?;
        }
        self.lan.capture.audit(true)
    }

    /// Sends a packet of a row, and hands back the ICMP error of this kind that comes for it from
    /// the host: it has to quote what was sent, byte for byte.
    pub(crate) fn refuses(&self, row: Row, sent: &Packet, kind: [u8; 2]) -> Result<Packet> {
        let error = self.error(row, sent, kind)?;
        let quoted = error.quoted().context("no quote")?;
        ensure!(
            sent.bytes().starts_with(quoted.bytes()),
            "{row:?}: {quoted:?} is quoted instead of {sent:?}"
        );
        Ok(error)
    }

    /// The same, whatever it quotes.
    fn error(&self, row: Row, sent: &Packet, kind: [u8; 2]) -> Result<Packet> {
        let before = self.errors(row, kind)?.len();
        self.send(row, sent)?;
        let error = eventually(SOON, || {
            let error = self.errors(row, kind)?.into_iter().nth(before);
            error.with_context(|| format!("{row:?}: no error {kind:?}"))
        })?;
        error.check()?;
        let host = if matches!(row, Published | OutgoingReply | Hairpin) {
            HOST
        } else {
            self.near(row)
        };
        ensure!(
            error.source() == host,
            "{row:?}: {} answers",
            error.source()
        );
        self.lan.capture.audit(true)?;
        Ok(error)
    }

    fn near(&self, row: Row) -> Ipv4Addr {
        match row {
            PublishedReply | HairpinReply => self.gateway,
            _ => Ipv4Addr::new(172, 17, 0, 1),
        }
    }

    fn errors(&self, row: Row, kind: [u8; 2]) -> Result<Vec<Packet>> {
        let came = self.came(row, true)?.into_iter();
        Ok(came
            .filter(|packet| packet.error_kind() == Some(kind))
            .collect())
    }
}
