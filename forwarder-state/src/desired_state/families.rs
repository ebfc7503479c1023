// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the agent asks of the tables of all families, in the standard library's types, so that its
//! control loop names no family.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use forwarder_common::abi::capacity;
use forwarder_common::family::Family;
use forwarder_protocol::HostPort;

use super::{DesiredState, EndpointKey, FamilyTables, Key6, Row6};
use crate::address::WireAddress;
use crate::port_key::{host_port, port_key};

/// Masquerade addresses by device index and the next hop's subnet.
pub type MasqAddresses = BTreeMap<(u32, IpAddr, u8), IpAddr>;

impl DesiredState {
    /// Returns the number of networks.
    #[must_use]
    pub fn networks(&self) -> usize {
        self.v4.networks.len()
    }

    /// Returns the number of published ports.
    #[must_use]
    pub fn published(&self) -> usize {
        self.v4.published.len()
    }

    /// Returns the flags of a bridge's network ([`network`](forwarder_common::abi::network)); none
    /// if there is no such network.
    #[must_use]
    pub fn network_flags(&self, bridge: u32) -> Option<u32> {
        self.v4.networks.get(&bridge).map(|row| row.flags)
    }

    /// Returns the subnets, as address and prefix length, with the index of their bridge.
    pub fn subnets(&self) -> impl Iterator<Item = ((IpAddr, u8), u32)> {
        let guarded = self.ipv6.iter().filter_map(|row| match row {
            (&Key6::Subnet(address, len), &Row6::Index(bridge)) => {
                Some(((address.ip(), len), bridge))
            }
            _ => None,
        });
        self.v4.subnets().chain(guarded)
    }

    /// Whether a device has allowed sources of its own.
    #[must_use]
    pub fn allows_sources(&self, device: u32) -> bool {
        self.v4.allows_sources(device)
    }

    /// Returns the published ports: the protocol's number, the address and port that a client
    /// connects to, and the container's.
    pub fn published_ports(&self) -> impl Iterator<Item = (u16, SocketAddr, SocketAddr)> {
        self.v4.published_ports()
    }

    /// Returns the container's address that a published port leads to.
    #[must_use]
    pub fn target(&self, port: &HostPort) -> Option<IpAddr> {
        self.v4.target(port)
    }

    /// Returns the published ports, as the host's users name them.
    pub fn host_ports(&self) -> impl Iterator<Item = HostPort> {
        self.v4.published.keys().filter_map(host_port)
    }

    /// Returns the container's address and port that a published port leads to.
    #[must_use]
    pub fn target_at(&self, port: &HostPort) -> Option<SocketAddr> {
        self.v4.target_at(port)
    }

    /// Returns the addresses of endpoints.
    pub fn endpoint_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.endpoint_addresses()
    }

    /// Returns the host's end of the veth of the container at an address; none if there is no such
    /// container, or if its veth is not known.
    #[must_use]
    pub fn veth_at(&self, address: IpAddr) -> Option<u32> {
        self.v4.veth_at(address)
    }

    /// Returns the bridges of networks.
    pub fn bridges(&self) -> impl Iterator<Item = u32> {
        self.v4.networks.keys().copied()
    }

    /// Whether a published port leads elsewhere than in `held`, or is not there.
    #[must_use]
    pub fn publishes_more(&self, held: &Self) -> bool {
        self.v4.publishes_more(&held.v4)
    }

    /// Returns the masquerade addresses.
    #[must_use]
    pub fn masq_addresses(&self) -> MasqAddresses {
        self.v4.masq_addresses().collect()
    }

    /// Omits host addresses that exceed a map's capacity. Returns how many there were if any are
    /// omitted.
    pub fn limit_host_addresses(&mut self) -> Option<usize> {
        self.v4.limit_host_addresses()
    }
}

