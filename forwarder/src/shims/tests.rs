// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tests of which shim gets which reply when. A shim here is only the ends of its channels.

use forwarder_state::host_state::{
    Address, Container, Link, Listing, Network, NetworkEndpoint, PortBinding, Proto, Seen, Subnet,
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;

const PORT: HostPort = HostPort {
    proto: Proto::Tcp,
    ip: std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
    port: 8080,
};

struct Stage {
    host_state: HostState,
    shims: Shims,
    receivers: BTreeMap<u64, UnboundedReceiver<ShimReply>>,
    now: Instant,
}

impl Stage {
    /// Returns an agent that has run for some time, with Docker answering.
    fn new() -> Self {
        let now = Instant::now();
        let mut host_state = HostState::default();
        host_state.apply(Update::DockerUp {
            version: "20.10".into(),
        });
        host_state.seen = Seen {
            networks: true,
            containers: true,
            links: true,
            addresses: true,
            others: true,
        };
        host_state.apply(Update::Network(Box::new(network())));
        Self {
            host_state,
            shims: Shims::new(now),
            receivers: BTreeMap::new(),
            now: now + FINDING,
        }
    }

    fn event(&mut self, shim: u64, kind: ShimEventKind) -> bool {
        let shim = ShimId(shim);
        self.shims
            .handle(ShimEvent { shim, kind }, &mut self.host_state, self.now)
    }

    fn come(&mut self, shim: u64) {
        let (replies, receiver) = unbounded_channel();
        self.receivers.insert(shim, receiver);
        self.event(shim, ShimEventKind::Connected(replies));
    }

    /// Binds the port, to 172.17.0.LAST, and syncs.
    fn bind(&mut self, shim: u64, last: u8, orphan: bool) {
        self.come(shim);
        self.again(shim, last, orphan);
    }

    fn again(&mut self, shim: u64, last: u8, orphan: bool) {
        if self.event(
            shim,
            ShimEventKind::Request(ShimRequest::Bind(binding(PORT, last, orphan)), Ok(())),
        ) {
            self.shims.synced(|_| Ok(()));
        }
    }

    fn reclaim(&mut self, shim: u64, port: HostPort) {
        self.come(shim);
        self.event(
            shim,
            ShimEventKind::Request(ShimRequest::Reclaim(binding(port, 9, false)), Ok(())),
        );
    }

    fn hreceivers(&mut self, shim: u64) -> Option<ShimReply> {
        self.receivers.get_mut(&shim).unwrap().try_recv().ok()
    }

    /// Returns the port's target by the shims' claims.
    fn leads_to(&self) -> Option<String> {
        let bound = self.host_state.bound.get(&PORT)?;
        Some(bound.container_ip.to_string())
    }
}

fn binding(port: HostPort, last: u8, orphan: bool) -> Binding {
    Binding {
        proto: port.proto,
        host_ip: port.ip,
        host_port: port.port,
        container_ip: [172, 17, 0, last].into(),
        container_port: 80,
        orphan,
    }
}

/// Returns Docker's default network, 172.17.0.0/16, on which c1 is 172.17.0.2.
fn network() -> Network {
    let at = NetworkEndpoint {
        container: "c1".into(),
        ipv4: Some([172, 17, 0, 2].into()),
        ..NetworkEndpoint::default()
    };
    Network {
        id: "n1".into(),
        subnets: vec![Subnet {
            address: [172, 17, 0, 0].into(),
            prefix_len: 16,
            gateway: Some([172, 17, 0, 1].into()),
        }],
        endpoints: [("e1".into(), at)].into(),
        ..Network::default()
    }
}

/// Returns a running container that publishes the port.
fn publisher() -> Container {
    Container {
        id: "c1".into(),
        running: true,
        ports: vec![PortBinding {
            proto: PORT.proto,
            host_ip: PORT.ip,
            host_port: PORT.port,
            container_port: 80,
        }],
        published: [(PORT.proto, 80)].into(),
        name: "web".into(),
        ..Container::default()
    }
}

/// A bind is answered after the sync that puts its mapping in place.
#[test]
fn bind_is_answered_after_its_sync() {
    let mut stage = Stage::new();
    stage.come(1);
    let asks = |last| ShimEventKind::Request(ShimRequest::Bind(binding(PORT, last, false)), Ok(()));
    assert!(stage.event(1, asks(2)), "a sync is due");
    assert_eq!(stage.hreceivers(1), None);
    stage.shims.synced(|port| Err(format!("no {port}")));
    let no = ShimReply::Error("no 0.0.0.0:8080/tcp".into());
    assert_eq!(stage.hreceivers(1), Some(no));
    assert!(stage.event(1, asks(2)));
    stage.shims.synced(|_| Ok(()));
    assert_eq!(stage.hreceivers(1), Some(ShimReply::Ok(())));
    assert_eq!(stage.leads_to().unwrap(), "172.17.0.2");
}

#[test]
fn released_port_is_in_no_list() {
    let mut stage = Stage::new();
    stage
        .host_state
        .apply(Update::Containers(Listing::from(vec![publisher()])));
    stage.bind(1, 2, false);
    assert_eq!(stage.hreceivers(1), Some(ShimReply::Ok(())));
    assert!(stage.host_state.publishes(&PORT));
    assert!(stage.event(1, ShimEventKind::Request(ShimRequest::Unbind, Ok(()))));
    assert!(!stage.host_state.publishes(&PORT) && stage.leads_to().is_none());
    assert_eq!(stage.hreceivers(1), None);
    stage.shims.synced(|_| Ok(()));
    assert_eq!(stage.hreceivers(1), Some(ShimReply::Ok(())));
    assert!(
        stage.receivers.get_mut(&1).unwrap().is_closed(),
        "it may end"
    );
}

#[test]
fn dead_shim_keeps_what_docker_lists() {
    let mut stage = Stage::new();
    stage
        .host_state
        .apply(Update::Containers(Listing::from(vec![publisher()])));
    stage.bind(1, 2, false);
    assert!(stage.event(1, ShimEventKind::Disconnected));
    assert!(stage.leads_to().is_none() && stage.host_state.publishes(&PORT));
}

/// A port that is taken is refused while its shim lives.
#[test]
fn taken_port_is_refused_while_its_shim_lives() {
    let mut stage = Stage::new();
    stage.bind(1, 2, false);
    stage.bind(2, 3, false);
    let Some(ShimReply::Error(why)) = stage.hreceivers(2) else {
        panic!("no refusal")
    };
    assert_eq!(
        why,
        "0.0.0.0:8080/tcp is already published for container address 172.17.0.2"
    );
    assert_eq!(stage.leads_to().unwrap(), "172.17.0.2");
    stage.event(1, ShimEventKind::Disconnected);
    stage.again(2, 3, false);
    assert_eq!(stage.hreceivers(2), Some(ShimReply::Ok(())));
    assert_eq!(stage.leads_to().unwrap(), "172.17.0.3");
}

/// An orphan releases its port to the shim that reclaims it, and the mapping stays throughout.
#[test]
fn orphan_releases_to_a_reclaim_without_a_gap() {
    let mut stage = Stage::new();
    stage.bind(1, 2, true);
    stage.hreceivers(1);
    stage.reclaim(2, PORT);
    assert_eq!(stage.hreceivers(1), Some(ShimReply::Release(())));
    assert_eq!(stage.hreceivers(2), None, "the orphan still holds it");
    assert!(
        !stage.event(1, ShimEventKind::Disconnected),
        "nothing changes"
    );
    assert_eq!(stage.hreceivers(2), Some(ShimReply::Ok(())));
    assert_eq!(stage.leads_to().unwrap(), "172.17.0.2");
    stage.again(2, 3, false);
    assert_eq!(stage.leads_to().unwrap(), "172.17.0.3");
    // A claimant that dies leaves no mapping.
    stage.event(2, ShimEventKind::Disconnected);
    assert!(stage.leads_to().is_none());
}

/// A reclaim concerns all ports that overlap and nothing else.
#[test]
fn reclaim_concerns_overlapping_ports_only() {
    let mut stage = Stage::new();
    stage.bind(1, 2, true);
    stage.hreceivers(1);
    let on = |ip: [u8; 4], proto| HostPort {
        ip: ip.into(),
        proto,
        ..PORT
    };
    stage.reclaim(2, on([127, 0, 0, 1], Proto::Udp));
    assert_eq!(stage.hreceivers(1), None);
    let Some(ShimReply::Error(why)) = stage.hreceivers(2) else {
        panic!("no refusal")
    };
    assert_eq!(why, "no orphan holds 127.0.0.1:8080/udp");
    stage.reclaim(3, on([127, 0, 0, 1], Proto::Tcp));
    assert_eq!(stage.hreceivers(1), Some(ShimReply::Release(())));
    stage.event(1, ShimEventKind::Disconnected);
    assert_eq!(stage.hreceivers(3), Some(ShimReply::Ok(())));
    assert!(stage.leads_to().is_none());
}

#[test]
fn new_agent_waits_for_orphans() {
    let mut stage = Stage::new();
    stage.shims = Shims::new(stage.now);
    stage.reclaim(2, PORT);
    assert_eq!(stage.hreceivers(2), None);
    stage.bind(1, 2, true);
    assert_eq!(stage.hreceivers(1), Some(ShimReply::Release(())));
    stage.event(1, ShimEventKind::Disconnected);
    assert_eq!(stage.hreceivers(2), Some(ShimReply::Ok(())));
    // A reclaim fails when no orphan has appeared.
    stage.reclaim(3, HostPort { port: 81, ..PORT });
    assert_eq!(stage.hreceivers(3), None);
    stage.now += FINDING;
    stage.shims.review(&mut stage.host_state, stage.now);
    assert!(matches!(stage.hreceivers(3), Some(ShimReply::Error(_))));
}

/// Orphans are released when Docker has answered and lists no container for their port.
#[test]
fn orphans_unknown_to_docker_are_released() {
    let mut stage = Stage::new();
    stage
        .host_state
        .apply(Update::Containers(Listing::from(vec![publisher()])));
    stage.bind(1, 2, false);
    stage.hreceivers(1);
    let review = |stage: &mut Stage, later: Duration| {
        stage.now += later;
        stage.shims.review(&mut stage.host_state, stage.now);
        stage.hreceivers(1)
    };
    stage.again(1, 2, true);
    assert_eq!(review(&mut stage, GRACE), Some(ShimReply::Ok(())));
    assert_eq!(review(&mut stage, GRACE), None, "its container runs");
    stage
        .host_state
        .apply(Update::DockerDown { why: String::new() });
    stage
        .host_state
        .apply(Update::Containers(Listing::default()));
    assert_eq!(review(&mut stage, GRACE), None, "Docker is away");
    stage.host_state.apply(Update::DockerUp {
        version: "20.10".into(),
    });
    stage.again(1, 2, true);
    stage.hreceivers(1);
    assert_eq!(review(&mut stage, GRACE), Some(ShimReply::Release(())));
    assert_eq!(review(&mut stage, GRACE), None, "once");
}

#[test]
fn claim_without_its_socket_is_refused() {
    let mut stage = Stage::new();
    let asks = |orphan, proof: Proof| {
        ShimEventKind::Request(ShimRequest::Bind(binding(PORT, 3, orphan)), proof)
    };
    let why = || Err("no socket".to_owned());
    stage.come(1);
    assert!(!stage.event(1, asks(false, why())));
    assert_eq!(
        stage.hreceivers(1),
        Some(ShimReply::Error("no socket".into()))
    );
    // An orphan that has never shown a socket is refused too.
    assert!(!stage.event(1, asks(true, why())) && stage.leads_to().is_none());
    stage.again(1, 3, false);
    assert_eq!(stage.leads_to().unwrap(), "172.17.0.3");
    assert!(stage.event(1, asks(true, why())), "an orphan that has");
    assert!(!stage.event(1, asks(false, why())), "no orphan");
    stage.come(2);
    let reclaim = ShimRequest::Reclaim(binding(PORT, 9, false));
    assert!(!stage.event(2, ShimEventKind::Request(reclaim, why())));
    assert_eq!(
        stage.hreceivers(2),
        Some(ShimReply::Error("no socket".into()))
    );
    assert_eq!(stage.leads_to().unwrap(), "172.17.0.3");
}

#[test]
fn claim_waits_for_dockers_agreement() {
    let mut stage = Stage::new();
    let foreign = |port| Binding {
        container_ip: [198, 18, 1, 2].into(),
        ..binding(port, 2, false)
    };
    let refused = |stage: &mut Stage, binding: Binding, because: &str| {
        stage.come(1);
        assert!(!stage.event(
            1,
            ShimEventKind::Request(ShimRequest::Bind(binding), Ok(()))
        ));
        assert_eq!(stage.hreceivers(1), None, "Docker may be about to say it");
        stage.now += AGREEING;
        stage.shims.review(&mut stage.host_state, stage.now);
        let Some(ShimReply::Error(why)) = stage.hreceivers(1) else {
            panic!("no refusal")
        };
        assert_eq!(why, because);
        assert!(stage.leads_to().is_none());
    };
    refused(
        &mut stage,
        foreign(PORT),
        "198.18.1.2 is not in a Docker network",
    );
    let gateway = binding(PORT, 1, false);
    refused(&mut stage, gateway, "172.17.0.1 is not in a Docker network");
    stage
        .host_state
        .apply(Update::Container(Box::new(publisher())));
    let secret = Binding {
        container_port: 5432,
        ..binding(PORT, 2, false)
    };
    refused(
        &mut stage,
        secret,
        "Docker does not publish port 5432 of web",
    );

    // Docker reports the network a moment later.
    stage.come(1);
    assert!(!stage.event(
        1,
        ShimEventKind::Request(ShimRequest::Bind(foreign(PORT)), Ok(()))
    ));
    let mut late = network();
    late.id = "n2".into();
    late.subnets[0].address = [198, 18, 0, 0].into();
    stage.host_state.apply(Update::Network(Box::new(late)));
    assert!(stage.shims.decide(&mut stage.host_state, stage.now));
    assert_eq!(stage.leads_to().unwrap(), "198.18.1.2");
}

#[test]
fn claim_that_docker_contradicts_ends() {
    let mut stage = Stage::new();
    let other = HostPort { port: 81, ..PORT };
    let asks = || ShimEventKind::Request(ShimRequest::Bind(binding(other, 2, false)), Ok(()));
    stage.come(1);
    assert!(stage.event(1, asks()), "its container may be starting");
    stage.shims.synced(|_| Ok(()));
    assert_eq!(stage.hreceivers(1), Some(ShimReply::Ok(())));
    stage
        .host_state
        .apply(Update::Container(Box::new(publisher())));
    let review = |stage: &mut Stage| stage.shims.review(&mut stage.host_state, stage.now);
    assert!(!review(&mut stage), "it may be about to be listed");
    stage.now += CONTRADICTING;
    assert!(review(&mut stage) && stage.host_state.bound.is_empty());
    let why = "Docker does not publish port 80 of web as 0.0.0.0:81/tcp";
    assert_eq!(stage.hreceivers(1), Some(ShimReply::Error(why.into())));
    // From here on Docker's list overrides a claim.
    assert!(!stage.event(1, asks()));
    let mut listed = publisher();
    listed.ports[0].host_port = 81;
    stage.host_state.apply(Update::Container(Box::new(listed)));
    assert!(review(&mut stage));
    stage.now += CONTRADICTING;
    assert!(!review(&mut stage) && stage.host_state.bound.contains_key(&other));
}

#[test]
fn claim_without_docker_needs_a_bridge() {
    let mut stage = Stage::new();
    stage
        .host_state
        .apply(Update::DockerDown { why: String::new() });
    stage.host_state.networks.clear();
    let asks = || ShimEventKind::Request(ShimRequest::Bind(binding(PORT, 2, false)), Ok(()));
    stage.come(1);
    assert!(!stage.event(1, asks()));
    let bridge = Link {
        index: 7,
        name: "docker0".into(),
        kind: "bridge".into(),
        ..Link::default()
    };
    stage.host_state.apply(Update::Addresses(vec![Address {
        link: 7,
        address: [172, 17, 0, 1].into(),
        peer: None,
        prefix_len: 16,
        scope: 0,
        secondary: false,
    }]));
    stage.host_state.apply(Update::Link(bridge));
    assert!(stage.shims.decide(&mut stage.host_state, stage.now));
    assert_eq!(stage.leads_to().unwrap(), "172.17.0.2");
}

/// The port of a docker-proxy is closed until Docker lists it.
#[test]
fn docker_proxy_port_waits_for_dockers_list() {
    let mut stage = Stage::new();
    let port = HostPort {
        ip: std::net::Ipv6Addr::UNSPECIFIED.into(),
        ..PORT
    };
    let asks = || ShimEventKind::Request(ShimRequest::Proxy(binding(port, 2, false)), Ok(()));
    stage.come(1);
    assert!(stage.event(1, asks()), "a sync is due");
    assert_eq!(stage.hreceivers(1), None);
    stage.shims.synced(|port| Err(format!("no {port}")));
    assert_eq!(
        stage.hreceivers(1),
        Some(ShimReply::Error("no [::]:8080/tcp".into()))
    );
    assert!(stage.event(1, asks()));
    stage.shims.synced(|_| Ok(()));
    assert_eq!(stage.hreceivers(1), Some(ShimReply::Ok(())));
    // The shim has become another program by now.
    stage.event(1, ShimEventKind::Disconnected);
    assert!(!stage.shims.review(&mut stage.host_state, stage.now));
    assert!(stage.host_state.proxied.contains(&port));
    let mut container = publisher();
    container.ports[0].host_ip = port.ip;
    stage
        .host_state
        .apply(Update::Containers(Listing::from(vec![container])));
    // The container may have ended before the next review.
    assert!(stage.shims.decide(&mut stage.host_state, stage.now));
    assert!(stage.host_state.proxied.is_empty());
    // Docker never lists a port that it has given up. While Docker does not answer, its list proves
    // nothing.
    stage
        .host_state
        .apply(Update::Containers(Listing::from(Vec::new())));
    stage.come(2);
    assert!(stage.event(2, asks()));
    stage.now += LISTING;
    let why = "silent".to_owned();
    stage.host_state.apply(Update::DockerDown { why });
    assert!(!stage.shims.review(&mut stage.host_state, stage.now));
    let version = "20.10".to_owned();
    stage.host_state.apply(Update::DockerUp { version });
    assert!(stage.shims.review(&mut stage.host_state, stage.now));
    assert!(stage.host_state.proxied.is_empty());
    stage.come(3);
    let refused = ShimEventKind::Request(
        ShimRequest::Proxy(binding(port, 2, false)),
        Err("no".into()),
    );
    assert!(!stage.event(3, refused) && stage.host_state.proxied.is_empty());
    assert_eq!(stage.hreceivers(3), Some(ShimReply::Error("no".into())));
}
