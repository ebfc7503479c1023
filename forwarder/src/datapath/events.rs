// SPDX-License-Identifier: MIT OR Apache-2.0
//! Flow events that the programs write to a ring, read by one watcher at a time.
//!
//! Events that do not fit into the ring, or that occur while the watcher is stopped, are counted
//! instead. Read and counted events together are all events.

use std::path::Path;

use anyhow::{Context, Result, bail};
use aya::maps::{MapData, PerCpuArray, RingBuf};
use forwarder_common::abi::name;
use forwarder_common::clock::Ticks;
use forwarder_common::event::{Event, EventKind};
use forwarder_common::family::Family;
use forwarder_state::address::WireAddress;
use tokio::io::unix::AsyncFd;

use super::families::flow_event;
use super::flows::FlowSnapshot;
use super::lease::{self, Lease};
use super::maps::{self, pinned};
use super::pins::Pins;

/// An event of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowEvent {
    /// The kind of event.
    pub news: EventKind,
    /// When it happened.
    pub at: Ticks,
    /// The flow at that time.
    pub flow: FlowSnapshot,
}

impl FlowEvent {
    pub(super) fn of<F: Family<Addr: WireAddress>>(event: &Event<F>) -> Self {
        Self {
            news: EventKind::from_u32(event.kind.get()),
            at: event.at.get(),
            flow: FlowSnapshot::of_event(event),
        }
    }
}

/// The reading end of the ring, for the one watcher. When it is dropped, the programs stop writing
/// events.
pub struct Events {
    lease: Lease,
    ring: AsyncFd<RingBuf<MapData>>,
    lost: PerCpuArray<MapData, u64>,
    /// The number of lost events that were already reported.
    known: u64,
}

impl Events {
    /// Starts to listen to the events of the programs pinned under `bpffs_dir`. Needs a tokio
    /// runtime.
    ///
    /// # Errors
    /// No datapath of this version is pinned there, or another process watches.
    pub fn open(bpffs_dir: &Path) -> Result<Self> {
        let dir = Pins::below(bpffs_dir).maps();
        let Some(lease) = Lease::take(&dir, name::WATCH, &dir)? else {
            bail!("another `forwarder flows --watch` runs already: only one can run at a time");
        };
        let mut ring = maps::ring(&dir, name::EVENTS)?;
        // Discards events that an earlier watcher did not read.
        while ring.get_mut().next().is_some() {}
        let mut events = Self {
            lease,
            ring,
            lost: pinned(&dir, name::LOST)?,
            known: 0,
        };
        events.lost()?;
        events.renew()?;
        Ok(events)
    }

    /// Renews the time until which the watcher listens. Must be called every second.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn renew(&mut self) -> Result<()> {
        self.lease.renew()
    }

    /// Makes the programs stop writing events. Events that are in the ring can still be read.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn close(&mut self) -> Result<()> {
        self.lease.end()
    }

    /// Waits until there may be an event to read.
    ///
    /// # Errors
    /// The kernel refuses to wait.
    pub async fn wait(&mut self) -> Result<()> {
        let mut ready = self.ring.readable_mut().await?;
        // This comes before the ring is read, so that a later event wakes the task again.
        ready.clear_ready();
        Ok(())
    }

    /// Returns the next event, if there is one.
    pub fn read(&mut self) -> Option<FlowEvent> {
        while let Some(entry) = self.ring.get_mut().next() {
            if let Some(event) = flow_event(&entry) {
                return Some(event);
            }
        }
        None
    }

    /// Returns how many events were lost since the last call.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn lost(&mut self) -> Result<u64> {
        let counts = self
            .lost
            .get(&0, 0)
            .context("cannot read the number of lost events")?;
        let all = counts.iter().sum::<u64>();
        Ok(all - std::mem::replace(&mut self.known, all))
    }
}

/// Ends the lease of a watcher that was killed, for whom the programs would go on counting.
pub(super) fn tidy(pins: &Pins) -> Result<()> {
    let dir = pins.maps();
    lease::tidy(&dir, name::WATCH, &dir)
}
