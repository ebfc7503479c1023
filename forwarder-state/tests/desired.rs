// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel should hold, for host states that say it all in a few lines.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use forwarder_common::abi::{
    AllowedKey6, LinkKey, PortKey6, Published6, ServerKey, TrustKey, allowed, device, ingress,
    network,
};
use forwarder_common::family::{Be16, Be32, Be128, V4};
use forwarder_state::address::WireAddress as _;
use forwarder_state::desired::{Policy, desired, is_outside};
use forwarder_state::desired_state::{
    DesiredState, EndpointKey, Hook, Key6, Row6, SocketHook, XdpKind,
};
use forwarder_state::host_state::{
    Address, Bound, Container, Endpoint, GatewayMode, HostPort, HostState, Ingress, Link,
    LinkLayer, Network, NetworkEndpoint, NetworkOptions, PortBinding, Proto, ShimId, Subnet,
    Update,
};

const UPLINK: u32 = 2;
const BRIDGE: u32 = 3;
const VETH: u32 = 5;

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn link(index: u32, name: &str, kind: &str, master: Option<u32>) -> Link {
    let mac = Some([2, 0, 0, 0, 0, index as u8]);
    let (name, kind) = (name.into(), kind.into());
    Link {
        index,
        name,
        kind,
        master,
        mac,
        up: true,
        mtu: 1500,
        ..Link::default()
    }
}

fn address(link: u32, address: &str, prefix_len: u8) -> Address {
    Address {
        link,
        address: IpAddr::V4(ip(address)),
        peer: None,
        prefix_len,
        scope: 0,
        secondary: false,
    }
}

/// One uplink, docker0, and a running container at 172.17.0.2 that publishes 8080/tcp.
fn host_state() -> HostState {
    let mut host_state = HostState::default();
    host_state.seen.networks = true;
    for link in [
        link(1, "lo", "", None),
        link(UPLINK, "eth0", "", None),
        link(BRIDGE, "docker0", "bridge", None),
        link(VETH, "veth0a1b2c3", "veth", Some(BRIDGE)),
    ] {
        host_state.links.insert(link.index, link);
    }
    host_state.links.get_mut(&1).unwrap().layer = LinkLayer::Loopback;
    host_state
        .addresses
        .insert(1, vec![address(1, "127.0.0.1", 8)]);
    host_state
        .addresses
        .insert(UPLINK, vec![address(UPLINK, "198.18.1.1", 24)]);
    host_state
        .addresses
        .insert(BRIDGE, vec![address(BRIDGE, "172.17.0.1", 16)]);
    let at = NetworkEndpoint {
        container: "c1".into(),
        ipv4: Some(ip("172.17.0.2")),
        mac: Some([2, 0x42, 172, 17, 0, 2]),
        ..NetworkEndpoint::default()
    };
    let docker0 = Network {
        id: "n1".into(),
        name: "bridge".into(),
        driver: "bridge".into(),
        bridge: Some("docker0".into()),
        subnets: vec![Subnet {
            address: IpAddr::V4(ip("172.17.0.0")),
            prefix_len: 16,
            gateway: None,
        }],
        endpoints: [("e1".into(), at)].into(),
        ..Network::default()
    };
    host_state.networks.insert("n1".into(), docker0);
    let endpoint = Endpoint {
        id: "e1".into(),
        network_name: "bridge".into(),
        ipv4: Some(ip("172.17.0.2")),
        gateway_v4: Some(ip("172.17.0.1")),
        ..Endpoint::default()
    };
    let container = Container {
        id: "c1".into(),
        running: true,
        pid: 4242,
        endpoints: [("n1".into(), endpoint)].into(),
        ports: vec![PortBinding {
            proto: Proto::Tcp,
            host_ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            host_port: 8080,
            container_port: 80,
        }],
        published: [(Proto::Tcp, 80)].into(),
        ..Container::default()
    };
    host_state.containers.insert("c1".into(), container);
    host_state.veths.insert("e1".into(), VETH);
    host_state
}

