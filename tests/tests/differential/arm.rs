// SPDX-License-Identifier: MIT OR Apache-2.0
//! One arm: a Docker host with its containers, and raw sockets at all ends where nothing answers
//! but the test.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Map, MapData, PerCpuArray};
use forwarder_common::abi::{LAYOUT, name};
use forwarder_common::reason::Reason;
use harness::{Agent, Docker, Host, Lab, Packet, PacketSocket, Peer, Space, eventually};

use crate::place::{
    At, CONTAINERS, End, GATEWAY, HOST, NARROW, NARROW_MTU, NEAR, NETS, PLACES, PUBLISHED,
    STRANGER, UPLINK_MAC, mac_text, socket,
};

/// The ports of the markers.
const MARKER: u16 = 7;
/// The ports of probes.
const PROBE: u16 = 40_009;
/// How long a marker may take.
const QUIET: Duration = Duration::from_secs(5);

/// A frame as it came, Ethernet header included.
pub(crate) struct Arrival {
    /// Where.
    pub(crate) at: At,
    /// Its bytes.
    pub(crate) bytes: Vec<u8>,
}

/// A datagram of no trace, whose packets all have an identification.
fn unnumbered(from: End, to: End, payload: &[u8]) -> Packet {
    let datagram = Packet::udp(socket(from), socket(to), payload);
    datagram.numbered(0).dont_fragment()
}

/// A host and the testers around it. Dropped in this order.
pub(crate) struct Arm {
    sockets: BTreeMap<At, PacketSocket>,
    agent: Option<Agent>,
    host: Host,
    lab: Lab,
    reasons: Option<PerCpuArray<MapData, u64>>,
    markers: u32,
}

impl Arm {
    /// Stock Docker's rules, or ours.
    pub(crate) fn new(label: &str, ours: bool) -> Result<Self> {
        let lab = Lab::new(label)?;
        // The LAN's own kernel shall route nothing.
        lab.lan().sysctl("net/ipv4/ip_forward", "0")?;
        let host = lab.host(if ours {
            Docker::replace()
        } else {
            Docker::stock().arg("--userland-proxy=false")
        })?;
        host.ip(&format!("link set up0 address {}", mac_text(UPLINK_MAC)))?;
        host.ip(&format!(
            "route add {NARROW} via {GATEWAY} mtu {NARROW_MTU}"
        ))?;
        for remote in [NEAR, STRANGER, GATEWAY] {
            let mac = mac_text(At::Lan.mac());
            host.ip(&format!(
                "neigh replace {remote} lladdr {mac} dev up0 nud permanent"
            ))?;
        }
        for net in &NETS {
            let subnet = format!("--subnet={}", net.subnet);
            let bridge = format!("com.docker.network.bridge.name={}", net.name);
            let mtu = format!("com.docker.network.driver.mtu={}", net.mtu);
            host.docker(&[
                "network", "create", &subnet, "-o", &bridge, "-o", &mtu, net.name,
            ])?;
            let mac = mac_text(net.mac);
            host.ip(&format!("link set {} address {mac}", net.name))?;
        }
        let agent = ours.then(|| host.agent().start()).transpose()?;
        let mut arm = Self {
            sockets: BTreeMap::new(),
            agent,
            reasons: None,
            host,
            lab,
            markers: 0,
        };
        if ours {
            arm.reasons = Some(arm.counters()?);
        }
        let lan = Space::clone(arm.lab.lan());
        arm.open(At::Lan, &lan, "h1")?;
        for at in CONTAINERS {
            arm.start(at, true)?;
        }
        arm.quieten()?;
        Ok(arm)
    }

    /// Whether it is ours.
    pub(crate) fn is_ours(&self) -> bool {
        self.agent.is_some()
    }

    fn open(&mut self, at: At, space: &Space, device: &str) -> Result<()> {
        let socket = space.enter(|| PacketSocket::open(device))??;
        self.sockets.insert(at, socket);
        Ok(())
    }

    /// Runs a container and takes its address away from its kernel, so that only the test answers.
    pub(crate) fn start(&mut self, at: At, published: bool) -> Result<()> {
        let net = at.net().context("no container")?;
        let (address, mac) = (at.address(), mac_text(at.mac()));
        let mut options = vec![format!("--network={}", net.name), format!("--ip={address}")];
        for (_, host, inside) in PUBLISHED.iter().filter(|row| published && row.0 == at) {
            options.push(format!("-p{host}:{inside}/tcp"));
            options.push(format!("-p{host}:{inside}/udp"));
        }
        let options: Vec<_> = options.iter().map(String::as_str).collect();
        let container = self.host.run(at.name(), &options, &Peer::idle())?;
        if self.is_ours() {
            self.host.settle(at.name())?;
        }
        let space = container.space()?;
        let own = space.mac("eth0")?;
        ensure!(own == at.mac(), "this Docker makes {own:02x?} of {address}");
        space.ip("address flush dev eth0")?;
        self.host.ip(&format!(
            "neigh replace {address} lladdr {mac} dev {} nud permanent",
            net.name
        ))?;
        self.open(at, &space, "eth0")
    }

    /// Removes a container.
    pub(crate) fn remove(&mut self, at: At) -> Result<()> {
        self.sockets.remove(&at);
        self.host.container(at.name()).remove()
    }

