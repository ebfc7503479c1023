// SPDX-License-Identifier: MIT OR Apache-2.0
//! The arms of the benchmark: hosts and namespaces side by side, each with its servers and its two
//! routes.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use harness::{Agent, Docker, Host, Lab, Netns, Peer, Space, finish, forwarder_bin, veth};
use serde_json::Value;

use crate::flood;
use crate::tools::{self, Servers};
use crate::work::{Arm, Direction};

/// The container of each host.
const CONTAINER: &str = "bench";
/// The container's device, and those of the bare veth.
const ETH0: &str = "eth0";
const BARE: [Ipv4Addr; 2] = [
    Ipv4Addr::new(198, 19, 255, 1),
    Ipv4Addr::new(198, 19, 255, 2),
];

/// A device in a namespace.
#[derive(Debug, Clone)]
pub(crate) struct Device {
    pub(crate) space: Space,
    pub(crate) name: String,
}

impl Device {
    fn new(space: &Space, name: impl Into<String>) -> Self {
        Self {
            space: space.clone(),
            name: name.into(),
        }
    }

    fn mac(&self) -> Result<[u8; 6]> {
        self.space.mac(&self.name)
    }
}

/// A route from a client to a server.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    /// Where the client runs.
    pub(crate) client: Space,
    /// Where the server runs.
    pub(crate) server: Space,
    /// The server's address as the client sees it.
    pub(crate) address: Ipv4Addr,
    /// The client's own address.
    pub(crate) source: Ipv4Addr,
    /// The device through which the client's frames leave.
    pub(crate) exit: String,
    /// The other end of that veth.
    pub(crate) entry: Device,
    /// The device through which the server receives.
    pub(crate) door: String,
    /// The hardware addresses of a client's frame: destination, source.
    pub(crate) macs: [[u8; 6]; 2],
}

/// One arm, set up.
pub(crate) struct Stand {
    pub(crate) arm: Arm,
    inward: Route,
    outward: Option<Route>,
    // The fields are dropped in this order.
    _servers: Servers,
    agent: Option<Agent>,
    host: Option<Host>,
    // The agent's binary, if it is not that of this build.
    binary: Option<PathBuf>,
    _bare: Option<[Netns; 2]>,
}

impl Stand {
    /// Sets up an arm. `against` is the binary of [`Arm::Against`]; files go into `folder`.
    ///
    /// # Errors
    /// Something does not start.
    pub(crate) fn build(
        lab: &Lab,
        arm: Arm,
        against: Option<&PathBuf>,
        folder: &Path,
    ) -> Result<Self> {
        let docker = match arm {
            Arm::Bare => return Self::bare(lab, folder),
            Arm::Stock | Arm::Adopt | Arm::Follow => Docker::stock().arg("--userland-proxy=false"),
            Arm::Ours | Arm::OursXdp | Arm::Against => Docker::replace(),
        };
        let host = lab.host(docker)?;
        if arm == Arm::Follow {
            // A rule that may concern any container, and bans somebody else.
            host.cmd(&[
                "iptables",
                "-I",
                "DOCKER-USER",
                "-s",
                "203.0.113.9",
                "-j",
                "DROP",
            ])?;
        }
        if arm == Arm::OursXdp {
            // XDP then sees complete checksums, as from a NIC.
            lab.lan().ethtool(&host.lan_device(), "tx off")?;
        }
        let binary = match arm {
            Arm::Against => Some(against.context("the arm needs --against BINARY")?.clone()),
            _ => None,
        };
        let agent = match arm {
            Arm::Bare | Arm::Stock => None,
            Arm::Ours | Arm::Adopt | Arm::Follow | Arm::OursXdp | Arm::Against => {
                Some(agent(arm, &host, binary.as_ref())?)
            }
        };
        let mut stand = Self::host(lab, arm, host, folder)?;
        (stand.agent, stand.binary) = (agent, binary);
        Ok(stand)
    }