fn derive(host_state: &HostState) -> DesiredState {
    desired(host_state, &Policy::default(), 1)
}

fn at(text: &str) -> EndpointKey<V4> {
    EndpointKey::Address(Be32::from_std(ip(text)))
}

#[test]
fn devices_have_their_kinds() {
    let tables = derive(&host_state());
    assert_eq!(tables.devices[&UPLINK].kind, device::OUTSIDE);
    assert_eq!(tables.devices[&BRIDGE].kind, device::BRIDGE);
    assert_eq!(tables.devices[&VETH].kind, device::NAMED_VETH);
    assert_eq!(tables.devices[&VETH].bridge, BRIDGE);
    assert_eq!(
        tables.devices[&VETH].mac,
        [2, 0, 0, 0, 0, BRIDGE as u8],
        "frames for the host carry the bridge's address"
    );
    assert_eq!(
        tables.devices[&1].kind,
        device::OTHER,
        "what others forward by loopback is their business"
    );
    let hooks: Vec<_> = tables
        .hooks
        .iter()
        .map(|&(device, hook)| (device, hook.program()))
        .collect();
    assert_eq!(
        hooks,
        [
            (UPLINK, "outside_in"),
            (UPLINK, "outside_out"),
            (BRIDGE, "bridge_in"),
            (BRIDGE, "bridge_out"),
            (VETH, "container_in"),
            (VETH, "container_out"),
        ]
    );
}

/// Ports of bridges and devices that are down are not outside.
#[test]
fn bridge_ports_and_down_devices_are_not_outside() {
    let mut host_state = host_state();
    let foreign = link(7, "virbr0", "bridge", None);
    let port = link(8, "tap0", "tun", Some(7));
    host_state
        .links
        .extend([(7, foreign.clone()), (8, port.clone())]);
    assert!(is_outside(&host_state, &foreign) && !is_outside(&host_state, &port));
    let down = Link {
        up: false,
        ..link(9, "eth1", "", None)
    };
    assert!(!is_outside(&host_state, &down));
    assert!(
        !is_outside(&host_state, &link(10, "ov-000", "bridge", None)),
        "swarm's"
    );
    let unlisted = link(13, "br-0123456789ab", "bridge", None);
    assert!(
        !is_outside(&host_state, &unlisted),
        "a bridge of Docker's that Docker has not listed yet"
    );
    assert!(is_outside(&host_state, &link(14, "br-lan", "bridge", None)));
    host_state.links.insert(11, link(11, "red", "vrf", None));
    assert!(
        is_outside(&host_state, &link(12, "eth2", "", Some(11))),
        "a VRF's device routes"
    );
}

/// Until Docker lists its networks, a bridge of veths may be one of them, whatever its name; of other
/// devices that are not hooked it is known that they are not.
#[test]
fn doubtful_bridges_have_no_row() {
    let mut host_state = host_state();
    let named = link(30, "mybr", "bridge", None);
    let port = link(31, "veth9", "veth", Some(30));
    let lan = link(32, "br-lan", "bridge", None);
    let tap = link(33, "tap0", "tun", Some(32));
    let overlay = link(34, "ov-000", "vxlan", None);
    for link in [named, port, lan, tap, overlay] {
        host_state.links.insert(link.index, link);
    }
    let kinds = |host_state: &HostState| {
        let devices = desired(host_state, &Policy::default(), 1).devices;
        [30, 32, 34].map(|index| devices.get(&index).map_or(0, |row| row.kind))
    };
    assert_eq!(
        kinds(&host_state),
        [device::OUTSIDE, device::OUTSIDE, device::OTHER]
    );
    host_state.seen.networks = false;
    assert_eq!(kinds(&host_state), [0, device::OUTSIDE, device::OTHER]);
}

