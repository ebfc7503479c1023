// SPDX-License-Identifier: MIT OR Apache-2.0
//! Flow events that the programs write to a ring, read by one watcher at a time.
//!
//! The watcher writes until when it listens, and renews this every second. Events that do not fit
//! into the ring, or that occur while the watcher is stopped, are counted instead. Read and counted
//! events together are all events. If a watcher was killed, the agent notices it and makes the
//! programs stop counting.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aya::maps::{Array, MapData, PerCpuArray, RingBuf};
use forwarder_common::abi::name;
use forwarder_common::clock::Ticks;
use forwarder_common::event::{Event, EventKind};
use forwarder_common::family::Family;
use forwarder_state::address::WireAddress;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use super::coarse;
use super::families::flow_event;
use super::flows::FlowSnapshot;
use super::maps::{self, pinned};
use super::pins::Pins;

/// How long the programs write events after a watcher's last renewal.
const LEASE: Duration = Duration::from_secs(5);

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
    ring: AsyncFd<RingBuf<MapData>>,
    watch: Array<MapData, u64>,
    lost: PerCpuArray<MapData, u64>,
    /// The number of lost events that were already reported.
    known: u64,
    _lock: OwnedFd,
}

impl Events {
    /// Starts to listen to the events of the programs pinned under `bpffs_dir`. Needs a tokio
    /// runtime.
    ///
    /// # Errors
    /// No datapath of this version is pinned there, or another process watches.
    pub fn open(bpffs_dir: &Path) -> Result<Self> {
        let dir = Pins::below(bpffs_dir).maps();
        let Some(lock) = lock(&dir)? else {
            bail!("another `forwarder flows --watch` runs already: only one can run at a time");
        };
        let mut ring = maps::ring(&dir, name::EVENTS)?;
        // Discards events that an earlier watcher did not read.
        while ring.get_mut().next().is_some() {}
        let mut events = Self {
            ring,
            watch: pinned(&dir, name::WATCH)?,
            lost: pinned(&dir, name::LOST)?,
            known: 0,
            _lock: lock,
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
        let until = coarse() + LEASE.as_nanos() as u64;
        self.watch
            .set(0, until, 0)
            .context("cannot tell the programs that a watcher listens")
    }

    /// Makes the programs stop writing events. Events that are in the ring can still be read.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn close(&mut self) -> Result<()> {
        self.watch
            .set(0, 0, 0)
            .context("cannot tell the programs that the watcher has ended")
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

impl Drop for Events {
    fn drop(&mut self) {
        // If this fails, the agent does it later.
        let _ = self.close();
    }
}

/// Takes the watcher's lock, or returns `None` if another process holds it. The lock is on the
/// directory, because a pin cannot be opened as a file.
fn lock(dir: &Path) -> Result<Option<OwnedFd>> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let cannot = || format!("cannot open {}", dir.display());
    let file = open(dir, flags, Mode::empty()).with_context(cannot)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error).with_context(cannot),
    }
}

/// Makes the programs stop counting for a watcher that was killed.
pub(super) fn tidy(dir: &Path) -> Result<()> {
    let mut watch: Array<MapData, u64> = pinned(dir, name::WATCH)?;
    let until = watch.get(&0, 0)?;
    if until != 0
        && until < coarse()
        && let Some(_lock) = lock(dir)?
    {
        watch.set(0, 0, 0)?;
    }
    Ok(())
}
