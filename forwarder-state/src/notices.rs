// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an operator wants to read in the log: published ports, attached containers, networks that
//! come to the fast path. It follows from the changes that were applied to the kernel: pure.
//!
//! The [`Ledger`] remembers what was said, so that what goes still has its names, and what is applied
//! twice is said once. A sync costs it what has changed, however much is published.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::desired_state::{DesiredState, Left};
use crate::diff::Change;
use crate::host_state::{HostPort, HostState};

/// One line for an operator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// A port leads to a container.
    Published(PublishedPort),
    /// It does no longer.
    Unpublished(PublishedPort),
    /// A container's packets pass the programs.
    Attached(Attachment),
    /// Its device has gone, or its network is left to the kernel.
    Detached(Attachment),
    /// A network has come, has changed hands, or has gone.
    Network(NetworkNotice),
}

/// A published port and where it leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PublishedPort {
    /// The port of the host.
    pub port: HostPort,
    /// The container's address and port.
    pub to: SocketAddr,
    /// Who has the address, as far as Docker has said.
    pub owner: Owner,
}

/// A container on a network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attachment {
    /// The container's address.
    pub address: IpAddr,
    /// Who has the address.
    pub owner: Owner,
    /// The name of the host's end of its veth.
    pub device: String,
    /// The device's index: another device is another attachment.
    ifindex: u32,
}

/// Who has an address.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Owner {
    /// The container's name, or its short id.
    pub container: Option<String>,
    /// The network's name.
    pub network: Option<String>,
    /// Whether Docker has said all of it.
    is_known: bool,
}

/// A network and who decides about its traffic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkNotice {
    /// Name.
    pub name: String,
    /// The bridge device's name.
    pub bridge: String,
    /// Who decides now.
    pub path: NetworkPath,
}

/// Who decides about a network's traffic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NetworkPath {
    /// The forwarder.
    Own,
    /// The kernel, because of this rule; connections that it lets through are followed.
    Follow(String),
    /// The kernel alone, because of this rule.
    Off(String),
    /// Nobody: the network has gone.
    Gone,
}

/// How much is in place.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Networks about whose traffic the forwarder decides.
    pub networks: usize,
    /// Networks about whose traffic the kernel decides.
    pub left: usize,
    /// Attached containers, once for each network.
    pub containers: usize,
    /// Published ports.
    pub ports: usize,
}

/// What was said, and what was applied since.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    has_begun: bool,
    networks: BTreeMap<u32, NetworkNotice>,
    endpoints: BTreeMap<IpAddr, Attachment>,
    ports: BTreeMap<HostPort, PublishedPort>,
    changed_endpoints: BTreeSet<IpAddr>,
    changed_ports: BTreeSet<HostPort>,
}

impl Ledger {
    /// Whether it knows what is in place. Before, nothing is news.
    #[must_use]
    pub const fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Records a change that the kernel has accepted.
    pub fn applied(&mut self, change: &Change) {
        if !self.has_begun {
            return;
        }
        let port = change.publishes().or_else(|| change.withdraws());
        self.changed_ports.extend(port);
        self.changed_endpoints.extend(change.endpoint());
    }

    /// Begins with all that the kernel holds after the first sync; returns it as notices.
    pub fn begin(
        &mut self,
        host_state: &HostState,
        held: &DesiredState,
        left: &BTreeMap<u32, Left>,
    ) -> Vec<Notice> {
        self.has_begun = true;
        self.changed_ports.extend(held.host_ports());
        self.changed_endpoints.extend(held.endpoint_addresses());
        self.notices(host_state, held, left, true)
    }

    /// Returns what is news after a sync: `held` is what the kernel holds, `left` has the bridges of
    /// networks about whose traffic the kernel decides.
    ///
    /// A network that changes hands takes its containers and ports along, which are reachable as
    /// before: it is one notice.
    ///
    /// A shim publishes a port before Docker says whose it is. Such a notice waits for the name, but
    /// if `is_due` it goes without.
    pub fn notices(
        &mut self,
        host_state: &HostState,
        held: &DesiredState,
        left: &BTreeMap<u32, Left>,
        is_due: bool,
    ) -> Vec<Notice> {
        let mut notices = Vec::new();
        let handed_over = self.compare_networks(host_state, held, left, &mut notices);
        self.compare_endpoints(host_state, held, is_due, &mut notices);
        self.compare_ports(host_state, held, is_due, &mut notices);
        notices.retain(|notice| {
            let network = notice.owner().and_then(|owner| owner.network.as_ref());
            network.is_none_or(|network| !handed_over.contains(network))
        });
        notices
    }