/// A device without an Ethernet header has programs of its own.
#[test]
fn headerless_device_has_its_own_programs() {
    let mut host_state = host_state();
    let tun = Link {
        layer: LinkLayer::Raw,
        mac: None,
        ..link(7, "tun0", "tun", None)
    };
    host_state.links.insert(7, tun);
    let tables = derive(&host_state);
    assert_eq!(tables.devices[&7].ethernet, 0);
    assert!(tables.hooks.contains(&(7, Hook::OutsideInRaw)));
    assert!(tables.hooks.contains(&(7, Hook::OutsideOutRaw)));
}

/// Masquerading takes the address that the kernel's `inet_select_addr` would take.
#[test]
fn masquerade_address_is_as_inet_select_addr() {
    let mut host_state = host_state();
    let secondary = Address {
        secondary: true,
        ..address(UPLINK, "198.18.1.9", 24)
    };
    host_state.addresses.insert(
        UPLINK,
        vec![
            address(UPLINK, "198.18.1.1", 24),
            secondary,
            address(UPLINK, "198.18.7.1", 24),
        ],
    );
    let sources = derive(&host_state).v4.masq_addresses;
    let of = |net: &str, len| {
        sources
            .get(&(UPLINK, Be32::from_std(ip(net)), len))
            .copied()
    };
    assert_eq!(
        of("198.18.1.0", 24),
        Some(Be32::from_std(ip("198.18.1.1"))),
        "the primary, not the secondary"
    );
    assert_eq!(
        of("198.18.7.0", 24),
        Some(Be32::from_std(ip("198.18.7.1"))),
        "of the next hop's subnet"
    );
    assert_eq!(
        of("0.0.0.0", 0),
        Some(Be32::from_std(ip("198.18.1.1"))),
        "else the first"
    );
}

#[test]
fn masquerade_follows_the_peer_range() {
    let mut host_state = host_state();
    let by_peer = Address {
        peer: Some("203.0.113.2".parse().unwrap()),
        ..address(UPLINK, "192.0.2.7", 32)
    };
    let own = address(UPLINK, "198.18.1.1", 24);
    host_state.addresses.insert(UPLINK, vec![own, by_peer]);
    let sources = derive(&host_state).v4.masq_addresses;
    let of = |net: &str| sources.get(&(UPLINK, Be32::from_std(ip(net)), 32)).copied();
    assert_eq!(of("203.0.113.2"), Some(Be32::from_std(ip("192.0.2.7"))));
    assert_eq!(of("192.0.2.7"), None);
}

#[test]
fn device_without_address_borrows_one() {
    let mut host_state = host_state();
    host_state.links.insert(7, link(7, "eth1", "", None));
    let sources = derive(&host_state).v4.masq_addresses;
    assert_eq!(
        sources.get(&(7, Be32::default(), 0)),
        Some(&Be32::from_std(ip("198.18.1.1")))
    );
}

/// A container gets its packets by its veth once the veth is known.
#[test]
fn container_is_reached_by_its_known_veth() {
    let mut host_state = host_state();
    let endpoint = derive(&host_state).v4.endpoints[&at("172.17.0.2")];
    assert_eq!(endpoint.ifindex, VETH);
    assert_eq!(&endpoint.macs[..6], &[2, 0x42, 172, 17, 0, 2]);
    host_state.veths.clear();
    assert_eq!(
        derive(&host_state).devices[&VETH].kind,
        device::VETH,
        "anybody's so far"
    );
    assert_eq!(
        derive(&host_state).v4.endpoints[&at("172.17.0.2")].ifindex,
        0,
        "only the bridge reaches it"
    );
}

#[test]
fn new_endpoint_has_a_new_generation() {
    let mut host_state = host_state();
    let before = derive(&host_state);
    let network = host_state.networks.get_mut(&"n1".into()).unwrap();
    let at_old = network.endpoints.remove(&"e1".into()).unwrap();
    network.endpoints.insert("e2".into(), at_old);
    let container = host_state.containers.get_mut(&"c1".into()).unwrap();
    container.endpoints.get_mut(&"n1".into()).unwrap().id = "e2".into();
    let after = derive(&host_state);
    let key = at("172.17.0.2");
    assert_ne!(
        before.v4.endpoints[&key].generation,
        after.v4.endpoints[&key].generation
    );
    let port = before.v4.published.keys().next().unwrap();
    assert_eq!(
        before.v4.published[port], after.v4.published[port],
        "the same way is the same mapping; its flows end by their endpoint"
    );
    let default_endpoint = EndpointKey::Default(BRIDGE);
    assert_ne!(
        before.v4.endpoints[&default_endpoint].generation,
        after.v4.endpoints[&default_endpoint].generation,
        "flows made before anybody was known are nobody's"
    );
}

