// SPDX-License-Identifier: MIT OR Apache-2.0
//! Notices of a host on which containers come and go, by the plans that the agent carries out.

use std::net::Ipv4Addr;

use forwarder_protocol::Proto;

use super::*;
use crate::desired::{Policy, desired};
use crate::desired_state::Observed;
use crate::diff::diff;
use crate::host_state::{
    Bound, Container, Endpoint, Link, Network, NetworkEndpoint, NetworkMode, PortBinding, ShimId,
    Subnet,
};

const BRIDGE: u32 = 3;

/// A host, the kernel, and the log.
#[derive(Default)]
struct Host {
    state: HostState,
    kernel: Observed,
    ledger: Ledger,
}

fn web(last: u8) -> IpAddr {
    [172, 18, 0, last].into()
}

impl Host {
    /// A host with the network `shop_back` on br-shop, after the agent's first sync.
    fn new() -> Self {
        let mut host = Self::default();
        let link = Link {
            index: BRIDGE,
            name: "br-shop".into(),
            kind: "bridge".into(),
            up: true,
            mtu: 1500,
            ..Link::default()
        };
        host.state.links.insert(BRIDGE, link);
        let network = Network {
            id: "n".into(),
            name: "shop_back".into(),
            driver: "bridge".into(),
            bridge: Some("br-shop".into()),
            subnets: vec![Subnet {
                address: [172, 18, 0, 0].into(),
                prefix_len: 16,
                gateway: Some([172, 18, 0, 1].into()),
            }],
            ..Network::default()
        };
        host.state.networks.insert("n".into(), network);
        host
    }

    fn network(&mut self) -> &mut Network {
        self.state.networks.get_mut(&"n".into()).unwrap()
    }

    /// Docker's part of a container: its endpoint, its veth with this index, its port 8000.
    fn connect(&mut self, name: &str, last: u8, ifindex: u32) {
        let (IpAddr::V4(address), id) = (web(last), name.to_owned()) else {
            unreachable!()
        };
        let endpoint = NetworkEndpoint {
            container: name.into(),
            ipv4: Some(address),
            ..NetworkEndpoint::default()
        };
        self.network().endpoints.insert(name.into(), endpoint);
        let link = Link {
            index: ifindex,
            name: format!("veth{ifindex}"),
            kind: "veth".into(),
            master: Some(BRIDGE),
            up: true,
            mtu: 1500,
            ..Link::default()
        };
        self.state.links.insert(ifindex, link);
        self.state.veths.insert(id.as_str().into(), ifindex);
    }

    fn start(&mut self, name: &str, last: u8, host_port: u16) {
        let endpoint = Endpoint {
            id: name.into(),
            network_name: "shop_back".into(),
            ipv4: match web(last) {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            },
            gateway_v4: Some([172, 18, 0, 1].into()),
            ..Endpoint::default()
        };
        let container = Container {
            id: name.into(),
            name: name.into(),
            running: true,
            endpoints: [("n".into(), endpoint)].into(),
            ports: vec![PortBinding {
                proto: Proto::Tcp,
                host_ip: Ipv4Addr::UNSPECIFIED.into(),
                host_port,
                container_port: 8000,
            }],
            published: [(Proto::Tcp, 8000)].into(),
            ..Container::default()
        };
        self.state.containers.insert(name.into(), container);
    }

    /// The container's end, as Docker and the kernel report it: nothing of it is left.
    fn end(&mut self, name: &str) {
        self.state.containers.remove(&name.into());
        self.network().endpoints.remove(&name.into());
        if let Some(ifindex) = self.state.veths.remove(&name.into()) {
            self.state.links.remove(&ifindex);
        }
    }

    /// A sync: the plan, applied and recorded; returns what is news.
    fn sync_if(&mut self, is_due: bool, accepts: impl Fn(&Change) -> bool) -> Vec<String> {
        let policy = Policy {
            keeps_rules: true,
            ..Policy::default()
        };
        let wanted = desired(&self.state, &policy, 1);
        for change in diff(&self.kernel, &wanted)
            .iter()
            .filter(|change| accepts(change))
        {
            self.kernel.apply(change);
            self.ledger.applied(change);
        }
        let held = &self.kernel.tables;
        let notices = if self.ledger.has_begun() {
            self.ledger.notices(&self.state, held, &wanted.left, is_due)
        } else {
            self.ledger.begin(&self.state, held, &wanted.left)
        };
        notices.iter().map(ToString::to_string).collect()
    }

    fn sync(&mut self) -> Vec<String> {
        self.sync_if(false, |_| true)
    }
}

const NETWORK: &str = "network shop_back (br-shop): on the fast path";
const ATTACHED: &str = "attached web 172.18.0.4 (shop_back) at veth7";
const DETACHED: &str = "detached web 172.18.0.4 (shop_back) at veth7";
const PUBLISHED: &str = "published tcp 0.0.0.0:8080 → web 172.18.0.4:8000 (shop_back)";
const UNPUBLISHED: &str = "unpublished tcp 0.0.0.0:8080 → web 172.18.0.4:8000 (shop_back)";

