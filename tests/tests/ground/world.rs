//! Random worlds on the ground, and what happens to them while traffic flows.

use forwarder_common::abi::network;
use forwarder_common::family::Be32;

use super::model::frames::ip;
use super::model::host::{
    APP, APP_VETH, BARE, BRIDGE, FAR, HOST, OTHER_BRIDGE, SECOND, UPLINK, WEB,
};
use super::model::{Dice, Host};
use super::routes;

/// A device whose index is nobody's.
const NOBODY: u32 = 99;

/// A random world on the ground.
pub(crate) fn world(dice: &mut Dice, flows: u32) -> Host {
    let mut host = Host::usual(flows);
    routes(&mut host);
    host.settings.route_generation = 1 + dice.below(5) as u32;
    host.settings.xdp_tcp = u32::from(dice.once_in(2));
    for bridge in [BRIDGE, OTHER_BRIDGE] {
        let flags = match dice.below(6) {
            0 => 0,
            1 => network::MASQUERADE | network::INTERNAL,
            2 => network::MASQUERADE | network::NO_PEERS,
            _ => network::MASQUERADE,
        };
        host.networks.get_mut(&bridge).unwrap().flags = flags;
    }
    for addr in [WEB, APP, FAR] {
        let endpoint = &mut host.endpoints[host.endpoint_slots[&addr] as usize];
        endpoint.mtu = dice.pick(&[1500, 1500, 1500, 1280, 100]);
        if dice.once_in(20) {
            endpoint.ifindex = NOBODY;
        }
    }
    host.publish((Be32::default(), 53, 17), (APP, 5353));
    host.publish((HOST, 443, 6), (FAR, 443));
    host.publish((HOST, 600, 17), (FAR, 600));
    if dice.once_in(4) {
        host.publish((Be32::default(), 5000, 17), (ip(172, 17, 0, 77), 1));
    }
    if dice.once_in(10) {
        host.devices
            .remove(&dice.pick(&[UPLINK, SECOND, BRIDGE, APP_VETH]));
    }
    if dice.once_in(10) {
        host.sources.clear();
    }
    host
}

/// What happens to a world while traffic flows: a container restarts, a port is published anew or
/// no more, a route changes.
pub(crate) fn disturb(dice: &mut Dice, host: &mut Host) {
    match dice.below(5) {
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
