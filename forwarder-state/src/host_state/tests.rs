// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host state's laws: updates in any order, gateway choice, veth matching.
use super::*;

const BRIDGE: u32 = 3;

fn net(name: &str) -> Network {
    Network {
        id: name.into(),
        name: name.to_owned(),
        driver: "bridge".to_owned(),
        bridge: Some(format!("br-{name}")),
        ..Network::default()
    }
}

/// Returns a network with one endpoint of container `container`, whose hardware address ends in
/// `mac`.
fn net_with(name: &str, container: &str, mac: u8) -> Network {
    let endpoint = NetworkEndpoint {
        container: container.into(),
        mac: Some([2, 0, 0, 0, 0, mac]),
        ..Default::default()
    };
    Network {
        endpoints: [(format!("{name}-{container}").as_str().into(), endpoint)].into(),
        ..net(name)
    }
}

fn container(id: &str, netns: Option<NetnsId>) -> Update {
    Update::Container(Box::new(Container {
        id: id.into(),
        running: true,
        netns,
        ..Container::default()
    }))
}

fn bridge(name: &str, index: u32) -> Update {
    Update::Link(Link {
        index,
        name: format!("br-{name}"),
        kind: "bridge".to_owned(),
        ..Link::default()
    })
}

fn veth(index: u32, netns: Option<NetnsId>, mac: u8) -> Update {
    let peer = Peer {
        index: 2,
        netns,
        name: None,
        mac: Some([2, 0, 0, 0, 0, mac]),
    };
    Update::Link(Link {
        index,
        name: format!("veth{index}"),
        kind: "veth".to_owned(),
        master: Some(BRIDGE),
        peer: Some(peer),
        ..Link::default()
    })
}

fn host_state(updates: impl IntoIterator<Item = Update>) -> HostState {
    let mut host_state = HostState::default();
    for update in updates {
        host_state.apply(update);
    }
    host_state
}

#[test]
fn repeated_update_changes_nothing() {
    let mut host_state = HostState::default();
    for update in [
        Update::DockerUp {
            version: "20.10.24".to_owned(),
        },
        Update::Networks(vec![net("web")].into()),
        Update::Network(Box::new(net("db"))),
        Update::Containers(Listing::default()),
        container("c1", Some(4)),
        Update::Links(Vec::new()),
        bridge("web", BRIDGE),
        Update::Addresses(Vec::new()),
    ] {
        assert!(host_state.apply(update.clone()), "{update:?} is news");
        assert!(!host_state.apply(update.clone()), "{update:?} is old");
    }
    for update in [
        Update::NetworkGone("db".into()),
        Update::ContainerGone("c1".into()),
        Update::LinkGone(BRIDGE),
    ] {
        assert!(host_state.apply(update.clone()));
        assert!(!host_state.apply(update));
    }
    assert!(!host_state.apply(Update::NetnsGone(9)));
}

/// The host state is complete once every list has come, even an empty one.
#[test]
fn host_state_is_complete_after_every_list() {
    let lists = [
        Update::Networks(Listing::default()),
        Update::Containers(Listing::default()),
        Update::Links(Vec::new()),
        Update::Addresses(Vec::new()),
    ];
    for missing in 0..lists.len() {
        let others = lists
            .iter()
            .enumerate()
            .filter(|(i, _)| *i != missing)
            .map(|(_, update)| update.clone());
        assert!(!host_state(others).is_complete());
    }
    assert!(host_state(lists).is_complete());
}

#[test]
fn missing_daemon_removes_nothing() {
    let mut host_state = host_state([
        Update::DockerUp {
            version: "1".to_owned(),
        },
        Update::Network(Box::new(net("web"))),
        container("c1", None),
    ]);
    let before = host_state.clone();
    assert!(host_state.apply(Update::DockerDown {
        why: "restart".to_owned()
    }));
    assert_eq!(
        HostState {
            docker: before.docker.clone(),
            ..host_state
        },
        before
    );
}

/// A full list replaces what was known, but keeps what could not be read.
#[test]
fn full_list_keeps_what_was_unreadable() {
    let mut host_state = host_state([
        Update::Network(Box::new(net("old"))),
        Update::Network(Box::new(net("broken"))),
        container("locked", Some(1)),
        container("gone", None),
    ]);
    host_state.apply(Update::Networks(Listing {
        list: vec![net("web")],
        unread: vec!["broken".into()],
    }));
    assert_eq!(
        host_state
            .networks
            .keys()
            .map(|id| id.0.as_str())
            .collect::<Vec<_>>(),
        ["broken", "web"]
    );
    let list = vec![Container {
        id: "new".into(),
        ..Container::default()
    }];
    host_state.apply(Update::Containers(Listing {
        list,
        unread: vec!["locked".into(), "unheard".into()],
    }));
    assert_eq!(
        host_state
            .containers
            .keys()
            .map(|id| id.0.as_str())
            .collect::<Vec<_>>(),
        ["locked", "new"]
    );
}