    /// Sets up a host with its container. Its agent, if it has one, already runs.
    fn host(lab: &Lab, arm: Arm, host: Host, folder: &Path) -> Result<Self> {
        let publish = |port: u16, proto: &str| format!("--publish={port}:{port}/{proto}");
        let options = [
            publish(tools::HTTP, "tcp"),
            publish(tools::LATENCY, "tcp"),
            publish(tools::STREAM, "tcp"),
            publish(flood::PORT, "udp"),
        ];
        let options = options.each_ref().map(String::as_str);
        let container = host.run(CONTAINER, &options, &Peer::idle())?;
        let inside = container.space()?;
        let IpAddr::V4(address) = container.ip()? else {
            bail!("the container has no IPv4 address");
        };
        let servers = Servers::start(&inside, &folder.join(host.name()))?;
        let [lan_end, uplink] = [
            Device::new(lab.lan(), host.lan_device()),
            Device::new(&host, host.uplink()),
        ];
        let eth0 = Device::new(&inside, ETH0);
        let ports = host.ip("-br link show master docker0")?;
        let port = ports.split(['@', ' ']).next().unwrap_or_default();
        ensure!(!port.is_empty(), "docker0 has no port");
        let inward = Route {
            client: Space::clone(lab.lan()),
            server: inside.clone(),
            address: host.address(),
            source: host.gateway(),
            macs: [uplink.mac()?, lan_end.mac()?],
            exit: lan_end.name.clone(),
            entry: uplink,
            door: ETH0.to_owned(),
        };
        let outward = Route {
            client: inside,
            server: Space::clone(lab.lan()),
            address: host.gateway(),
            source: address,
            macs: [host.mac("docker0")?, eth0.mac()?],
            exit: ETH0.to_owned(),
            entry: Device::new(&host, port),
            door: lan_end.name,
        };
        Ok(Self {
            arm,
            inward,
            outward: Some(outward),
            _servers: servers,
            agent: None,
            host: Some(host),
            binary: None,
            _bare: None,
        })
    }

    fn bare(lab: &Lab, folder: &Path) -> Result<Self> {
        let (client, server) = (lab.netns("client")?, lab.netns("server")?);
        let [here, there] = BARE.map(|address| format!("{address}/24"));
        veth((&client, ETH0, &here), (&server, ETH0, &there))?;
        let servers = Servers::start(&server, &folder.join(server.name()))?;
        let entry = Device::new(&server, ETH0);
        let inward = Route {
            client: Space::clone(&client),
            server: Space::clone(&server),
            address: BARE[1],
            source: BARE[0],
            macs: [entry.mac()?, client.mac(ETH0)?],
            exit: ETH0.to_owned(),
            entry,
            door: ETH0.to_owned(),
        };
        Ok(Self {
            arm: Arm::Bare,
            inward,
            outward: None,
            _servers: servers,
            agent: None,
            host: None,
            binary: None,
            _bare: Some([client, server]),
        })
    }

    /// Returns its route in a direction, if it has one.
    pub(crate) fn route(&self, direction: Direction) -> Option<&Route> {
        match direction {
            Direction::In => Some(&self.inward),
            Direction::Out => self.outward.as_ref(),
        }
    }

    /// Returns how many packets took the path that the arm measures, and how many another one;
    /// `None` if there is only one path.
    ///
    /// # Errors
    /// The agent's or the device's counters cannot be read.
    pub(crate) fn paths(&self) -> Result<Option<Paths>> {
        match (self.arm, &self.host) {
            (Arm::Ours | Arm::Adopt | Arm::Follow | Arm::Against, Some(host)) => {
                let status = match &self.binary {
                    Some(binary) => status_by(binary, host)?,
                    None => host.json("status")?,
                };
                let count = |path: &str| {
                    let packets = status.pointer(&format!("/packets/{path}"));
                    let packets = packets.and_then(Value::as_u64);
                    packets.with_context(|| format!("no packets.{path} in the status: {status}"))
                };
                Ok(Some(Paths {
                    claimed: count("fast")?,
                    other: count("kernel")?,
                }))
            }
            (Arm::OursXdp, Some(host)) => {
                let counters = host.cmd(&["ethtool", "-S", host.uplink()])?;
                let sum = |name: &str| sum_of(&counters, name);
                let (all, redirected) = (sum("xdp_packets"), sum("xdp_redirect"));
                Ok(Some(Paths {
                    claimed: redirected,
                    other: all.saturating_sub(redirected),
                }))
            }
            _ => Ok(None),
        }
    }
}

