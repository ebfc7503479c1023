// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the programs tell of flows, read from their ring by one watcher at a time.
//!
//! The watcher says until when it listens, and says so again every second. Whatever does not fit
//! into the ring, or happens while it is stopped, is counted instead: with what was read that is
//! everything. A watcher that was killed is noticed by the agent, which has the programs stop
//! counting.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aya::maps::{Array, MapData, PerCpuArray, RingBuf};
use forwarder_common::abi::name;
use forwarder_common::event::EventKind;
use forwarder_common::flow::{FlowState, ORIGINAL, REPLY};
use forwarder_common::timeouts::Ticks;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use super::coarse;
use super::maps::{self, FlowSnapshot, pinned};
use super::pins::Pins;

/// How long a watcher is believed to listen after it last said so.
const LEASE: Duration = Duration::from_secs(5);

/// Something that happened to a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowEvent {
    /// What.
    pub news: EventKind,
    /// When.
    pub at: Ticks,
    /// The flow as it was then.
    pub flow: FlowSnapshot,
}

/// The one watcher's end of the ring. Dropped, the programs stop telling.
pub struct Events {
    ring: AsyncFd<RingBuf<MapData>>,
    watch: Array<MapData, u64>,
    lost: PerCpuArray<MapData, u64>,
    /// Of the lost events, how many have been spoken of.
    known: u64,
    _lock: OwnedFd,
}

impl Events {
    /// Listens from now on to what the programs pinned below `bpffs_dir` tell. Needs a tokio runtime.
    ///
    /// # Errors
    /// Nothing of this version is pinned there, or somebody else watches.
    pub fn open(bpffs_dir: &Path) -> Result<Self> {
        let dir = Pins::below(bpffs_dir).maps();
        let Some(lock) = lock(&dir)? else {
            bail!("somebody watches already: one `forwarder flows --watch` at a time");
        };
        let mut ring = maps::ring(&dir, name::EVENTS)?;
        // What an earlier watcher did not live to read.
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

    /// Says that somebody still listens: to be called every second.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn renew(&mut self) -> Result<()> {
        let until = coarse() + LEASE.as_nanos() as u64;
        self.watch
            .set(0, until, 0)
            .context("cannot tell the programs that somebody watches")
    }

    /// Has the programs stop telling; what they have told can still be read.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn close(&mut self) -> Result<()> {
        self.watch
            .set(0, 0, 0)
            .context("cannot tell the programs that nobody watches any more")
    }

    /// Waits until there may be something to read.
    ///
    /// # Errors
    /// The kernel refuses to wait.
    pub async fn wait(&mut self) -> Result<()> {
        let mut ready = self.ring.readable_mut().await?;
        // Before the ring is read: what comes from here on wakes us again.
        ready.clear_ready();
        Ok(())
    }

    /// The next event, if there is one.
    pub fn read(&mut self) -> Option<FlowEvent> {
        while let Some(entry) = self.ring.get_mut().next() {
            let Some(event) = maps::event(&entry) else {
                continue;
            };
            let flow = FlowSnapshot {
                original: event.tuples[ORIGINAL].get(),
                reply: event.tuples[REPLY].get(),
                index: event.index.get(),
                flow_state: FlowState(event.flow_state.get()),
                packets: event.packets.map(Cell::into_inner),
                bytes: event.bytes.map(Cell::into_inner),
                created: event.created.get(),
                seen: event.seen.get(),
                expires: event.expires.get(),
            };
            return Some(FlowEvent {
                news: EventKind::from_u32(event.news.get()),
                at: event.at.get(),
                flow,
            });
        }
        None
    }

    /// How many events were lost since this was asked last.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn lost(&mut self) -> Result<u64> {
        let counts = self.lost.get(&0, 0).context("cannot read what was lost")?;
        let all = counts.iter().sum::<u64>();
        Ok(all - std::mem::replace(&mut self.known, all))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // Where it fails, the agent will do it.
        let _ = self.close();
    }
}

/// Whoever watches holds this lock: on the directory, since a pin cannot be opened as a file. `None`
/// if somebody has it.
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

/// Has the programs stop counting for a watcher that was killed.
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
