// SPDX-License-Identifier: MIT OR Apache-2.0
//! What `diff` is held to: its operations applied to a state in plain memory, and what must hold after
//! each of them.

use forwarder_common::abi::{
    Device, Endpoint, LinkKey, OwnerKey6, PortKey, ServerKey, TrustKey, device,
};
use forwarder_common::family::{Be16, Be32, Be128, V4};
use forwarder_state::desired_state::{
    DesiredState, EndpointKey, Hook, Key6, NetworkRow, Observed, PeerVeth, Row6, SocketHook,
    Target, XdpKind,
};
use forwarder_state::diff::{Change, FamilyChange, diff};
use proptest::prelude::*;

/// Applies an operation, which must fit what the kernel holds.
pub fn apply(kernel: &mut Observed, op: &Change) {
    match *op {
        Change::V4(FamilyChange::DropEndpoint { key, slot }) => {
            assert_eq!(kernel.v4.endpoints.get(&key), Some(&slot));
        }
        Change::V4(FamilyChange::PutNetwork {
            bridge,
            default_endpoint,
            ..
        }) => {
            let key = EndpointKey::Default(bridge);
            assert_eq!(kernel.v4.endpoints.get(&key), Some(&default_endpoint));
        }
        Change::V4(FamilyChange::DropPublished { key, slot }) => {
            assert_eq!(kernel.v4.mappings.get(&key), Some(&slot));
        }
        _ => {}
    }
    kernel.apply(op);
}

/// What must hold after every single operation on the way from `before` to `after`.
pub fn check(now: &Observed, before: &DesiredState, after: &DesiredState) {
    let tables = &now.tables;
    for (ifindex, hook) in &tables.hooks {
        assert!(
            tables.devices.contains_key(ifindex),
            "{hook:?} without its device's row"
        );
    }
    for bridge in tables.v4.networks.keys() {
        let default_endpoint = EndpointKey::Default(*bridge);
        assert!(
            tables.v4.endpoints.contains_key(&default_endpoint),
            "a network without its floor"
        );
    }
    for (key, target) in &tables.v4.published {
        let ends = [before.v4.published.get(key), after.v4.published.get(key)];
        assert!(
            ends.contains(&Some(target)),
            "a port leads where nobody sent it"
        );
    }
    let networks = tables.v4.networks.values().map(|row| row.policy);
    for list in networks.chain(tables.v4.published.values().map(|to| to.policy)) {
        let listed = tables.v4.ingress.keys().any(|(id, ..)| *id == list);
        assert!(list == 0 || listed, "sent to a list that is not there");
    }
    if tables.policy == after.policy && before.policy != after.policy {
        for (key, row) in &after.v4.networks {
            assert_eq!(
                tables.v4.networks.get(key),
                Some(row),
                "asked again too early"
            );
        }
        for (key, target) in &after.v4.published {
            assert_eq!(
                tables.v4.published.get(key),
                Some(target),
                "asked again too early"
            );
        }
    }
    // A container is never delivered to before its protection stands.
    for (key, endpoint) in &tables.v4.endpoints {
        if matches!(key, EndpointKey::Address(_)) && !before.v4.endpoints.contains_key(key) {
            assert!(
                tables.v4.networks.contains_key(&endpoint.bridge),
                "an endpoint before its network"
            );
            let hook = (endpoint.bridge, Hook::BridgeOut);
            assert!(
                tables.hooks.contains(&hook),
                "an endpoint before its bridge's guard"
            );
        }
    }
    // A veth is not said to have an endpoint before that is there: what it sends were spoofed.
    for (index, device) in &tables.devices {
        let named = device.kind == device::NAMED_VETH;
        if named && before.devices.get(index) != Some(device) {
            let behind = |endpoint: &Endpoint<V4>| endpoint.ifindex == *index;
            assert!(
                tables.v4.endpoints.values().any(behind),
                "veth {index} has a name before its endpoint is there"
            );
        }
    }
    // What was begun by a network's own endpoint ends once those whom it stood in for are there.
    for (key, default_endpoint) in &after.v4.endpoints {
        let EndpointKey::Default(bridge) = *key else {
            continue;
        };
        if tables.v4.endpoints.get(key) == Some(default_endpoint)
            && before.v4.endpoints.get(key) != Some(default_endpoint)
        {
            for (key, endpoint) in &after.v4.endpoints {
                assert!(
                    endpoint.bridge != bridge || tables.v4.endpoints.contains_key(key),
                    "the floor of {bridge} is renamed before {key:?} is there"
                );
            }
        }
    }
    let mut slots: Vec<_> = now.v4.endpoints.values().collect();
    let count = slots.len();
    slots.sort_unstable();
    slots.dedup();
    assert_eq!(slots.len(), count, "two endpoints in one slot");
    assert!(!slots.contains(&&0), "slot 0 is everything outside");
}

