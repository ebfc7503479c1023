// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads and writes the tables of one address family in its maps.

use anyhow::Result;
use aya::maps::lpm_trie::Key;
use forwarder_common::abi::{
    AllowedKey, Endpoint, IngressKey, MasqueradeKey, Network, Peer, PortKey, Published,
};
use forwarder_common::family::Address as _;
use forwarder_common::socket;
use forwarder_state::address::WireAddress as _;
use forwarder_state::desired_state::{EndpointKey, FamilyTables, NetworkRow, Slots, Target};
use forwarder_state::diff::FamilyChange;

use super::families::MapFamily;
use super::maps::{FamilyMaps, Plain, Wire};
use super::neighbours;

impl<F: MapFamily> FamilyMaps<F> {
    /// Reads all tables, and the slots of endpoints and mappings.
    pub(super) fn read(&self, tables: &mut FamilyTables<F>, slots: &mut Slots<F>) -> Result<()> {
        self.read_networks(tables, slots)?;
        self.read_endpoints(tables, slots)?;
        self.read_addresses(tables)?;
        self.read_published(tables, slots)?;
        self.read_access(tables)
    }

    /// Returns the container to which a socket that connects to `asked` is redirected. Any address
    /// counts as the host's: the removal of one does not end connections that were made to it.
    pub(super) fn socket_target(&self, asked: &Peer) -> Option<Peer> {
        let published = |key: &PortKey<F>| self.published.get(&Wire(*key), 0).ok().map(|row| row.0);
        socket::target(asked, |_| true, published)
    }

    /// Whether a container's address, if it is of this family, is in no subnet.
    pub(super) fn is_not_ours(&self, container: Peer) -> bool {
        let is_outside = |address| {
            self.subnets
                .get(&subnet_key((address, F::Addr::BITS)), 0)
                .is_err()
        };
        F::Addr::narrow(container.addr).is_some_and(is_outside)
    }