#[test]
fn only_running_containers_publish() {
    let mut host_state = host_state();
    assert_eq!(derive(&host_state).v4.published.len(), 1);
    host_state.containers.get_mut(&"c1".into()).unwrap().running = false;
    assert_eq!(derive(&host_state).v4.published.len(), 0);
}

/// Each protocol with ports is published under its number.
#[test]
fn protocols_are_published_by_their_number() {
    for (proto, number) in [(Proto::Tcp, 6), (Proto::Udp, 17), (Proto::Sctp, 132)] {
        let mut host_state = host_state();
        for container in host_state.containers.values_mut() {
            container.ports[0].proto = proto;
        }
        let tables = derive(&host_state);
        let numbers: Vec<u16> = tables.v4.published.keys().map(|key| key.proto).collect();
        assert_eq!(numbers, [number]);
    }
}

/// What a shim has bound comes before what Docker lists.
#[test]
fn shim_binding_precedes_dockers_list() {
    let mut host_state = host_state();
    let listed = derive(&host_state).v4.published;
    let port = host_state.containers[&"c1".into()].ports[0].host();
    let bound = Bound {
        shim: ShimId(1),
        container_ip: IpAddr::V4(ip("172.17.0.2")),
        container_port: 80,
        orphan: false,
    };
    host_state.apply(Update::Bound(port, bound));
    assert_eq!(derive(&host_state).v4.published, listed, "the same mapping");
    let container_ip = IpAddr::V4(ip("172.17.0.9"));
    host_state.apply(Update::Bound(
        port,
        Bound {
            container_ip,
            ..bound
        },
    ));
    let (key, moved) = derive(&host_state).v4.published.pop_first().unwrap();
    assert_eq!(moved.addr, Be32::from_std(ip("172.17.0.9")));
    assert_ne!(moved.generation, listed[&key].generation);
    host_state.apply(Update::ShimGone(ShimId(1)));
    assert_eq!(
        derive(&host_state).v4.published,
        listed,
        "Docker's word counts again"
    );
    host_state.apply(Update::Bound(port, bound));
    host_state.apply(Update::Unbound(ShimId(1)));
    assert!(
        derive(&host_state).v4.published.is_empty(),
        "in no list any more"
    );
}

#[test]
fn network_options_become_flags() {
    let mut host_state = host_state();
    let flags = |host_state: &HostState| derive(host_state).v4.networks[&BRIDGE].flags;
    assert_eq!(flags(&host_state), network::MASQUERADE);
    assert_eq!(
        derive(&host_state).v4.networks[&BRIDGE].gateway,
        Be32::from_std(ip("172.17.0.1"))
    );
    let docker0 = host_state.networks.get_mut(&"n1".into()).unwrap();
    docker0.internal = true;
    (docker0.terms.icc, docker0.terms.masquerade) = (false, false);
    assert_eq!(
        flags(&host_state),
        network::INTERNAL | network::ICC_DISABLED
    );
}

fn terms(host_state: &mut HostState) -> &mut NetworkOptions {
    &mut host_state.networks.get_mut(&"n1".into()).unwrap().terms
}

/// The published keys, as address and port.
fn published(tables: &DesiredState) -> Vec<(Be32, u16)> {
    let keys = tables.v4.published.keys();
    keys.map(|key| (key.addr, key.port.get())).collect()
}