/// A state that `desired` could derive: a few networks on bridges 10.. with containers and ports.
pub fn tables() -> impl Strategy<Value = DesiredState> {
    let container = (1_u32..5, any::<bool>(), prop::option::of(1_u16..6));
    let containers = prop::collection::btree_map(any::<u8>(), container, 0..4);
    let network = (0_u32..8, containers);
    let networks = prop::collection::btree_map(10_u32..14, network, 0..4);
    (networks, 1_u32..4, 0_u32..3, any::<bool>()).prop_map(
        |(networks, generation, uplinks, xdp)| {
            let mut tables = DesiredState {
                route_generation: generation,
                xdp_tcp: xdp,
                route_mtu: generation % 2 * 1300,
                others: generation % 3,
                lists6: generation % 2 == 0,
                defrag_loopback: generation % 3,
                ..DesiredState::default()
            };
            let sockets = SocketHook::ALL.into_iter().take(uplinks as usize * 4);
            tables.sockets.extend(sockets);
            for index in 0..uplinks {
                let row = Device {
                    kind: device::OUTSIDE,
                    ethernet: 1,
                    ..Device::default()
                };
                tables.devices.insert(index + 2, row);
                tables.hooks.insert((index + 2, Hook::OutsideIn));
                tables
                    .v4
                    .masq_addresses
                    .insert((index + 2, Be32::default(), 0), Be32::new(index + 1));
                tables.v4.host_addresses.insert((Be32::new(index + 1), 32));
                if xdp {
                    tables.hooks.insert((index + 2, Hook::Uplink));
                    tables.xdp.insert(index + 2, XdpKind::Native);
                }
            }
            for (bridge, (flags, containers)) in networks {
                let row = Device {
                    kind: device::BRIDGE,
                    bridge,
                    ..Device::default()
                };
                tables.devices.insert(bridge, row);
                tables.hooks.insert((bridge, Hook::BridgeIn));
                tables.hooks.insert((bridge, Hook::BridgeOut));
                tables.v4.networks.insert(
                    bridge,
                    NetworkRow {
                        flags,
                        gateway: Be32::new(bridge),
                        source: Be32::new(flags & 1),
                        policy: flags & 6,
                    },
                );
                if flags & 1 != 0 {
                    let ifindex = 2;
                    tables.trusted.insert(TrustKey { bridge, ifindex });
                    tables.v4.links.insert(LinkKey {
                        parent: Be32::new(bridge),
                        ..LinkKey::default()
                    });
                }
                if flags & 4 != 0 {
                    let range = (bridge, Be32::new(flags << 24), 8);
                    tables.v4.allowed.insert(range, flags & 2);
                }
                if flags & 6 != 0 {
                    let range = (flags & 6, Be32::default(), 0);
                    tables.v4.ingress.insert(range, 1);
                    tables.policy += flags + bridge;
                }
                tables
                    .v4
                    .subnets
                    .insert((Be32::new(bridge << 16), 16), bridge);
                let subnet = Key6::Subnet(Be128::link_local([bridge as u8; 6]), 64);
                tables.ipv6.insert(subnet, Row6::Index(flags));
                let default_endpoint = Endpoint {
                    generation: flags + 1,
                    bridge,
                    ..Endpoint::default()
                };
                tables
                    .v4
                    .endpoints
                    .insert(EndpointKey::Default(bridge), default_endpoint);
                for (host, (generation, hooked, port)) in containers {
                    let addr = Be32::new(bridge << 16 | u32::from(host));
                    let veth = bridge * 1000 + u32::from(host);
                    let ifindex = if hooked { veth } else { 0 };
                    let endpoint: Endpoint<V4> = Endpoint {
                        generation,
                        ifindex,
                        bridge,
                        addr,
                        ..Endpoint::default()
                    };
                    tables
                        .v4
                        .endpoints
                        .insert(EndpointKey::Address(addr), endpoint);
                    let addr6 = Be128::link_local([host; 6]);
                    let owner = OwnerKey6 {
                        addr: addr6,
                        bridge,
                    };
                    tables.ipv6.insert(Key6::Owner(owner), Row6::Index(ifindex));
                    if hooked {
                        let row = Device {
                            kind: device::NAMED_VETH,
                            bridge,
                            ..Device::default()
                        };
                        tables.devices.insert(veth, row);
                        tables.hooks.insert((veth, Hook::ContainerIn));
                        let peer_veth = PeerVeth {
                            sandbox_key: String::new(),
                            pid: 1,
                            index: 2,
                        };
                        tables.xdp_devmap.insert(veth, peer_veth);
                    }
                    if let Some(port) = port {
                        let key = PortKey {
                            addr: Be32::default(),
                            port: Be16::new(port),
                            proto: 6,
                        };
                        let target = Target {
                            addr,
                            port: Be16::new(80),
                            policy: flags & 6,
                            generation,
                        };
                        tables.v4.published.insert(key, target);
                        let server = ServerKey {
                            at: key.addr,
                            addr,
                            port: target.port,
                            proto: key.proto,
                        };
                        tables.v4.seen_as.insert(server, u32::from(port));
                    }
                }
            }
            tables
        },
    )
}

/// The kernel's state after `tables` were applied to an empty one.
pub fn holding(tables: &DesiredState) -> Observed {
    let mut kernel = Observed::default();
    for op in diff(&kernel.clone(), tables) {
        apply(&mut kernel, &op);
    }
    kernel
}
