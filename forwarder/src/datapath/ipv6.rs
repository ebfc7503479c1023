// SPDX-License-Identifier: MIT OR Apache-2.0
//! The IPv6 tables in their maps.

use std::collections::BTreeMap;

use anyhow::Result;
use aya::maps::MapError;
use aya::maps::lpm_trie::Key;
use forwarder_common::abi::{AllowedKey6, IngressKey6};
use forwarder_common::family::Be128;
use forwarder_state::desired_state::{Key6, Row6};

use super::maps::{Maps, Wire};

impl Maps {
    /// Reads all rows.
    pub(super) fn ipv6(&self) -> Result<BTreeMap<Key6, Row6>> {
        let mut rows = BTreeMap::new();
        for entry in &self.host_addresses6 {
            let (Wire(key), present) = entry?;
            rows.insert(Key6::Local(key), Row6::Index(present));
        }
        for entry in &self.subnets6 {
            let (key, bridge) = entry?;
            let subnet = Key6::Subnet(key.data().0, key.prefix_len() as u8);
            rows.insert(subnet, Row6::Index(bridge));
        }
        for entry in &self.owners6 {
            let (Wire(key), veth) = entry?;
            rows.insert(Key6::Owner(key), Row6::Index(veth));
        }
        for entry in &self.endpoints6 {
            let (veth, Wire(endpoint)) = entry?;
            rows.insert(Key6::Endpoint(veth), Row6::Endpoint(endpoint));
        }
        for entry in &self.ingress6 {
            let (key, word) = entry?;
            let client = Key6::Ingress(key.data().0, (key.prefix_len() - 32) as u8);
            rows.insert(client, Row6::Index(word));
        }
        for entry in &self.allowed6 {
            let (key, word) = entry?;
            let source = Key6::Allowed(key.data().0, (key.prefix_len() - 32) as u8);
            rows.insert(source, Row6::Index(word));
        }
        for entry in &self.published6 {
            let (Wire(key), Wire(published)) = entry?;
            rows.insert(Key6::Published(key), Row6::Published(published));
        }
        Ok(rows)
    }

    /// Writes a row.
    pub(super) fn put_ipv6(&mut self, key: Key6, row: Row6) -> Result<(), MapError> {
        match (key, row) {
            (Key6::Local(key), Row6::Index(present)) => {
                self.host_addresses6.insert(Wire(key), present, 0)
            }
            (Key6::Subnet(address, len), Row6::Index(bridge)) => {
                self.subnets6.insert(&subnet(address, len), bridge, 0)
            }
            (Key6::Owner(key), Row6::Index(veth)) => self.owners6.insert(Wire(key), veth, 0),
            (Key6::Endpoint(veth), Row6::Endpoint(endpoint)) => {
                self.endpoints6.insert(veth, Wire(endpoint), 0)
            }
            (Key6::Ingress(key, len), Row6::Index(word)) => {
                self.ingress6.insert(&client(key, len), word, 0)
            }
            (Key6::Allowed(key, len), Row6::Index(word)) => {
                self.allowed6.insert(&source(key, len), word, 0)
            }
            (Key6::Published(key), Row6::Published(published)) => {
                self.published6.insert(Wire(key), Wire(published), 0)
            }
            (key, row) => unreachable!("{key:?} never has {row:?}"),
        }
    }

    /// Removes a row.
    pub(super) fn drop_ipv6(&mut self, key: Key6) -> Result<(), MapError> {
        match key {
            Key6::Local(key) => self.host_addresses6.remove(&Wire(key)),
            Key6::Subnet(address, len) => self.subnets6.remove(&subnet(address, len)),
            Key6::Owner(key) => self.owners6.remove(&Wire(key)),
            Key6::Endpoint(veth) => self.endpoints6.remove(&veth),
            Key6::Ingress(key, len) => self.ingress6.remove(&client(key, len)),
            Key6::Allowed(key, len) => self.allowed6.remove(&source(key, len)),
            Key6::Published(key) => self.published6.remove(&Wire(key)),
        }
    }
}

fn subnet(address: Be128, len: u8) -> Key<Wire<Be128>> {
    Key::new(u32::from(len), Wire(address))
}

fn client(key: IngressKey6, len: u8) -> Key<Wire<IngressKey6>> {
    Key::new(32 + u32::from(len), Wire(key))
}

fn source(key: AllowedKey6, len: u8) -> Key<Wire<AllowedKey6>> {
    Key::new(32 + u32::from(len), Wire(key))
}
