// SPDX-License-Identifier: MIT OR Apache-2.0
//! Applies one change of the plan to maps and programs.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use forwarder_common::abi::{Settings, armed};
use forwarder_state::diff::Change;

use super::maps::Wire;
use super::{Datapath, unless_absent};

impl Datapath {
    /// Applies one change. `names` are the devices' names by index.
    ///
    /// # Errors
    /// The kernel refuses it. A repetition completes whatever was half done.
    pub async fn apply(&mut self, op: &Change, names: &BTreeMap<u32, String>) -> Result<()> {
        let maps = &mut self.maps;
        match *op {
            Change::Settings {
                route_generation,
                xdp_tcp,
                route_mtu,
                others,
                lists6,
            } => maps.change_settings(|settings| Settings {
                route_generation,
                xdp_tcp: u32::from(xdp_tcp),
                route_mtu,
                others,
                lists6: u32::from(lists6),
                ..settings
            })?,
            Change::Policy(policy) => self.ask_flows(policy)?,
            Change::DefragLoopback(defrag_loopback) => {
                maps.change_settings(|settings| Settings {
                    defrag_loopback,
                    ..settings
                })?;
            }
            Change::PutDevice(index, device) => maps.devices.insert(index, Wire(device), 0)?,
            Change::DropDevice(index) => maps.devices.remove(&index)?,
            Change::PutTrusted(key) => maps.trusted.insert(Wire(key), 1, 0)?,
            Change::DropTrusted(key) => maps.trusted.remove(&Wire(key))?,
            Change::V4(change) => {
                // While a host or a network changes hands, every container stays where it is.
                let moves = matches!(maps.settings()?.armed, armed::REPLACE | armed::ADOPT);
                maps.v4.apply(change, moves).await?;
            }
            Change::PutIpv6(key, row) => maps.put_ipv6(key, row)?,
            Change::DropIpv6(key) => maps.drop_ipv6(key)?,
            Change::PutDevmap(veth, ref peer_veth) => {
                self.peer_veths.prepare(veth, peer_veth).await?;
                maps.xdp_devmap.insert(veth, veth, None, 0)?;
            }
            Change::DropDevmap(veth) => {
                self.peer_veths.forget(veth);
                // The kernel removes the entry with its device.
                unless_absent(maps.xdp_devmap.remove(veth))?;
            }
            Change::Attach { ifindex, hook, xdp } => {
                let device = names.get(&ifindex).context("the device has gone")?;
                self.hooks.attach(ifindex, device, hook, xdp).await?;
            }
            Change::Detach { ifindex, hook } => self.hooks.detach(ifindex, hook)?,
            Change::AttachSocket(hook) => self.hooks.attach_socket(hook)?,
            Change::DetachSocket(hook) => self.hooks.detach_socket(hook)?,
            Change::SeverSockets => self.sever_sockets()?,
        }
        Ok(())
    }
}
