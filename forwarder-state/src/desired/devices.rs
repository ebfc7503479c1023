// SPDX-License-Identifier: MIT OR Apache-2.0
//! Devices: of which kind each is, and which programs it gets.

use forwarder_common::abi::{Device, TrustKey, device, others};

use super::ipsec::applying_policies;
use super::{Bridged, BridgedNetwork, Policy};
use crate::desired_state::{DEFRAG_LOOPBACK, DesiredState, Hook, PeerVeth};
use crate::host_state::{Container, HostState, Link, LinkLayer, NetworkOptions};

/// Adds all devices with their programs.
pub(super) fn add_devices(tables: &mut DesiredState, bridged: &Bridged<'_>) {
    let Bridged {
        host_state,
        policy,
        networks,
        ..
    } = bridged;
    for (&index, network) in networks {
        add_trusted(tables, host_state, &network.terms, index);
        let row = row(device::BRIDGE, index, network.bridge);
        tables.devices.insert(index, row);
        let hooks = [Hook::BridgeIn, Hook::BridgeOut];
        tables.hooks.extend(hooks.map(|hook| (index, hook)));
    }
    for link in host_state.links.values() {
        match link.master.and_then(|master| networks.get(&master)) {
            Some(network) => {
                let row = port(tables, host_state, network, link);
                tables.devices.insert(link.index, row);
                let hooks = [Hook::ContainerIn, Hook::ContainerOut];
                tables.hooks.extend(hooks.map(|hook| (link.index, hook)));
            }
            None if is_followed_port(bridged, link) => {
                let row = row(device::FOLLOWED, link.master.unwrap_or_default(), link);
                tables.devices.insert(link.index, row);
                let hooks = [Hook::FollowedIn, Hook::FollowedOut];
                tables.hooks.extend(hooks.map(|hook| (link.index, hook)));
            }
            None if is_outside(host_state, link) && !networks.contains_key(&link.index) => {
                add_outside(tables, host_state, policy, link);
            }
            None if is_others(host_state, link) && !networks.contains_key(&link.index) => {
                let row = row(device::OTHER, 0, link);
                tables.devices.insert(link.index, row);
            }
            _ => {}
        }
    }
    // Nothing of a network that is left to the kernel is guarded; the kernel's rules keep it apart.
    for &index in bridged.left.keys() {
        if let Some(link) = host_state.links.get(&index) {
            tables.devices.insert(index, row(device::OTHER, 0, link));
        }
    }
    add_defrag_loopback(tables, host_state, policy);
    add_others(tables, host_state);
    if !tables.xdp.is_empty() {
        add_peer_veths(tables, host_state);
    }
}

fn add_defrag_loopback(tables: &mut DesiredState, host_state: &HostState, policy: &Policy) {
    let mut links = host_state.links.values();
    let defrag_loopback = links.find(|link| link.name == DEFRAG_LOOPBACK);
    if let Some(link) = defrag_loopback.filter(|link| policy.reassembles && link.up) {
        tables.defrag_loopback = link.index;
        tables.hooks.insert((link.index, Hook::DefragOut));
    }
}

/// Whether packets enter and leave the host through this device at the network layer. Excluded are:
/// a port of a bridge or a bond, loopback, swarm's overlay devices, and devices with a name that
/// Docker gives to its bridges. An IFB is excluded as well: it returns packets to the device they
/// came from, and our programs there complete them. A device that is down carries nothing; one of
/// Docker's veths is down until it has its bridge.
#[must_use]
pub fn is_outside(host_state: &HostState, link: &Link) -> bool {
    let master_routes = |index| {
        host_state
            .links
            .get(&index)
            .is_some_and(|master| master.kind == "vrf")
    };
    link.up
        && link.name != DEFRAG_LOOPBACK
        && link.kind != "ifb"
        && link.master.is_none_or(master_routes)
        && matches!(link.layer, LinkLayer::Ethernet | LinkLayer::Raw)
        && !link.name.starts_with("ov-")
        && !link.name.starts_with("vx-")
        && !may_be_dockers(host_state, link)
}

/// Whether a device leads to a container of a network whose connections are followed.
fn is_followed_port(bridged: &Bridged<'_>, link: &Link) -> bool {
    let is_followed = |master| bridged.followed.contains_key(&master);
    let mut veths = bridged.host_state.veths.values();
    link.master.is_some_and(is_followed) && veths.any(|&veth| veth == link.index)
}

/// Whether other software may forward through this device although it is not an outside device:
/// loopback, IP over a link layer that Docker does not use, swarm's devices, our defragmentation
/// loopback.
fn is_others(host_state: &HostState, link: &Link) -> bool {
    link.up && link.master.is_none() && !may_be_dockers(host_state, link)
}

/// Whether packets forwarded through this device are untrusted until Docker lists it. Docker may be
/// away or about to list it. Such a device has a name of Docker's, or it is a bridge of any name
/// whose ports are all veths.
fn may_be_dockers(host_state: &HostState, link: &Link) -> bool {
    let is_port = |port: &&Link| port.master == Some(link.index);
    let mut ports = host_state.links.values().filter(is_port);
    is_named_as_dockers(&link.name)
        || link.kind == "bridge"
            && !host_state.seen.networks
            && ports.all(|port| port.kind == "veth")
}