impl<F: Family<Addr: WireAddress>> FamilyTables<F> {
    fn subnets(&self) -> impl Iterator<Item = ((IpAddr, u8), u32)> {
        let all = self.subnets.iter();
        all.map(|(&(address, len), &bridge)| ((address.ip(), len), bridge))
    }

    fn published_ports(&self) -> impl Iterator<Item = (u16, SocketAddr, SocketAddr)> {
        self.published.iter().map(|(key, target)| {
            let host = SocketAddr::new(key.addr.ip(), key.port.get());
            let container = SocketAddr::new(target.addr.ip(), target.port.get());
            (key.proto, host, container)
        })
    }

    fn target(&self, port: &HostPort) -> Option<IpAddr> {
        let target = self.published.get(&port_key(port)?)?;
        Some(target.addr.ip())
    }

    fn target_at(&self, port: &HostPort) -> Option<SocketAddr> {
        let target = self.published.get(&port_key(port)?)?;
        Some(SocketAddr::new(target.addr.ip(), target.port.get()))
    }

    fn endpoint_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.endpoints.keys().filter_map(|key| match key {
            EndpointKey::Address(address) => Some(address.ip()),
            EndpointKey::Default(_) => None,
        })
    }

    fn veth_at(&self, address: IpAddr) -> Option<u32> {
        let key = EndpointKey::Address(F::Addr::of(address)?);
        let endpoint = self.endpoints.get(&key)?;
        (endpoint.ifindex != 0).then_some(endpoint.ifindex)
    }

    fn publishes_more(&self, held: &Self) -> bool {
        let is_new = |(key, target)| held.published.get(key) != Some(target);
        self.published.iter().any(is_new)
    }

    fn masq_addresses(&self) -> impl Iterator<Item = ((u32, IpAddr, u8), IpAddr)> {
        let all = self.masq_addresses.iter();
        all.map(|(&(device, next_hop, len), source)| ((device, next_hop.ip(), len), source.ip()))
    }

    fn limit_host_addresses(&mut self) -> Option<usize> {
        let all = self.host_addresses.len();
        while self.host_addresses.len() > capacity::HOST_ADDRESSES as usize {
            self.host_addresses.pop_last();
        }
        (self.host_addresses.len() < all).then_some(all)
    }
}

#[cfg(test)]
mod tests {
    use forwarder_common::family::{Be16, Be32, V4};
    use forwarder_protocol::Proto;

    use super::*;
    use crate::desired_state::Target;

    /// A published port leads to its container, by its own address and protocol only.
    #[test]
    fn published_port_leads_to_its_container() {
        let port = |ip: [u8; 4], proto| HostPort {
            proto,
            ip: ip.into(),
            port: 8080,
        };
        let web = port([198, 18, 1, 1], Proto::Tcp);
        let mut tables = DesiredState::default();
        let target = Target {
            addr: Be32::from_octets([172, 17, 0, 2]),
            port: Be16::new(80),
            ..Target::default()
        };
        let key = port_key::<V4>(&web).unwrap();
        tables.v4.published.insert(key, target);
        assert_eq!(tables.target(&web), Some([172, 17, 0, 2].into()));
        assert_eq!(tables.target(&port([198, 18, 1, 2], Proto::Tcp)), None);
        assert_eq!(tables.target(&port([198, 18, 1, 1], Proto::Udp)), None);
        assert!(tables.publishes_more(&DesiredState::default()));
        assert!(!DesiredState::default().publishes_more(&tables));
        assert!(!tables.publishes_more(&tables));
    }

    #[test]
    fn host_addresses_fit_into_the_map() {
        let mut tables = DesiredState::default();
        let room = capacity::HOST_ADDRESSES;
        let all = (0..=room).map(|number| (Be32::new(number), 32));
        tables.v4.host_addresses.extend(all);
        assert_eq!(tables.limit_host_addresses(), Some(room as usize + 1));
        assert_eq!(tables.v4.host_addresses.len(), room as usize);
        assert_eq!(tables.limit_host_addresses(), None);
    }
}
