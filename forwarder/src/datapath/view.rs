// SPDX-License-Identifier: MIT OR Apache-2.0
//! A view of the datapath from outside, also when no agent runs.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, ensure};
use forwarder_common::abi::Settings;
use forwarder_common::clock::Ticks;
use forwarder_common::reason::Reason;
use forwarder_state::desired_state::{Hook, SocketHook};

use super::flows::FlowSnapshot;
use super::hooks::attached;
use super::maps::{MapFill, Maps};
use super::pins::Pins;
use crate::trusted;

/// A view of the pinned maps and links.
pub struct View {
    maps: Maps,
    pins: Pins,
}

impl View {
    /// Opens the pins under `bpffs_dir`.
    ///
    /// # Errors
    /// No datapath of this layout is pinned there.
    pub fn open(bpffs_dir: &Path) -> Result<Self> {
        let pins = Pins::below(bpffs_dir);
        ensure!(trusted::is_there(&pins.maps())?, "nothing is pinned there");
        Ok(Self {
            maps: Maps::open(&pins.maps())?,
            pins,
        })
    }

    /// Returns the live flows that have not expired.
    #[must_use]
    pub fn flows(&self, now: Ticks) -> Vec<FlowSnapshot> {
        self.maps.snapshots(now)
    }

    /// Returns packets by reason, over all CPUs.
    pub fn reasons(&self) -> Result<Vec<(Reason, u64)>> {
        Reason::ALL
            .into_iter()
            .map(|reason| Ok((reason, self.maps.count(reason)?)))
            .collect()
    }

    /// Returns how full the maps are, by name.
    pub fn maps(&self) -> Result<Vec<MapFill>> {
        let flows = self.maps.settings()?.flows;
        let mut fills = self.maps.fills(flows);
        fills.sort_unstable();
        Ok(fills)
    }

    /// Returns the attached programs by device index. Programs attached by clsact filters are not
    /// visible here.
    ///
    /// # Errors
    /// The pins cannot be read.
    pub fn hooks(&self) -> Result<BTreeSet<(u32, Hook)>> {
        Ok(attached(&self.pins, &self.pins.hooks()?))
    }

    /// Returns whether the programs enforce their verdicts, and what is behind them
    /// ([`armed`](forwarder_common::abi::armed)); they do not before an agent's first start is
    /// complete.
    ///
    /// # Errors
    /// The settings cannot be read.
    pub fn armed(&self) -> Result<u32> {
        Ok(self.maps.settings()?.armed)
    }

    /// Changes what the programs are armed for, by one write.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn arm(&mut self, armed: u32) -> Result<()> {
        self.maps
            .change_settings(|settings| Settings { armed, ..settings })
    }

    /// Returns the number of connections that stay the kernel's until they end.
    #[must_use]
    pub fn kernel_connections(&self) -> usize {
        self.maps.kernel_connections()
    }

    /// Returns the attached socket programs.
    pub fn sockets(&self) -> Result<BTreeSet<SocketHook>> {
        self.pins.sockets()
    }
}
