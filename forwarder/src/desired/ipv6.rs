//! IPv6: who has which address. What follows for a packet stands in
//! `forwarder_common::pipeline::ipv6`.

use std::net::{IpAddr, Ipv6Addr};

use forwarder_common::abi::{Endpoint6, LocalKey6, OwnerKey6};
use forwarder_common::family::Be128;

use crate::tables::{Key6, Row6, Tables};
use crate::world::{Link, Network, World};

/// Whether a network has IPv6.
pub(super) fn is_in(network: &Network) -> bool {
    network
        .subnets
        .iter()
        .any(|subnet| subnet.address.is_ipv6())
}

/// The host's own addresses, link-local ones by their device. Loopback's never appear on a wire.
pub(super) fn add_locals(tables: &mut Tables, world: &World) {
    for address in world.addresses.values().flatten() {
        let IpAddr::V6(own) = address.address else {
            continue;
        };
        let addr = be128(own);
        let ifindex = if addr.is_link_local() {
            address.link
        } else {
            0
        };
        if !own.is_loopback() {
            let key = Key6::Local(LocalKey6 { addr, ifindex });
            tables.ipv6.insert(key, Row6::Index(1));
        }
    }
}

/// A network's subnets and its containers' addresses, with the link-local one that follows from a
/// container's MAC address.
pub(super) fn add_network(tables: &mut Tables, world: &World, network: &Network, bridge: &Link) {
    if !is_in(network) {
        return;
    }
    for subnet in &network.subnets {
        if let IpAddr::V6(address) = subnet.address {
            let len = subnet.prefix_len.min(128);
            let key = Key6::Subnet(prefix(address, len), len);
            tables.ipv6.insert(key, Row6::Index(bridge.index));
        }
    }
    for (id, at) in &network.endpoints {
        let veth = world
            .veths
            .get(id)
            .and_then(|index| world.links.get(index))
            .filter(|link| link.master == Some(bridge.index))
            .map_or(0, |link| link.index);
        let addr = at.ipv6.map(be128);
        for addr in addr.into_iter().chain(at.mac.map(Be128::link_local)) {
            let bridge = bridge.index;
            let key = Key6::Owner(OwnerKey6 { addr, bridge });
            tables.ipv6.insert(key, Row6::Index(veth));
        }
        if veth != 0 {
            let endpoint = Endpoint6 {
                addr: addr.unwrap_or_default(),
                mac: at.mac.unwrap_or_default(),
                reserved: 0,
            };
            let row = Row6::Endpoint(endpoint);
            tables.ipv6.insert(Key6::Endpoint(veth), row);
        }
    }
}

fn be128(address: Ipv6Addr) -> Be128 {
    Be128::from_octets(address.octets())
}

/// An address's first `len` bits.
fn prefix(address: Ipv6Addr, len: u8) -> Be128 {
    let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
    be128(Ipv6Addr::from_bits(address.to_bits() & mask))
}