/// A gateway mode sets how containers are reached.
#[test]
fn gateway_mode_sets_how_containers_are_reached() {
    let mut host_state = host_state();
    let own = (Be32::from_std(ip("172.17.0.2")), 80);
    let host = (Be32::default(), 8080);
    let mut derive_as = |mode| {
        terms(&mut host_state).mode = mode;
        let tables = derive(&host_state);
        (tables.v4.networks[&BRIDGE].flags, published(&tables))
    };
    assert_eq!(
        derive_as(GatewayMode::Nat),
        (network::MASQUERADE, vec![host])
    );
    assert_eq!(derive_as(GatewayMode::Routed), (network::ROUTED, vec![own]));
    let unprotected = network::MASQUERADE | network::UNPROTECTED;
    assert_eq!(
        derive_as(GatewayMode::NatUnprotected),
        (unprotected, vec![host, own])
    );
    let (flags, _) = derive_as(GatewayMode::Isolated);
    assert_eq!(
        flags & !network::MASQUERADE,
        network::INTERNAL | network::ISOLATED
    );
}

/// A routed network is reached also where it is not the container's gateway network.
#[test]
fn routed_network_is_reached_if_not_the_gateway() {
    let mut host_state = host_state();
    terms(&mut host_state).mode = GatewayMode::Routed;
    let container = host_state.containers.get_mut(&"c1".into()).unwrap();
    let other = Endpoint {
        id: "e2".into(),
        network_name: "a".into(),
        ipv4: Some(ip("172.18.0.2")),
        gateway_v4: Some(ip("172.18.0.1")),
        ..Endpoint::default()
    };
    container.endpoints.insert("n2".into(), other);
    assert_eq!(
        published(&derive(&host_state)),
        [
            (Be32::default(), 8080),
            (Be32::from_std(ip("172.17.0.2")), 80)
        ]
    );
}

#[test]
fn container_is_seen_by_one_published_port() {
    let mut host_state = host_state();
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let own = IpAddr::V4(ip("198.18.1.1"));
    let mut seen = |bindings: &[(IpAddr, u16)]| {
        let ports = bindings.iter().map(|&(host_ip, host_port)| PortBinding {
            proto: Proto::Udp,
            host_ip,
            host_port,
            container_port: 5060,
        });
        host_state.containers.get_mut(&"c1".into()).unwrap().ports = ports.collect();
        let policy = Policy {
            direct_routing: true,
            ..Policy::default()
        };
        let rows = desired(&host_state, &policy, 1).v4.seen_as;
        let row = |(key, port): (ServerKey<_>, u32)| {
            assert_eq!(
                (key.addr, key.proto),
                (Be32::from_std(ip("172.17.0.2")), 17)
            );
            assert_eq!(key.port, Be16::new(5060));
            (key.at, port)
        };
        rows.into_iter().map(row).collect::<Vec<_>>()
    };
    let at = |address: IpAddr| match address {
        IpAddr::V4(address) => Be32::from_std(address),
        IpAddr::V6(_) => unreachable!(),
    };
    assert_eq!(seen(&[(any, 9000)]), [(at(any), 9000)]);
    // The lowest by number, not by the order of its bytes.
    assert_eq!(
        seen(&[(any, 9000), (any, 767), (any, 1023)]),
        [(at(any), 767)]
    );
    // But its own number first, which takes no row.
    assert_eq!(seen(&[(any, 9000), (any, 5060), (any, 767)]), []);
    let both = seen(&[(any, 9000), (own, 9001)]);
    assert_eq!(both.len(), 2);
    assert!(both.contains(&(at(any), 9000)) && both.contains(&(at(own), 9001)));
}

/// Published ports are reached by direct routing where that is allowed.
#[test]
fn allowed_direct_routing_reaches_ports() {
    let mut host_state = host_state();
    terms(&mut host_state).trusted = vec!["eth0".into(), "eth9".into()];
    let tables = derive(&host_state);
    let trusted = TrustKey {
        bridge: BRIDGE,
        ifindex: UPLINK,
    };
    assert_eq!(tables.trusted, [trusted].into(), "eth9 is not there");
    assert_eq!(published(&tables).len(), 2);
    terms(&mut host_state).trusted.clear();
    let policy = Policy {
        direct_routing: true,
        ..Policy::default()
    };
    let tables = desired(&host_state, &policy, 1);
    assert_ne!(tables.v4.networks[&BRIDGE].flags & network::DIRECT, 0);
    assert_eq!(published(&tables).len(), 2);
}

