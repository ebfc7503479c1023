// SPDX-License-Identifier: MIT OR Apache-2.0
//! Dropped packets that the programs write to a ring, read by one watcher at a time. The ring has
//! room for a hundred; a packet for which it has none is only counted under its reason.

use std::path::Path;

use anyhow::{Result, bail};
use aya::maps::{MapData, RingBuf};
use forwarder_common::abi::name;
use forwarder_common::dropped::DroppedPacket;
use forwarder_common::reason::{Path as PacketPath, Reason};

use super::lease::{self, Lease};
use super::maps::{self, Maps};
use super::pins::Pins;

/// The reading end of the ring. When it is dropped, the programs stop writing.
pub struct Drops {
    lease: Lease,
    ring: RingBuf<MapData>,
    maps: Maps,
    /// The number of packets that had been dropped when it began to listen.
    before: u64,
}

impl Drops {
    /// Starts to listen to the programs pinned under `bpffs_dir`.
    ///
    /// # Errors
    /// No datapath of this version is pinned there, or another process watches.
    pub fn open(bpffs_dir: &Path) -> Result<Self> {
        let pins = Pins::below(bpffs_dir);
        let dir = pins.maps();
        let Some(lease) = Lease::take(&dir, name::DROPS_WATCH, &pins.links())? else {
            bail!("another `forwarder drops --watch` runs already: only one can run at a time");
        };
        let mut drops = Self {
            lease,
            ring: maps::pinned(&dir, name::DROPS)?,
            maps: Maps::open(&dir)?,
            before: 0,
        };
        drops.before = drops.total()?;
        // What an earlier watcher did not read.
        while drops.read().is_some() {}
        drops.renew()?;
        Ok(drops)
    }

    /// Renews the time until which the programs write. Must be called every second.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn renew(&mut self) -> Result<()> {
        self.lease.renew()
    }

    /// Returns the next packet, if there is one.
    pub fn read(&mut self) -> Option<DroppedPacket> {
        self.ring.next().and_then(|entry| maps::dropped(&entry))
    }

    /// Returns how many packets have been dropped since it began to listen.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn dropped(&self) -> Result<u64> {
        Ok(self.total()?.saturating_sub(self.before))
    }

    fn total(&self) -> Result<u64> {
        let drops = Reason::ALL
            .into_iter()
            .filter(|reason| reason.path() == PacketPath::Drop);
        drops.map(|reason| self.maps.count(reason)).sum()
    }
}

/// Ends the lease of a watcher that was killed.
pub(super) fn tidy(pins: &Pins) -> Result<()> {
    lease::tidy(&pins.maps(), name::DROPS_WATCH, &pins.links())
}