/// Starts the agent of an arm, with the arm's XDP mode.
fn agent(arm: Arm, host: &Host, binary: Option<&PathBuf>) -> Result<Agent> {
    let xdp = if arm == Arm::OursXdp { "native" } else { "off" };
    let agent = host.agent().quiet();
    let agent = agent
        .arg(format!("--xdp={xdp}"))
        .arg(format!("--uplink={}", host.uplink()));
    let agent = match binary {
        Some(binary) => agent.binary(binary).start()?,
        None => agent.start()?,
    };
    if arm == Arm::OursXdp {
        let link = host.ip(&format!("link show dev {}", host.uplink()))?;
        ensure!(
            link.contains("prog/xdp "),
            "no native XDP on the uplink: {link}"
        );
    }
    Ok(agent)
}

/// Runs `forwarder status -o json` of another build, because only that build is sure to read its
/// own maps.
fn status_by(binary: &Path, host: &Host) -> Result<Value> {
    let line = host.forwarder_line(&["status", "-o", "json"])?;
    let (ours, binary) = (forwarder_bin()?, binary.display().to_string());
    let line = line.replacen(&ours.display().to_string(), &binary, 1);
    let mut words = line.split_whitespace();
    let program = words.next().context("an empty command")?;
    let text = finish(Command::new(program).args(words))?.success()?;
    serde_json::from_str(&text).with_context(|| format!("{binary} status: {text}"))
}

/// Packets by the path they took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paths {
    claimed: u64,
    other: u64,
}

impl Paths {
    /// Returns the share of packets that took the measured path since `before`, 0 to 1; 0 if there
    /// were none.
    pub(crate) fn share_since(self, before: Self) -> f64 {
        let claimed = self.claimed.saturating_sub(before.claimed) as f64;
        let other = self.other.saturating_sub(before.other) as f64;
        claimed / (claimed + other).max(1.0)
    }
}

/// Returns the sum of a counter over the receive queues, from the output of `ethtool -S`.
fn sum_of(counters: &str, name: &str) -> u64 {
    let of_queue = |label: &str| {
        let (queue, counter) = label.trim().strip_prefix("rx_queue_")?.split_once('_')?;
        queue.parse::<u16>().ok()?;
        (counter == name).then_some(())
    };
    let values = counters.lines().filter_map(|line| {
        let (label, value) = line.rsplit_once(':')?;
        of_queue(label)?;
        value.trim().parse::<u64>().ok()
    });
    values.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_summed_over_the_queues() {
        let counters = "NIC statistics:\n     peer_ifindex: 2\n     rx_queue_0_xdp_packets: 10\n\
                        \x20    rx_queue_0_xdp_redirect: 7\n     rx_queue_0_xdp_redirect_errors: 1\n\
                        \x20    rx_queue_11_xdp_packets: 5\n     tx_queue_0_xdp_packets: 99\n";
        assert_eq!(sum_of(counters, "xdp_packets"), 15);
        assert_eq!(sum_of(counters, "xdp_redirect"), 7);
        assert_eq!(sum_of(counters, "absent"), 0);
    }

    #[test]
    fn share_counts_packets_since_the_start() {
        let [before, after] =
            [(100, 50), (190, 60)].map(|(claimed, other)| Paths { claimed, other });
        assert!((after.share_since(before) - 0.9).abs() < 1e-9);
        assert!(before.share_since(before).abs() < 1e-9);
    }
}