/// Addresses keep the kernel's order and go with their link.
#[test]
fn addresses_keep_order_and_go_with_their_link() {
    let address = |link, last, secondary| Address {
        link,
        address: [198, 18, 0, last].into(),
        peer: None,
        prefix_len: 24,
        scope: 0,
        secondary,
    };
    let list = vec![
        address(7, 9, false),
        address(8, 1, false),
        address(7, 2, true),
    ];
    let mut host_state = host_state([Update::Addresses(list)]);
    assert_eq!(
        host_state.addresses[&7]
            .iter()
            .map(|a| a.address.to_string())
            .collect::<Vec<_>>(),
        ["198.18.0.9", "198.18.0.2"]
    );
    assert!(host_state.apply(Update::LinkGone(7)));
    assert_eq!(host_state.addresses.keys().collect::<Vec<_>>(), [&8]);
}

/// The gateway is the one that IPAM names, or else the bridge's own address.
#[test]
fn gateway_is_from_ipam_or_the_bridge() {
    let subnet = |gateway| Subnet {
        address: [172, 17, 0, 0].into(),
        prefix_len: 16,
        gateway,
    };
    let mut network = Network {
        subnets: vec![subnet(None)],
        ..net("web")
    };
    let own = |address: [u8; 4]| Address {
        link: BRIDGE,
        address: address.into(),
        peer: None,
        prefix_len: 16,
        scope: 0,
        secondary: false,
    };
    let host_state = host_state([
        bridge("web", BRIDGE),
        Update::Addresses(vec![own([169, 254, 1, 1]), own([172, 17, 0, 1])]),
    ]);
    assert_eq!(
        host_state.gateway(&network, Family::V4),
        Some([172, 17, 0, 1].into())
    );
    assert_eq!(host_state.gateway(&network, Family::V6), None);
    network.subnets = vec![subnet(Some([172, 17, 255, 254].into()))];
    assert_eq!(
        host_state.gateway(&network, Family::V4),
        Some([172, 17, 255, 254].into())
    );
}

#[test]
fn subnets_contain_their_addresses() {
    let subnet = |address: &str, prefix_len| Subnet {
        address: address.parse().unwrap(),
        prefix_len,
        gateway: None,
    };
    let inside = |s: &Subnet, address: &str| s.contains(address.parse().unwrap());
    let v4 = subnet("172.17.0.0", 16);
    assert!(
        inside(&v4, "172.17.255.255")
            && !inside(&v4, "172.18.0.0")
            && !inside(&v4, "::ffff:172.17.0.1")
    );
    assert!(
        inside(&subnet("0.0.0.0", 0), "255.255.255.255")
            && !inside(&subnet("10.0.0.1", 32), "10.0.0.2")
    );
    let v6 = subnet("2001:db8:0:1::", 64);
    assert!(
        inside(&v6, "2001:db8:0:1::2")
            && !inside(&v6, "2001:db8:0:2::2")
            && inside(&subnet("::", 0), "ff::")
    );
}

/// Returns which of the networks (name, v4 gateway, v6 gateway, priority, internal) is the gateway
/// of `family`.
fn chosen(family: Family, attached: &[(&str, bool, bool, i64, bool)]) -> Option<String> {
    let mut container = Container::default();
    let mut networks = BTreeMap::new();
    for &(name, v4, v6, gateway_priority, internal) in attached {
        let endpoint = Endpoint {
            network_name: name.to_owned(),
            gateway_v4: v4.then_some([172, 17, 0, 1].into()),
            gateway_v6: v6.then_some([0xfd00, 0, 0, 0, 0, 0, 0, 1].into()),
            gateway_priority,
            ..Endpoint::default()
        };
        // The ids are in the reverse order of the names, so that an order by ids fails the test.
        let id = NetworkId(
            name.bytes()
                .map(|b| char::from(b'z' + b'a' - b.clamp(b'a', b'z')))
                .collect(),
        );
        networks.insert(
            id.clone(),
            Network {
                internal,
                ..net(name)
            },
        );
        container.endpoints.insert(id, endpoint);
    }
    container
        .gateway_endpoint(family, &networks)
        .map(|(_, endpoint)| endpoint.network_name.clone())
}

