// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random worlds on the ground, and what happens to them while traffic flows.

use forwarder_common::abi::{
    AllowedKey6, IngressKey6, LinkKey, Network, PortKey, PortKey6, Published6, TrustKey, allowed,
    ingress, network, others,
};
use forwarder_common::family::{Be16, Be32, Be128};

use super::model::frames::ip;
use super::model::host::{
    APP, APP_VETH, BARE, BRIDGE, CLIENT, FAR, GATEWAY, HOST, OTHER_BRIDGE, SECOND, UPLINK, VPN, WEB,
};
use super::model::ipv6::{APP6, CLIENT6, FAR6, HOST6};
use super::model::{Dice, Host};
use super::routes;

/// A device whose index is nobody's.
const NOBODY: u32 = 99;

/// A list of clients, and one that is not there.
const LIST: u32 = 7;
const NO_LIST: u32 = 8;

/// Lists of clients, what may be asked straight, and what links open.
fn listed(dice: &mut Dice, host: &mut Host) {
    let words = [ingress::ALLOW, ingress::DENY];
    for range in [
        (Be32::default(), 0),
        (ip(198, 18, 0, 0), 15),
        (CLIENT, 32),
        (APP, 32),
    ] {
        let (addr, len) = range;
        host.ingress.insert((LIST, addr, len), dice.pick(&words));
    }
    let ifindex = dice.pick(&[UPLINK, SECOND, VPN]);
    for (bridge, addr) in [(BRIDGE, WEB), (OTHER_BRIDGE, FAR)] {
        if dice.once_in(3) {
            host.trusted.insert(TrustKey { bridge, ifindex });
        }
        for proto in [6, 17] {
            host.publish((addr, dice.pick(&[80, 443]), proto), (addr, 80));
        }
    }
    let key = LinkKey {
        parent: APP,
        child: WEB,
        port: Be16::new(5000),
        proto: 6,
    };
    host.links.insert(key);
    for published in host.published.values_mut() {
        published.policy = dice.pick(&[0, 0, 0, LIST, LIST, NO_LIST]);
    }
}

/// Lists of ports that are published on IPv6 addresses, and sources that containers may use.
fn listed6(dice: &mut Dice, host: &mut Host) {
    host.settings.lists6 = u32::from(!dice.once_in(4));
    let words = [ingress::ALLOW, ingress::DENY];
    let list = LIST;
    for (client, len) in [(Be128::ANY, 0), (CLIENT6, 128), (APP6, 64)] {
        let key = (IngressKey6 { list, client }, len);
        host.ingress6.insert(key, dice.pick(&words));
    }
    for (addr, proto) in [(Be128::ANY, 6), (Be128::ANY, 17), (HOST6, 17)] {
        let key = PortKey6 {
            addr,
            port: Be16::new(80),
            proto,
        };
        let row = Published6 {
            policy: dice.pick(&[0, LIST, LIST, NO_LIST]),
            bridges: [dice.pick(&[0, BRIDGE]), dice.pick(&[0, OTHER_BRIDGE])],
        };
        host.published6.insert(key, row);
    }
    for device in [BRIDGE, APP_VETH] {
        let source = FAR6;
        let word = dice.pick(&[0, allowed::ONE, allowed::EACH]);
        host.allowed6
            .insert((AllowedKey6 { device, source }, 64), word);
    }
}

/// Devices that others shape, and IPsec policies.
fn of_others(dice: &mut Dice, host: &mut Host) {
    if dice.once_in(4) {
        host.settings.others |= others::SHAPED;
        for ifindex in [UPLINK, APP_VETH, BRIDGE] {
            if let Some(device) = host.devices.get_mut(&ifindex) {
                device.flags = dice.below(4) as u32;
            }
        }
    }
    if dice.once_in(8) {
        host.settings.others |= others::IPSEC;
        let range = dice.pick(&[(Be32::default(), 0), (CLIENT, 32), (ip(198, 19, 0, 0), 16)]);
        let key = (others::PROTECTED, range.0, range.1);
        host.ingress.insert(key, ingress::ALLOW);
    }
}