#[test]
fn network_keeps_its_requested_source() {
    let mut host_state = host_state();
    assert_eq!(
        derive(&host_state).v4.networks[&BRIDGE].source,
        Be32::default()
    );
    terms(&mut host_state).host_ipv4 = Some(ip("198.18.1.9"));
    let source = derive(&host_state).v4.networks[&BRIDGE].source;
    assert_eq!(source, Be32::from_std(ip("198.18.1.9")));
}

/// A list of clients has a number that changes with the list.
#[test]
fn client_list_number_changes_with_the_list() {
    let mut host_state = host_state();
    assert_eq!(derive(&host_state).policy, 0);
    let list = |range: &str| Ingress {
        allow: vec![range.parse().unwrap()],
        deny: Vec::new(),
    };
    host_state.containers.get_mut(&"c1".into()).unwrap().ingress = list("198.18.0.0/15");
    let first = derive(&host_state);
    let of_port = first.v4.published.values().next().unwrap().policy;
    assert_ne!(of_port, 0);
    assert_eq!(first.v4.networks[&BRIDGE].policy, 0);
    terms(&mut host_state).ingress = list("198.19.0.0/16");
    let second = derive(&host_state);
    assert!(second.policy != first.policy && first.policy != 0);
    let of_network = second.v4.networks[&BRIDGE].policy;
    let lists: Vec<_> = second.v4.ingress.keys().map(|(list, ..)| *list).collect();
    assert!(lists.contains(&of_port) && lists.contains(&of_network));
}

/// Links open exposed ports where containers do not reach each other otherwise.
#[test]
fn links_open_exposed_ports_without_icc() {
    let mut host_state = host_state();
    let mut child = host_state.containers[&"c1".into()].clone();
    (child.id, child.name) = ("c2".into(), "db".into());
    child.exposed = [(Proto::Tcp, 5432)].into();
    child.endpoints.get_mut(&"n1".into()).unwrap().ipv4 = Some(ip("172.17.0.3"));
    host_state.containers.insert("c2".into(), child);
    let parent = host_state.containers.get_mut(&"c1".into()).unwrap();
    parent.links.insert("db".into());
    assert!(
        derive(&host_state).v4.links.is_empty(),
        "they reach each other"
    );
    terms(&mut host_state).icc = false;
    let open = LinkKey {
        parent: Be32::from_std(ip("172.17.0.2")),
        child: Be32::from_std(ip("172.17.0.3")),
        port: Be16::new(5432),
        proto: 6,
    };
    assert_eq!(derive(&host_state).v4.links, [open].into());
    host_state.containers.get_mut(&"c2".into()).unwrap().running = false;
    assert!(derive(&host_state).v4.links.is_empty());
}

/// Networks of other drivers and without their bridges are left alone.
#[test]
fn other_drivers_and_missing_bridges_are_ignored() {
    let mut host_state = host_state();
    let mut overlay = host_state.networks[&"n1".into()].clone();
    (overlay.id, overlay.driver) = ("n2".into(), "overlay".into());
    host_state.networks.insert("n2".into(), overlay);
    assert_eq!(derive(&host_state).v4.networks.len(), 1);
    host_state.networks.get_mut(&"n1".into()).unwrap().bridge = Some("br-none".into());
    assert_eq!(derive(&host_state).v4.networks.len(), 0);
}

#[test]
fn loopback_range_is_never_local_on_devices() {
    let locals = derive(&host_state()).v4.host_addresses;
    let has = |address| locals.contains(&(Be32::from_std(ip(address)), 32));
    assert!(has("198.18.1.1") && has("172.17.0.1") && !has("127.0.0.1"));
}

