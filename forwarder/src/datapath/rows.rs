// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads all rows of the tables from the maps, and writes those that are more than one entry.

use std::collections::BTreeMap;

use anyhow::Result;
use aya::maps::lpm_trie::Key;
use forwarder_common::abi::{
    AllowedKey, Endpoint, IngressKey, MasqueradeKey, Network, PortKey, Published, Settings,
};
use forwarder_common::family::{Be32, V4};
use forwarder_state::desired_state::{
    DesiredState, EndpointKey, NetworkRow, Observed, PeerVeth, Target,
};

use super::maps::{Maps, Wire};
use super::neighbours;

impl Maps {
    /// Reads all tables: everything but the programs' attachments.
    pub(super) fn observe(&self) -> Result<Observed> {
        let mut observed = Observed::default();
        self.read_settings(&mut observed.tables)?;
        self.read_devices(&mut observed.tables)?;
        self.read_networks(&mut observed)?;
        self.read_endpoints(&mut observed)?;
        self.read_addresses(&mut observed.tables)?;
        self.read_published(&mut observed)?;
        self.read_access(&mut observed.tables)?;
        observed.tables.ipv6 = self.ipv6()?;
        Ok(observed)
    }

    fn read_settings(&self, tables: &mut DesiredState) -> Result<()> {
        let settings = self.settings()?;
        tables.route_generation = settings.route_generation;
        tables.xdp_tcp = settings.xdp_tcp != 0;
        tables.route_mtu = settings.route_mtu;
        tables.others = settings.others;
        tables.lists6 = settings.lists6 != 0;
        tables.policy = settings.policy;
        tables.defrag_loopback = settings.defrag_loopback;
        Ok(())
    }

    fn read_devices(&self, tables: &mut DesiredState) -> Result<()> {
        for entry in &self.devices {
            let (index, Wire(device)) = entry?;
            tables.devices.insert(index, device);
        }
        tables.xdp_devmap = self.read_devmap()?;
        Ok(())
    }

    /// Reads the veths to which XDP may redirect.
    pub(super) fn read_devmap(&self) -> Result<BTreeMap<u32, PeerVeth>> {
        let veths = self.xdp_devmap.keys();
        veths.map(|veth| Ok((veth?, nobody()))).collect()
    }

    fn read_networks(&self, observed: &mut Observed) -> Result<()> {
        let Observed {
            tables,
            endpoint_slots,
            ..
        } = observed;
        for entry in &self.networks {
            let (bridge, Wire(network)) = entry?;
            let Network {
                flags,
                default_endpoint,
                gateway,
                source,
                policy,
            } = network;
            let row = NetworkRow {
                flags,
                gateway,
                source,
                policy,
            };
            tables.networks.insert(bridge, row);
            let key = EndpointKey::Default(bridge);
            endpoint_slots.insert(key, default_endpoint);
            let endpoint = self.endpoints.get(&default_endpoint, 0)?.0;
            tables.endpoints.insert(key, endpoint);
        }
        for entry in &self.subnets {
            let (key, bridge) = entry?;
            let subnet = (key.data().0, key.prefix_len() as u8);
            tables.subnets.insert(subnet, bridge);
        }
        Ok(())
    }

    fn read_endpoints(&self, observed: &mut Observed) -> Result<()> {
        for entry in &self.endpoint_slots {
            let (Wire(address), slot) = entry?;
            let key = EndpointKey::Address(address);
            observed.endpoint_slots.insert(key, slot);
            let endpoint = self.endpoints.get(&slot, 0)?.0;
            observed.tables.endpoints.insert(key, endpoint);
        }
        Ok(())
    }

    fn read_addresses(&self, tables: &mut DesiredState) -> Result<()> {
        for key in self.host_addresses.keys() {
            let key = key?;
            tables
                .host_addresses
                .insert((key.data().0, key.prefix_len() as u8));
        }
        for entry in &self.masq_addresses {
            let (key, Wire(source)) = entry?;
            let Wire(MasqueradeKey { ifindex, next_hop }) = key.data();
            tables
                .masq_addresses
                .insert((ifindex, next_hop, (key.prefix_len() - 32) as u8), source);
        }
        Ok(())
    }

    fn read_published(&self, observed: &mut Observed) -> Result<()> {
        for entry in &self.published {
            let (Wire(key), Wire(published)) = entry?;
            observed.mapping_slots.insert(key, published.mapping);
            let generation = self.mappings.get(&published.mapping, 0)?;
            let Published {
                addr, port, policy, ..
            } = published;
            let target = Target {
                addr,
                port,
                policy,
                generation,
            };
            observed.tables.published.insert(key, target);
        }
        for entry in &self.seen_as {
            let (Wire(key), port) = entry?;
            observed.tables.seen_as.insert(key, port);
        }
        Ok(())
    }