    fn read_networks(&self, tables: &mut FamilyTables<F>, slots: &mut Slots<F>) -> Result<()> {
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
            slots.endpoints.insert(key, default_endpoint);
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

    fn read_endpoints(&self, tables: &mut FamilyTables<F>, slots: &mut Slots<F>) -> Result<()> {
        for entry in &self.endpoint_slots {
            let (Wire(address), slot) = entry?;
            let key = EndpointKey::Address(address);
            slots.endpoints.insert(key, slot);
            let endpoint = self.endpoints.get(&slot, 0)?.0;
            tables.endpoints.insert(key, endpoint);
        }
        Ok(())
    }

    fn read_addresses(&self, tables: &mut FamilyTables<F>) -> Result<()> {
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

    fn read_published(&self, tables: &mut FamilyTables<F>, slots: &mut Slots<F>) -> Result<()> {
        for entry in &self.published {
            let (Wire(key), Wire(published)) = entry?;
            slots.mappings.insert(key, published.mapping);
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
            tables.published.insert(key, target);
        }
        for entry in &self.seen_as {
            let (Wire(key), port) = entry?;
            tables.seen_as.insert(key, port);
        }
        Ok(())
    }

    fn read_access(&self, tables: &mut FamilyTables<F>) -> Result<()> {
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

    /// Applies a change of the tables. With `moves`, an address that changes may have another owner
    /// now, so the kernel forgets who its neighbour was, and what waits for the old one.
    ///
    /// # Errors
    /// The kernel refuses it. A repetition completes whatever was half done.
    pub(super) async fn apply(&mut self, change: FamilyChange<F>, moves: bool) -> Result<()> {
        match change {
            FamilyChange::PutEndpoint {
                key,
                slot,
                endpoint,
            } => self.put_endpoint(key, slot, endpoint, moves).await?,
            FamilyChange::DropEndpoint { key, slot } => {
                self.drop_endpoint(key, slot, moves).await?;
            }
            FamilyChange::PutNetwork {
                bridge,
                row,
                default_endpoint,
            } => self.put_network(bridge, row, default_endpoint)?,
            FamilyChange::DropNetwork(bridge) => self.networks.remove(&bridge)?,
            FamilyChange::PutSubnet(subnet, bridge) => {
                self.subnets.insert(&subnet_key(subnet), bridge, 0)?;
            }
            FamilyChange::DropSubnet(subnet) => self.subnets.remove(&subnet_key(subnet))?,
            FamilyChange::PutHostAddress(range) => {
                self.host_addresses.insert(&subnet_key(range), 1, 0)?;
            }
            FamilyChange::DropHostAddress(range) => {
                self.host_addresses.remove(&subnet_key(range))?;
            }
            FamilyChange::PutMasqAddress(key, source) => {
                self.masq_addresses
                    .insert(&source_key(key), Wire(source), 0)?;
            }
            FamilyChange::DropMasqAddress(key) => self.masq_addresses.remove(&source_key(key))?,
            FamilyChange::PutPublished { key, slot, target } => {
                self.put_published(key, slot, target)?;
            }
            FamilyChange::DropPublished { key, slot } => {
                self.published.remove(&Wire(key))?;
                self.mappings.set(slot, 0, 0)?;
            }
            FamilyChange::PutSeenAs(key, port) => self.seen_as.insert(Wire(key), port, 0)?,
            FamilyChange::DropSeenAs(key) => self.seen_as.remove(&Wire(key))?,
            FamilyChange::PutLink(key) => self.links.insert(Wire(key), 1, 0)?,
            FamilyChange::DropLink(key) => self.links.remove(&Wire(key))?,
            FamilyChange::PutIngress(key, word) => {
                self.ingress.insert(&ingress_key(key), word, 0)?;
            }
            FamilyChange::DropIngress(key) => self.ingress.remove(&ingress_key(key))?,
            FamilyChange::PutAllowed(key, word) => {
                self.allowed_sources.insert(&allowed_key(key), word, 0)?;
            }
            FamilyChange::DropAllowed(key) => self.allowed_sources.remove(&allowed_key(key))?,
        }
        Ok(())
    }

    /// Writes an endpoint, and then the address that leads to it.
    async fn put_endpoint(
        &mut self,
        key: EndpointKey<F>,
        slot: u32,
        endpoint: Endpoint<F>,
        moves: bool,
    ) -> Result<()> {
        let Wire(before) = self.endpoints.get(&slot, 0)?;
        self.endpoints.set(slot, Wire(endpoint), 0)?;
        if let EndpointKey::Address(address) = key {
            self.endpoint_slots.insert(Wire(address), slot, 0)?;
            if moves && before.generation != endpoint.generation {
                neighbours::forget(endpoint.bridge, address.ip()).await?;
            }
        }
        Ok(())
    }

    /// Removes the address that leads to an endpoint, and then the endpoint.
    async fn drop_endpoint(&mut self, key: EndpointKey<F>, slot: u32, moves: bool) -> Result<()> {
        let Wire(before) = self.endpoints.get(&slot, 0)?;
        if let EndpointKey::Address(address) = key {
            self.endpoint_slots.remove(&Wire(address))?;
        }
        let empty = Endpoint::<F>::default();
        self.endpoints.set(slot, Wire(empty), 0)?;
        if let EndpointKey::Address(address) = key
            && moves
        {
            neighbours::forget(before.bridge, address.ip()).await?;
        }
        Ok(())
    }

    /// Writes a network.
    fn put_network(
        &mut self,
        bridge: u32,
        row: NetworkRow<F>,
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
    fn put_published(&mut self, key: PortKey<F>, slot: u32, target: Target<F>) -> Result<()> {
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

fn subnet_key<A: Plain>((address, len): (A, u8)) -> Key<Wire<A>> {
    Key::new(u32::from(len), Wire(address))
}

fn source_key<F: MapFamily>(
    (ifindex, next_hop, len): (u32, F::Addr, u8),
) -> Key<Wire<MasqueradeKey<F>>> {
    Key::new(
        32 + u32::from(len),
        Wire(MasqueradeKey { ifindex, next_hop }),
    )
}

fn ingress_key<F: MapFamily>((list, client, len): (u32, F::Addr, u8)) -> Key<Wire<IngressKey<F>>> {
    Key::new(32 + u32::from(len), Wire(IngressKey { list, client }))
}

fn allowed_key<F: MapFamily>(
    (device, source, len): (u32, F::Addr, u8),
) -> Key<Wire<AllowedKey<F>>> {
    Key::new(32 + u32::from(len), Wire(AllowedKey { device, source }))
}