#[test]
fn xdp_follows_the_policy() {
    let mut host_state = host_state();
    host_state.links.get_mut(&VETH).unwrap().peer = Some(forwarder_state::host_state::Peer {
        index: 4,
        ..forwarder_state::host_state::Peer::default()
    });
    let policy = Policy {
        xdp: [(UPLINK, XdpKind::Native)].into(),
        ..Policy::default()
    };
    let tables = desired(&host_state, &policy, 1);
    assert!(tables.hooks.contains(&(UPLINK, Hook::Uplink)));
    assert_eq!(tables.xdp_devmap[&VETH].index, 4, "the far end is prepared");
    assert!(
        derive(&host_state).xdp_devmap.is_empty(),
        "and left alone where no XDP runs"
    );
}

/// A port of a bridge that belongs to no known container has the kind `PORT`, whatever its device
/// is.
#[test]
fn unknown_bridge_port_has_kind_port() {
    for (name, kind) in [
        ("port0", "veth"),
        ("tap0", "tun"),
        ("eth1", ""),
        ("vethx", "veth"),
    ] {
        let mut host_state = host_state();
        host_state.veths.clear();
        let port = host_state.links.get_mut(&VETH).unwrap();
        (port.name, port.kind) = (name.to_owned(), kind.to_owned());
        let tables = derive(&host_state);
        assert_eq!(tables.devices[&VETH].kind, device::PORT, "{name}");
        assert!(tables.hooks.contains(&(VETH, Hook::ContainerIn)), "{name}");
    }
}

/// What the kernel routes to the host is local.
#[test]
fn locally_routed_addresses_are_local() {
    let mut host_state = host_state();
    let range = (Ipv4Addr::new(203, 0, 113, 0), 24);
    host_state.routing.locals = std::sync::Arc::new([range].into());
    assert!(
        derive(&host_state)
            .v4
            .host_addresses
            .contains(&(Be32::from_std(range.0), 24))
    );
}

/// The socket programs are those that the kernel takes.
#[test]
fn socket_programs_are_those_the_kernel_takes() {
    let policy = Policy {
        sockets: [SocketHook::Connect4, SocketHook::Getpeername4].into(),
        ..Policy::default()
    };
    assert_eq!(desired(&host_state(), &policy, 1).sockets, policy.sockets);
    assert!(derive(&host_state()).sockets.is_empty());
}

/// Who may ask port 8080/tcp of any IPv6 address.
fn published6(tables: &DesiredState) -> Option<Published6> {
    let key = PortKey6 {
        addr: Be128::ANY,
        port: Be16::new(8080),
        proto: 6,
    };
    match tables.ipv6.get(&Key6::Published(key))? {
        Row6::Published(row) => Some(*row),
        row => panic!("{row:?}"),
    }
}

/// What a list says of each range, by its prefix length.
fn clients(tables: &DesiredState, list: u32) -> Vec<(u8, Row6)> {
    let rows = tables.ipv6.iter();
    rows.filter_map(|(key, row)| match key {
        Key6::Ingress(key, len) if key.list == list => Some((*len, *row)),
        _ => None,
    })
    .collect()
}