/// A random world on the ground.
pub(crate) fn world(dice: &mut Dice, flows: u32) -> Host {
    let mut host = Host::usual(flows);
    routes(&mut host);
    host.settings.route_generation = 1 + dice.below(5) as u32;
    host.settings.flow_quota = dice.pick(&[0, 0, 0, 2, 10]);
    host.settings.xdp_tcp = u32::from(dice.once_in(2));
    host.settings.tcp_strict = u32::from(dice.once_in(4));
    host.settings.route_mtu = dice.pick(&[0, 0, 0, 576, 1400]);
    host.settings.round = u32::from(!dice.once_in(4));
    host.settings.armed = u32::from(!dice.once_in(20));
    for bridge in [BRIDGE, OTHER_BRIDGE] {
        let flags = match dice.below(12) {
            0 => 0,
            1 => network::MASQUERADE | network::INTERNAL,
            2 => network::INTERNAL | network::ISOLATED,
            3 => network::MASQUERADE | network::NO_PEERS,
            4 => network::ROUTED,
            5 => network::MASQUERADE | network::UNPROTECTED,
            6 => network::MASQUERADE | network::DIRECT,
            _ => network::MASQUERADE,
        };
        let source = dice.pick(&[Be32::default(), Be32::default(), ip(198, 18, 1, 9)]);
        let policy = dice.pick(&[0, 0, LIST]);
        let network = host.networks.get_mut(&bridge).unwrap();
        *network = Network {
            flags,
            source,
            policy,
            ..*network
        };
    }
    if !dice.once_in(4) {
        host.with_ipv6();
        // The ground's devices have no IPv6, so that the kernel forwards none.
        host.routes6.clear();
        listed6(dice, &mut host);
    }
    listed(dice, &mut host);
    for addr in [WEB, APP, FAR] {
        let endpoint = &mut host.endpoints[host.endpoint_slots[&addr] as usize];
        endpoint.mtu = dice.pick(&[1500, 1500, 1500, 1280, 100]);
        if dice.once_in(20) {
            endpoint.ifindex = NOBODY;
        }
    }
    host.publish((Be32::default(), 53, 17), (APP, 5353));
    host.seen_as(Be32::default(), (APP, 5353, 17), 53);
    host.publish((HOST, 443, 6), (FAR, 443));
    for proto in [6, 17] {
        host.publish(
            (dice.pick(&[Be32::default(), HOST]), 9000, proto),
            (WEB, 5000),
        );
        host.seen_as(
            dice.pick(&[Be32::default(), HOST]),
            (WEB, 5000, proto),
            9000,
        );
    }
    host.publish((HOST, 600, 17), (FAR, 600));
    if dice.once_in(4) {
        host.publish((Be32::default(), 5000, 17), (ip(172, 17, 0, 77), 1));
    }
    if dice.once_in(10) {
        host.devices
            .remove(&dice.pick(&[UPLINK, SECOND, BRIDGE, APP_VETH]));
    }
    of_others(dice, &mut host);
    if dice.once_in(10) {
        host.sources.clear();
    }
    host
}

/// What happens to a world while traffic flows: a container restarts, a port is published anew or
/// no more, a route or a list of clients changes.
pub(crate) fn disturb(dice: &mut Dice, host: &mut Host) {
    match dice.below(7) {
        6 => {
            let port = dice.pick(&[5000, 5001, 40_000]);
            let (addr, to) = dice.pick(&[(WEB, port), (APP, port), (FAR, 80)]);
            let at = dice.pick(&[Be32::default(), HOST, GATEWAY]);
            let proto = dice.pick(&[6, 17]);
            let key = PortKey {
                addr: at,
                port: Be16::new(port),
                proto,
            };
            if !host.published.contains_key(&key) {
                host.publish((at, port, proto), (addr, to));
                host.settings.policy += 1;
            }
        }
        5 => {
            let word = dice.pick(&[ingress::ALLOW, ingress::DENY]);
            host.ingress.insert((LIST, CLIENT, 32), word);
            host.settings.policy += 1;
        }
        0 => {
            let slot = host.endpoint_slots[&dice.pick(&[WEB, APP, FAR, BARE])];
            host.endpoints[slot as usize].incarnation += 1000;
        }
        1 => {
            let slot = 1 + dice.below(4) as u32;
            if let Some(incarnation) = host.mappings.get_mut(&slot) {
                *incarnation += 1;
            }
        }
        2 => {
            let keys: Vec<_> = host.published.keys().copied().collect();
            if keys.len() > 2 {
                let gone = host
                    .published
                    .remove(&keys[dice.below(keys.len())])
                    .unwrap();
                host.mappings.remove(&gone.mapping);
            }
        }
        3 => {
            let sources = host.sources.len();
            if let Some(source) = host.sources.values_mut().nth(dice.below(sources.max(1))) {
                *source = dice.pick(&[HOST, HOST, ip(198, 18, 1, 9)]);
            }
            host.settings.route_generation += 1;
        }
        _ => host.settings.route_generation += 1,
    }
}
