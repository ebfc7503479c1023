// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads all tables from the maps: what is common. The families' tables are read by
//! `family_rows.rs`.

use std::collections::BTreeMap;

use anyhow::Result;
use forwarder_common::abi::Settings;
use forwarder_state::desired_state::{DesiredState, Observed, PeerVeth};

use super::maps::{Maps, Wire};

impl Maps {
    /// Reads all tables: everything but the programs' attachments.
    pub(super) fn observe(&self) -> Result<Observed> {
        let mut observed = Observed::default();
        let tables = &mut observed.tables;
        self.read_settings(tables)?;
        self.read_devices(tables)?;
        tables.ipv6 = self.ipv6()?;
        self.read_families(&mut observed)?;
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
        for key in self.trusted.keys() {
            tables.trusted.insert(key?.0);
        }
        Ok(())
    }

    /// Reads the veths to which XDP may redirect.
    pub(super) fn read_devmap(&self) -> Result<BTreeMap<u32, PeerVeth>> {
        let veths = self.xdp_devmap.keys();
        veths.map(|veth| Ok((veth?, nobody()))).collect()
    }

    /// Changes some of the settings; the others stay.
    pub(super) fn change_settings(
        &mut self,
        change: impl FnOnce(Settings) -> Settings,
    ) -> Result<()> {
        let settings = self.settings()?;
        self.set_settings(change(settings))
    }
}

/// Returns a placeholder for a peer of which only the veth is known.
fn nobody() -> PeerVeth {
    PeerVeth {
        sandbox_key: String::new(),
        pid: 0,
        index: 0,
    }
}