#[test]
fn gateway_endpoint_follows_dockers_order() {
    use Family::{V4, V6};
    let expect = |family, attached: &[_], name: &str| {
        assert_eq!(chosen(family, attached).as_deref(), Some(name));
    };
    expect(
        V4,
        &[
            ("web", true, false, 0, false),
            ("db", true, false, 0, false),
        ],
        "db",
    );
    expect(
        V4,
        &[("web", true, true, 0, false), ("db", true, false, 0, false)],
        "web",
    );
    expect(
        V4,
        &[("web", true, false, 1, false), ("db", true, true, 0, false)],
        "web",
    );
    expect(
        V4,
        &[
            ("web", true, false, 0, false),
            ("db", true, true, -1, false),
        ],
        "web",
    );
    expect(
        V4,
        &[("web", true, false, 0, false), ("db", true, true, 9, true)],
        "web",
    );
    expect(
        V4,
        &[
            ("web", true, false, 0, false),
            ("docker_gwbridge", true, true, 0, false),
        ],
        "web",
    );
    expect(
        V4,
        &[("docker_gwbridge", true, false, 0, false)],
        "docker_gwbridge",
    );
    // Each family has its own gateway.
    let split = [
        ("six", false, true, 0, false),
        ("four", true, false, 0, false),
    ];
    expect(V4, &split, "four");
    expect(V6, &split, "six");
    // An internal network and a network without a gateway publish nothing.
    assert_eq!(chosen(V4, &[("int", true, false, 0, true)]), None);
    assert_eq!(chosen(V6, &[("web", true, false, 0, false)]), None);
    assert_eq!(chosen(V4, &[]), None);
}

/// A gateway endpoint on a network that is not known yet counts.
#[test]
fn gateway_on_an_unknown_network_counts() {
    let endpoint = Endpoint {
        gateway_v4: Some([172, 17, 0, 1].into()),
        ..Endpoint::default()
    };
    let container = Container {
        endpoints: [("web".into(), endpoint)].into(),
        ..Container::default()
    };
    assert!(
        container
            .gateway_endpoint(Family::V4, &BTreeMap::new())
            .is_some()
    );
}

/// An endpoint's veth is found whatever update comes first.
#[test]
fn veth_is_found_in_any_order_of_updates() {
    let updates = [
        Update::Network(Box::new(net_with("web", "c1", 7))),
        bridge("web", BRIDGE),
        veth(10, Some(4), 7),
        container("c1", Some(4)),
    ];
    for first in 0..updates.len() {
        let mut order = updates.to_vec();
        order.rotate_left(first);
        let host_state = host_state(order);
        assert_eq!(
            host_state.veths,
            [("web-c1".into(), 10)].into(),
            "starting with fact {first}"
        );
    }
}

/// A veth is found by its address until the container's network namespace is known.
#[test]
fn veth_is_found_by_address_before_namespace() {
    let mut host_state = host_state([
        Update::Network(Box::new(net_with("web", "c1", 7))),
        bridge("web", BRIDGE),
    ]);
    host_state.apply(veth(10, None, 7));
    assert!(
        host_state.veths.is_empty(),
        "both ends are still here: the container cannot use it"
    );
    host_state.apply(veth(10, Some(4), 7));
    assert_eq!(host_state.veths, [("web-c1".into(), 10)].into());
    host_state.apply(container("c1", Some(5)));
    assert!(host_state.veths.is_empty(), "it was another's");
    host_state.apply(Update::Link(Link {
        index: 10,
        ..Link::default()
    }));
    host_state.apply(veth(11, Some(5), 8));
    assert_eq!(
        host_state.veths,
        [("web-c1".into(), 11)].into(),
        "the namespace decides, whatever address is set in there"
    );
}

#[test]
fn known_container_cannot_pose_as_a_new_one() {
    let mut network = net_with("web", "c1", 7);
    network.endpoints.extend(net_with("web", "c2", 8).endpoints);
    let mut host_state = host_state([
        Update::Network(Box::new(network)),
        bridge("web", BRIDGE),
        container("c1", Some(4)),
    ]);
    host_state.apply(veth(10, Some(4), 8));
    assert_eq!(host_state.veths, [("web-c1".into(), 10)].into());
    host_state.apply(veth(12, Some(5), 8));
    assert_eq!(
        host_state.veths,
        [("web-c1".into(), 10), ("web-c2".into(), 12)].into()
    );
}

/// A network namespace ID that is used again does not lead to the old container.
#[test]
fn reused_namespace_id_finds_no_old_container() {
    let mut host_state = host_state([
        Update::Network(Box::new(net_with("web", "c1", 7))),
        bridge("web", BRIDGE),
        container("c1", Some(4)),
        veth(10, Some(4), 7),
    ]);
    assert_eq!(host_state.veths.len(), 1);
    assert!(host_state.apply(Update::NetnsGone(4)));
    assert!(host_state.veths.is_empty());
    host_state.apply(veth(12, Some(4), 9));
    assert!(
        host_state.veths.is_empty(),
        "number 4 is another container's now"
    );
}

#[test]
fn veth_of_another_bridge_is_no_match() {
    let host_state = host_state([
        Update::Network(Box::new(net_with("web", "c1", 7))),
        bridge("web", BRIDGE + 1),
        container("c1", Some(4)),
        veth(10, Some(4), 7),
    ]);
    assert!(host_state.veths.is_empty());
}