/// Whether Docker has created a bridge's port for a container whose endpoint it may not have listed
/// yet. A container cannot change the name of the host's end.
fn is_containers(port: &Link) -> bool {
    let is_random = |rest: &str| rest.len() == 7 && rest.bytes().all(|b| b.is_ascii_hexdigit());
    port.kind == "veth" && port.name.strip_prefix("veth").is_some_and(is_random)
}

/// Whether a bridge has a name that Docker gives. Docker may be away or about to list the bridge,
/// so what it forwards is untrusted until then.
#[must_use]
pub fn is_named_as_dockers(name: &str) -> bool {
    let is_id = |id: &str| id.len() == 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    matches!(name, "docker0" | "docker_gwbridge") || name.strip_prefix("br-").is_some_and(is_id)
}

fn row(kind: u32, bridge: u32, station: &Link) -> Device {
    Device {
        kind,
        bridge,
        mac: station.mac.unwrap_or_default(),
        ethernet: 1,
        ..Device::default()
    }
}

/// Returns the device row of a bridge's port: a container's veth with the hardware address of the
/// endpoint behind it, unless any address is allowed.
fn port(
    tables: &DesiredState,
    host_state: &HostState,
    of_port: &BridgedNetwork<'_>,
    link: &Link,
) -> Device {
    let BridgedNetwork {
        network,
        bridge,
        terms,
    } = of_port;
    let id = host_state
        .veths
        .iter()
        .find(|&(_, &veth)| veth == link.index);
    let kind = if id.is_some() {
        device::NAMED_VETH
    } else if is_containers(link) {
        device::VETH
    } else {
        device::PORT
    };
    let endpoint = id.and_then(|(id, _)| network.endpoints.get(id));
    let station = endpoint.and_then(|at| at.mac).filter(|_| !terms.any_mac);
    let has_more = !terms.allowed_sources.is_empty() || tables.allows_sources(link.index);
    Device {
        station: station.unwrap_or_default(),
        flags: if has_more {
            device::flag::VIRTUAL_ROUTER
        } else {
            0
        },
        ..row(kind, bridge.index, bridge)
    }
}

fn add_outside(tables: &mut DesiredState, host_state: &HostState, policy: &Policy, link: &Link) {
    let ethernet = link.layer == LinkLayer::Ethernet;
    let mac = link.mac.filter(|_| ethernet).unwrap_or_default();
    let device = Device {
        kind: device::OUTSIDE,
        bridge: 0,
        mac,
        ethernet: u16::from(ethernet),
        flags: match host_state.reverse_paths.get(&link.index) {
            Some(1) => device::flag::REVERSE_STRICT,
            Some(2) => device::flag::REVERSE_LOOSE,
            _ => 0,
        },
        ..Device::default()
    };
    tables.devices.insert(link.index, device);
    let hooks = if ethernet {
        [Hook::OutsideIn, Hook::OutsideOut]
    } else {
        [Hook::OutsideInRaw, Hook::OutsideOutRaw]
    };
    tables.hooks.extend(hooks.map(|hook| (link.index, hook)));
    if let Some(&kind) = policy.xdp.get(&link.index) {
        tables.hooks.insert((link.index, Hook::Uplink));
        tables.xdp.insert(link.index, kind);
    }
}

fn add_trusted(
    tables: &mut DesiredState,
    host_state: &HostState,
    terms: &NetworkOptions,
    bridge: u32,
) {
    for name in &terms.trusted {
        let device = host_state.links.values().find(|link| link.name == *name);
        tables.trusted.extend(device.map(|link| TrustKey {
            bridge,
            ifindex: link.index,
        }));
    }
}

/// Adds the peers of the veths of running containers: XDP may redirect into them.
fn add_peer_veths(tables: &mut DesiredState, host_state: &HostState) {
    let running = |container: &&Container| container.running && container.pid != 0;
    for container in host_state.containers.values().filter(running) {
        for endpoint in container.endpoints.values() {
            let Some(&veth) = host_state.veths.get(&endpoint.id) else {
                continue;
            };
            let peer = host_state
                .links
                .get(&veth)
                .and_then(|link| link.peer.as_ref());
            let Some(peer) = peer else { continue };
            let peer_veth = PeerVeth {
                sandbox_key: container.sandbox_key.clone(),
                pid: container.pid,
                index: peer.index,
            };
            tables.xdp_devmap.insert(veth, peer_veth);
        }
    }
}

/// Marks devices on which the kernel's path must apply other software's configuration. What shapes
/// a bridge also shapes all veths behind it.
fn add_others(tables: &mut DesiredState, host_state: &HostState) {
    let flags = |index: u32| {
        let shaping = host_state.others.shaped.get(&index);
        let inward = shaping.is_some_and(|shaping| shaping.inward.is_some());
        let outward = shaping.is_some_and(|shaping| shaping.outward.is_some());
        u32::from(inward) * device::flag::SHAPED_IN + u32::from(outward) * device::flag::SHAPED_OUT
    };
    for (&index, row) in &mut tables.devices {
        let mut shaped = flags(index);
        if matches!(
            row.kind,
            device::VETH | device::NAMED_VETH | device::FOLLOWED
        ) {
            shaped |= flags(row.bridge);
        }
        if shaped != 0 {
            row.flags |= shaped;
            tables.others |= others::SHAPED;
        }
    }
    if tables.left.values().any(|left| left.is_followed) {
        tables.others |= others::FOLLOWED;
    }
    if applying_policies(host_state).next().is_some() {
        tables.others |= others::IPSEC;
    }
}