    /// What the host itself says comes at once, with finished checksums, and never for its own sake.
    fn quieten(&self) -> Result<()> {
        let host = &self.host;
        for (key, value) in [
            ("icmp_ratelimit", "0"),
            ("icmp_msgs_per_sec", "1000000"),
            ("icmp_msgs_burst", "1000000"),
            ("ipfrag_time", "2"),
            ("conf/all/send_redirects", "0"),
            ("conf/default/send_redirects", "0"),
            ("conf/brA/send_redirects", "0"),
            ("conf/brB/send_redirects", "0"),
            ("conf/up0/send_redirects", "0"),
        ] {
            host.sysctl(&format!("net/ipv4/{key}"), value)?;
        }
        let links = host.ip("-o link show")?;
        for line in links.lines().filter(|line| line.contains("master br")) {
            let device = line.split([' ', '@']).nth(1).context("no device")?;
            host.ethtool(device.trim_end_matches(':'), "tx off")?;
        }
        host.ethtool("up0", "tx off")
    }

    /// Ends all flows.
    pub(crate) fn end_flows(&mut self) -> Result<()> {
        if self.is_ours() {
            self.host.cli(&["flows", "delete", "--all"]).map(drop)
        } else {
            self.host.cmd(&["conntrack", "-F"]).map(drop)
        }
    }

    /// Sets the MTU of the host's device towards the LAN, and waits until it counts.
    pub(crate) fn set_mtu(&mut self, mtu: u16) -> Result<()> {
        self.host.ip(&format!("link set up0 mtu {mtu}"))?;
        let (from, to) = ((At::One.address(), PROBE), (GATEWAY, PROBE));
        let frame = unnumbered(from, to, &[0; 1400]).frame(At::One.host_mac(), At::One.mac());
        let expected = if mtu < 1400 { At::One } else { At::Lan };
        eventually(QUIET, || {
            self.send(At::One, &frame)?;
            let (arrivals, _) = self.settle()?;
            let came = arrivals.iter().any(|arrival| arrival.at == expected);
            ensure!(came, "an MTU of {mtu} does not count yet");
            Ok(())
        })
    }

    fn counters(&self) -> Result<PerCpuArray<MapData, u64>> {
        let file = self
            .host
            .bpffs_dir()
            .join(format!("v{LAYOUT}/maps"))
            .join(name::REASONS);
        let map = MapData::from_pin(&file).with_context(|| file.display().to_string())?;
        Ok(PerCpuArray::try_from(Map::PerCpuArray(map))?)
    }

    /// How many packets went all the way by our path; none on a stock host.
    pub(crate) fn fast(&self) -> Result<u64> {
        let Some(reasons) = &self.reasons else {
            return Ok(0);
        };
        let count = |reason| -> Result<u64> { Ok(reasons.get(&(reason as u32), 0)?.iter().sum()) };
        Ok(count(Reason::Forwarded)? + count(Reason::IcmpError)?)
    }

    /// Sends a frame.
    pub(crate) fn send(&self, at: At, frame: &[u8]) -> Result<()> {
        let socket = self.sockets.get(&at).context("nobody is there")?;
        socket.send(frame)
    }

    /// Everything that came to the testers until all is quiet: a marker has gone the way of the
    /// last packets, from each container to the LAN and back. All devices' packets wait in the one
    /// queue of the one processor that this thread runs on, so that nothing is behind a marker.
    /// The second value is how many markers our path took.
    pub(crate) fn settle(&mut self) -> Result<(Vec<Arrival>, u64)> {
        let mut arrivals = Vec::new();
        let mut taken = 0;
        for at in CONTAINERS {
            if !self.sockets.contains_key(&at) {
                continue;
            }
            let port = 40_000 + at as u16;
            let there = self.mark(
                (at, at.address(), port),
                (At::Lan, NEAR, MARKER),
                &mut arrivals,
            )?;
            let back = u16::from_be_bytes([there[34], there[35]]);
            let to = (at, HOST, back);
            self.mark((At::Lan, NEAR, MARKER), to, &mut arrivals)?;
            taken += 2;
        }
        Ok((arrivals, taken))
    }

    /// Sends one marker and waits for it.
    fn mark(
        &mut self,
        from: (At, std::net::Ipv4Addr, u16),
        to: (At, std::net::Ipv4Addr, u16),
        arrivals: &mut Vec<Arrival>,
    ) -> Result<Vec<u8>> {
        self.markers += 1;
        let payload = [&b"marker"[..], &self.markers.to_be_bytes()].concat();
        let packet = unnumbered((from.1, from.2), (to.1, to.2), &payload);
        let frame = packet.frame(from.0.host_mac(), from.0.mac());
        self.send(from.0, &frame)?;
        let begun = Instant::now();
        while begun.elapsed() < QUIET {
            if let Some(marker) = self.collect(to.0, &payload, arrivals)? {
                return Ok(marker);
            }
            std::thread::yield_now();
        }
        bail!("{:?}'s marker does not come to {:?}", from.0, to.0)
    }

    /// Takes what waits at all ends; the marker, if it is among it, is handed back.
    fn collect(
        &mut self,
        marker_at: At,
        marker: &[u8],
        arrivals: &mut Vec<Arrival>,
    ) -> Result<Option<Vec<u8>>> {
        let mut found = None;
        for at in PLACES {
            let Some(socket) = self.sockets.get_mut(&at) else {
                continue;
            };
            while let Some((bytes, outgoing)) = socket.receive()? {
                let ours = bytes.get(..6) == Some(&at.mac()) && bytes.get(12..14) == Some(&[8, 0]);
                if outgoing || !ours {
                    continue;
                }
                ensure!(bytes.len() >= 34, "a short frame at {at:?}");
                if at == marker_at && bytes.len() > 42 && bytes[42..].starts_with(marker) {
                    found = Some(bytes.to_vec());
                } else {
                    arrivals.push(Arrival {
                        at,
                        bytes: bytes.to_vec(),
                    });
                }
            }
        }
        Ok(found)
    }
}