#[test]
fn ipv6_ports_have_the_same_lists() {
    let mut host_state = host_state();
    assert_eq!(published6(&derive(&host_state)), None, "published for IPv4");
    let ports = &mut host_state.containers.get_mut(&"c1".into()).unwrap().ports;
    ports[0].host_ip = Ipv6Addr::UNSPECIFIED.into();
    let tables = derive(&host_state);
    let open = Published6 {
        policy: 0,
        bridges: [BRIDGE, 0],
    };
    assert_eq!(published6(&tables), Some(open));
    assert!(!tables.lists6 && clients(&tables, 0).is_empty());
    // A list of the network's is asked by its bridge.
    let range = "2001:db8::/32".parse().unwrap();
    let list = Ingress {
        allow: vec![range],
        deny: Vec::new(),
    };
    terms(&mut host_state).ingress = list.clone();
    let tables = derive(&host_state);
    assert_eq!(published6(&tables), Some(open));
    let id = tables.v4.networks[&BRIDGE].policy;
    let expected = [(0, ingress::DENY), (32, ingress::ALLOW)];
    let expected = expected.map(|(len, word)| (len, Row6::Index(word)));
    assert!(tables.lists6);
    assert_eq!(clients(&tables, id), expected);
    terms(&mut host_state).ingress = Ingress::default();
    host_state.containers.get_mut(&"c1".into()).unwrap().ingress = list;
    let tables = derive(&host_state);
    let row = published6(&tables).unwrap();
    assert!(tables.lists6 && row.policy == id);
    assert_eq!(clients(&tables, id), expected);
    // The network that leads to it by IPv6 counts too.
    let mut other = host_state.networks[&"n1".into()].clone();
    (other.id, other.bridge) = ("n2".into(), Some("br-other".into()));
    host_state.networks.insert("n2".into(), other);
    host_state
        .links
        .insert(9, link(9, "br-other", "bridge", None));
    let by = Endpoint {
        id: "e2".into(),
        network_name: "other".into(),
        gateway_v6: Some("fd00::1".parse().unwrap()),
        ..Endpoint::default()
    };
    let container = host_state.containers.get_mut(&"c1".into()).unwrap();
    container.endpoints.insert("n2".into(), by);
    assert_eq!(
        published6(&derive(&host_state)).unwrap().bridges,
        [BRIDGE, 9]
    );
}

#[test]
fn ipv6_port_is_closed_until_docker_lists_it() {
    let mut host_state = host_state();
    let port = HostPort {
        proto: Proto::Tcp,
        ip: Ipv6Addr::UNSPECIFIED.into(),
        port: 8080,
    };
    host_state.apply(Update::Proxied(port));
    let tables = derive(&host_state);
    let row = published6(&tables).unwrap();
    assert_eq!(
        clients(&tables, row.policy),
        [(0, Row6::Index(ingress::DENY))]
    );
    assert!(tables.lists6);
    let ports = &mut host_state.containers.get_mut(&"c1".into()).unwrap().ports;
    ports[0].host_ip = port.ip;
    assert_eq!(published6(&derive(&host_state)).unwrap().policy, 0);
    host_state.apply(Update::ProxyKnown(port));
    host_state.containers.clear();
    assert_eq!(published6(&derive(&host_state)), None);
}

/// Allowed IPv6 sources are kept by bridge and by veth.
#[test]
fn allowed_ipv6_sources_are_per_bridge_and_veth() {
    let mut host_state = host_state();
    let range = |text: &str| text.parse().unwrap();
    let container = host_state.containers.get_mut(&"c1".into()).unwrap();
    container.allowed_sources = vec![range("fd00:77::/64"), range("10.8.0.0/24")];
    terms(&mut host_state).allowed_sources = vec![range("fd00:78::/32"), range("10.9.0.0/24")];
    let rows = |host_state: &HostState| {
        let tables = derive(host_state);
        let rows = tables.ipv6.into_iter().filter_map(|(key, row)| match key {
            Key6::Allowed(AllowedKey6 { device, .. }, len) => Some((device, len, row)),
            _ => None,
        });
        rows.collect::<Vec<_>>()
    };
    assert!(rows(&host_state).is_empty(), "the network has no IPv6");
    let network = host_state.networks.get_mut(&"n1".into()).unwrap();
    network.subnets.push(Subnet {
        address: "fd00:17::".parse().unwrap(),
        prefix_len: 64,
        gateway: None,
    });
    let word = |word| Row6::Index(word);
    let expected = [
        (BRIDGE, 32, word(allowed::EACH)),
        (BRIDGE, 64, word(allowed::ONE)),
        (VETH, 64, word(allowed::ONE)),
    ];
    let mut rows = rows(&host_state);
    rows.sort_by_key(|(device, len, _)| (*device, *len));
    assert_eq!(rows, expected);
}