    /// Returns how much is in place.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let is_fast = |network: &&NetworkNotice| network.path == NetworkPath::Own;
        let networks = self.networks.values().filter(is_fast).count();
        Totals {
            networks,
            left: self.networks.len() - networks,
            containers: self.endpoints.len(),
            ports: self.ports.len(),
        }
    }

    /// Returns the names of networks that have changed hands.
    fn compare_networks(
        &mut self,
        host_state: &HostState,
        held: &DesiredState,
        left: &BTreeMap<u32, Left>,
        notices: &mut Vec<Notice>,
    ) -> BTreeSet<String> {
        let mut handed_over = BTreeSet::new();
        let kernels = left.iter();
        let kernels = kernels.map(|(&bridge, left)| (bridge, NetworkPath::of(left)));
        let mut now: BTreeMap<_, _> = kernels.collect();
        now.extend(held.bridges().map(|bridge| (bridge, NetworkPath::Own)));
        self.networks.retain(|bridge, said| {
            let stays = now.contains_key(bridge);
            if !stays {
                notices.push(Notice::Network(NetworkNotice {
                    path: NetworkPath::Gone,
                    ..said.clone()
                }));
            }
            stays
        });
        for (bridge, path) in now {
            if self
                .networks
                .get(&bridge)
                .is_some_and(|said| said.path == path)
            {
                continue;
            }
            let notice = network_notice(host_state, bridge, path);
            let before = self.networks.insert(bridge, notice.clone());
            handed_over.extend(before.map(|before| before.name));
            notices.push(Notice::Network(notice));
        }
        handed_over
    }

    fn compare_endpoints(
        &mut self,
        host_state: &HostState,
        held: &DesiredState,
        is_due: bool,
        notices: &mut Vec<Notice>,
    ) {
        for address in std::mem::take(&mut self.changed_endpoints) {
            let veth = held.veth_at(address);
            let said = self.endpoints.get(&address).map(|said| said.ifindex);
            if veth == said {
                continue;
            }
            let gone = self.endpoints.remove(&address).map(Notice::Detached);
            notices.extend(gone);
            let Some(ifindex) = veth else { continue };
            let owner = owner(host_state, address);
            if !owner.is_known && !is_due {
                self.changed_endpoints.insert(address);
                continue;
            }
            let attachment = Attachment {
                address,
                owner,
                device: device(host_state, ifindex),
                ifindex,
            };
            self.endpoints.insert(address, attachment.clone());
            notices.push(Notice::Attached(attachment));
        }
    }

    fn compare_ports(
        &mut self,
        host_state: &HostState,
        held: &DesiredState,
        is_due: bool,
        notices: &mut Vec<Notice>,
    ) {
        for port in std::mem::take(&mut self.changed_ports) {
            // A container's own address is no port of the host.
            let to = held.target_at(&port).filter(|to| to.ip() != port.ip);
            let said = self.ports.get(&port).map(|said| said.to);
            if to == said {
                continue;
            }
            let gone = self.ports.remove(&port).map(Notice::Unpublished);
            notices.extend(gone);
            let Some(to) = to else { continue };
            let owner = owner(host_state, to.ip());
            if !owner.is_known && !is_due {
                self.changed_ports.insert(port);
                continue;
            }
            let published = PublishedPort { port, to, owner };
            self.ports.insert(port, published.clone());
            notices.push(Notice::Published(published));
        }
    }
}

impl Notice {
    /// Who has the address that the notice is about.
    const fn owner(&self) -> Option<&Owner> {
        match self {
            Self::Published(published) | Self::Unpublished(published) => Some(&published.owner),
            Self::Attached(attachment) | Self::Detached(attachment) => Some(&attachment.owner),
            Self::Network(_) => None,
        }
    }
}

fn network_notice(host_state: &HostState, bridge: u32, path: NetworkPath) -> NetworkNotice {
    let device = device(host_state, bridge);
    let mut networks = host_state.networks.values();
    let network = networks.find(|network| network.bridge.as_ref() == Some(&device));
    NetworkNotice {
        name: network.map_or_else(|| device.clone(), |network| network.name.clone()),
        bridge: device,
        path,
    }
}

fn owner(host_state: &HostState, address: IpAddr) -> Owner {
    let Some((network, container)) = host_state.endpoint_at(address) else {
        return Owner::default();
    };
    let known = host_state.containers.get(container);
    Owner {
        is_known: known.is_some(),
        container: Some(known.map_or_else(|| container.to_string(), |known| known.name.clone())),
        network: host_state
            .networks
            .get(network)
            .map(|network| network.name.clone()),
    }
}

fn device(host_state: &HostState, index: u32) -> String {
    let link = host_state.links.get(&index);
    link.map_or_else(|| format!("#{index}"), |link| link.name.clone())
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Published(published) => write!(f, "published {published}"),
            Self::Unpublished(published) => write!(f, "unpublished {published}"),
            Self::Attached(attachment) => write!(f, "attached {attachment}"),
            Self::Detached(attachment) => write!(f, "detached {attachment}"),
            Self::Network(NetworkNotice { name, bridge, path }) => {
                write!(f, "network {name} ({bridge}): {path}")
            }
        }
    }
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { port, to, owner } = self;
        let host = SocketAddr::new(port.ip, port.port);
        write!(f, "{} {host} → {owner}{to}", port.proto)?;
        match &owner.network {
            Some(network) => write!(f, " ({network})"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            address,
            owner,
            device,
            ..
        } = self;
        write!(f, "{owner}{address}")?;
        if let Some(network) = &owner.network {
            write!(f, " ({network})")?;
        }
        write!(f, " at {device}")
    }
}

/// The container's name and a space, before its address; nothing if it has none.
impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.container {
            Some(container) => write!(f, "{container} "),
            None => Ok(()),
        }
    }
}

impl fmt::Display for NetworkPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.write_str("on the fast path"),
            Self::Follow(rule) => write!(f, "follows the kernel: {rule}"),
            Self::Off(rule) => write!(f, "left to the kernel: {rule}"),
            Self::Gone => f.write_str("gone"),
        }
    }
}

impl NetworkPath {
    fn of(left: &Left) -> Self {
        let why = left.why.clone();
        if left.is_followed {
            Self::Follow(why)
        } else {
            Self::Off(why)
        }
    }

    /// The word for programs, as in the JSON of `forwarder networks`.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Follow(_) => "follow",
            Self::Off(_) => "off",
            Self::Gone => "gone",
        }
    }

    /// The rule because of which the kernel decides.
    #[must_use]
    pub fn rule(&self) -> Option<&str> {
        match self {
            Self::Follow(rule) | Self::Off(rule) => Some(rule),
            Self::Own | Self::Gone => None,
        }
    }
}