    fn read_access(&self, tables: &mut DesiredState) -> Result<()> {
        for key in self.trusted.keys() {
            tables.trusted.insert(key?.0);
        }
        for key in self.links.keys() {
            tables.links.insert(key?.0);
        }
        for entry in &self.ingress {
            let (key, word) = entry?;
            let Wire(IngressKey { list, client }) = key.data();
            tables
                .ingress
                .insert((list, client, (key.prefix_len() - 32) as u8), word);
        }
        for entry in &self.allowed_sources {
            let (key, word) = entry?;
            let Wire(AllowedKey { device, source }) = key.data();
            tables
                .allowed
                .insert((device, source, (key.prefix_len() - 32) as u8), word);
        }
        Ok(())
    }

    /// Changes some of the settings; the others stay.
    pub(super) fn change_settings(
        &mut self,
        change: impl FnOnce(Settings) -> Settings,
    ) -> Result<()> {
        let settings = self.settings()?;
        self.set_settings(change(settings))
    }

    /// Writes an endpoint, and then the address that leads to it.
    pub(super) async fn put_endpoint(
        &mut self,
        key: EndpointKey,
        slot: u32,
        endpoint: Endpoint<V4>,
    ) -> Result<()> {
        let Wire(before) = self.endpoints.get(&slot, 0)?;
        self.endpoints.set(slot, Wire(endpoint), 0)?;
        if let EndpointKey::Address(address) = key {
            self.endpoint_slots.insert(Wire(address), slot, 0)?;
            if before.generation != endpoint.generation {
                neighbours::forget(endpoint.bridge, address.octets().into()).await?;
            }
        }
        Ok(())
    }

    /// Removes the address that leads to an endpoint, and then the endpoint.
    pub(super) async fn drop_endpoint(&mut self, key: EndpointKey, slot: u32) -> Result<()> {
        let Wire(before) = self.endpoints.get(&slot, 0)?;
        if let EndpointKey::Address(address) = key {
            self.endpoint_slots.remove(&Wire(address))?;
        }
        let empty = Endpoint::<V4>::default();
        self.endpoints.set(slot, Wire(empty), 0)?;
        if let EndpointKey::Address(address) = key {
            neighbours::forget(before.bridge, address.octets().into()).await?;
        }
        Ok(())
    }

    /// Writes a network.
    pub(super) fn put_network(
        &mut self,
        bridge: u32,
        row: NetworkRow,
        default_endpoint: u32,
    ) -> Result<()> {
        let NetworkRow {
            flags,
            gateway,
            source,
            policy,
        } = row;
        let network = Network {
            flags,
            default_endpoint,
            gateway,
            source,
            policy,
        };
        Ok(self.networks.insert(bridge, Wire(network), 0)?)
    }

    /// Writes a published port: first the generation of its mapping, then where it leads.
    pub(super) fn put_published(
        &mut self,
        key: PortKey<V4>,
        slot: u32,
        target: Target,
    ) -> Result<()> {
        let Target {
            addr,
            port,
            policy,
            generation,
        } = target;
        self.mappings.set(slot, generation, 0)?;
        let published = Published {
            mapping: slot,
            policy,
            addr,
            port,
            reserved: 0,
        };
        Ok(self.published.insert(Wire(key), Wire(published), 0)?)
    }
}

pub(super) fn subnet_key((address, len): (Be32, u8)) -> Key<Wire<Be32>> {
    Key::new(u32::from(len), Wire(address))
}

pub(super) fn source_key(
    (ifindex, next_hop, len): (u32, Be32, u8),
) -> Key<Wire<MasqueradeKey<V4>>> {
    Key::new(
        32 + u32::from(len),
        Wire(MasqueradeKey { ifindex, next_hop }),
    )
}

pub(super) fn ingress_key((list, client, len): (u32, Be32, u8)) -> Key<Wire<IngressKey<V4>>> {
    Key::new(32 + u32::from(len), Wire(IngressKey { list, client }))
}

pub(super) fn allowed_key((device, source, len): (u32, Be32, u8)) -> Key<Wire<AllowedKey<V4>>> {
    Key::new(32 + u32::from(len), Wire(AllowedKey { device, source }))
}

/// Returns a placeholder for a peer of which only the veth is known.
fn nobody() -> PeerVeth {
    PeerVeth {
        sandbox_key: String::new(),
        pid: 0,
        index: 0,
    }
}