#[test]
fn container_comes_and_goes_by_a_line_each() {
    let mut host = Host::new();
    assert_eq!(host.sync(), [NETWORK]);
    host.connect("web", 4, 7);
    host.start("web", 4, 8080);
    assert_eq!(host.sync(), [ATTACHED, PUBLISHED]);
    assert_eq!(host.sync(), [""; 0], "what is said is said once");
    // Nothing that Docker still knows names what goes.
    host.end("web");
    assert_eq!(host.sync(), [DETACHED, UNPUBLISHED]);
    host.state.networks.clear();
    assert_eq!(host.sync(), ["network shop_back (br-shop): gone"]);
}

/// A later agent finds what an earlier one has applied, and knows it from then on.
#[test]
fn first_sync_knows_what_is_in_place() {
    let mut host = Host::new();
    host.connect("web", 4, 7);
    host.start("web", 4, 8080);
    host.sync();
    host.ledger = Ledger::default();
    assert_eq!(host.sync(), [NETWORK, ATTACHED, PUBLISHED]);
    let totals = Totals {
        networks: 1,
        left: 0,
        containers: 1,
        ports: 1,
    };
    assert_eq!(host.ledger.totals(), totals);
    host.end("web");
    assert_eq!(host.sync(), [DETACHED, UNPUBLISHED]);
}

/// What the kernel refuses is not in place, whatever is wished.
#[test]
fn refused_change_is_no_news() {
    let mut host = Host::new();
    host.sync();
    host.connect("web", 4, 7);
    host.start("web", 4, 8080);
    let refuses_ports = |change: &Change| change.publishes().is_none();
    assert_eq!(host.sync_if(false, refuses_ports), [ATTACHED]);
    assert_eq!(host.sync(), [PUBLISHED]);
}

/// Somebody has removed rows, and the agent applies them again.
#[test]
fn repeated_change_is_no_news() {
    let mut host = Host::new();
    host.connect("web", 4, 7);
    host.start("web", 4, 8080);
    host.sync();
    host.kernel = Observed::default();
    assert_eq!(host.sync(), [""; 0]);
}

/// A shim's port waits for Docker to say whose it is, but not for ever.
#[test]
fn notice_waits_for_the_name() {
    let mut host = Host::new();
    host.sync();
    host.connect("web", 4, 7);
    let port = HostPort {
        proto: Proto::Tcp,
        ip: Ipv4Addr::UNSPECIFIED.into(),
        port: 8080,
    };
    let bound = Bound {
        shim: ShimId(1),
        container_ip: web(4),
        container_port: 8000,
        orphan: false,
    };
    host.state.bound.insert(port, bound);
    assert_eq!(host.sync(), [""; 0]);
    let mut other = Host {
        state: host.state.clone(),
        kernel: host.kernel.clone(),
        ledger: host.ledger.clone(),
    };
    host.start("web", 4, 8080);
    assert_eq!(host.sync(), [ATTACHED, PUBLISHED]);
    let network = other.state.networks.get_mut(&"n".into()).unwrap();
    let endpoint = network.endpoints.get_mut(&"web".into()).unwrap();
    endpoint.container = "0123456789abcdef".into();
    let short = "published tcp 0.0.0.0:8080 → 0123456789ab 172.18.0.4:8000 (shop_back)";
    assert_eq!(other.sync_if(true, |_| true)[1], short);
}

/// The next container at an address is another one, even if it comes in the same sync.
#[test]
fn next_container_at_an_address_is_news() {
    let mut host = Host::new();
    host.connect("web", 4, 7);
    host.start("web", 4, 8080);
    host.sync();
    host.end("web");
    host.connect("db", 4, 9);
    host.start("db", 4, 8080);
    let news = host.sync();
    let attached = "attached db 172.18.0.4 (shop_back) at veth9";
    assert_eq!(news[..2], [DETACHED, attached]);
}

/// A network that changes hands is one line, and its containers and ports keep their names.
#[test]
fn network_left_to_the_kernel_names_the_rule() {
    let mut host = Host::new();
    host.connect("web", 4, 7);
    host.start("web", 4, 8080);
    host.sync();
    host.network().terms.network_mode = NetworkMode::Off;
    let left = "network shop_back (br-shop): left to the kernel: its mode is off";
    assert_eq!(host.sync(), [left]);
    let totals = Totals {
        left: 1,
        ..Totals::default()
    };
    assert_eq!(host.ledger.totals(), totals);
    host.network().terms.network_mode = NetworkMode::Own;
    assert_eq!(host.sync(), [NETWORK]);
    host.end("web");
    assert_eq!(host.sync(), [DETACHED, UNPUBLISHED]);
}

/// A routed network's ports are reached at the containers' own addresses: no port of the host.
#[test]
fn direct_port_is_no_published_port() {
    let mut host = Host::new();
    host.network().terms.mode = crate::host_state::GatewayMode::Routed;
    host.sync();
    host.connect("web", 4, 7);
    host.start("web", 4, 8080);
    assert_eq!(host.sync(), [ATTACHED]);
    assert_eq!(host.kernel.tables.published(), 1);
}
