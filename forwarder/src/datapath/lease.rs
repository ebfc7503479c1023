// SPDX-License-Identifier: MIT OR Apache-2.0
//! The lease by which one process at a time makes the programs write to a ring: it tells them until
//! when it listens, and renews that every second. The agent ends the lease of a process that was
//! killed.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::maps::{Array, MapData};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::Errno;

use super::coarse;
use super::maps::pinned;

/// How long the programs write after the last renewal.
const LEASE: Duration = Duration::from_secs(5);

/// The lease of this process. When it is dropped, the programs stop writing.
pub(super) struct Lease {
    watch: Array<MapData, u64>,
    _lock: OwnedFd,
}

impl Lease {
    /// Takes the lease whose map of this name is pinned in `maps`, or returns `None` if another
    /// process has it. `dir` is the directory that its holder locks, because a pin cannot be opened
    /// as a file. The programs begin to write with the first renewal.
    pub(super) fn take(maps: &Path, name: &str, dir: &Path) -> Result<Option<Self>> {
        let Some(lock) = lock(dir)? else {
            return Ok(None);
        };
        Ok(Some(Self {
            watch: pinned(maps, name)?,
            _lock: lock,
        }))
    }

    /// Renews the lease.
    pub(super) fn renew(&mut self) -> Result<()> {
        let until = coarse() + LEASE.as_nanos() as u64;
        self.watch
            .set(0, until, 0)
            .context("cannot tell the programs that somebody listens")
    }

    /// Makes the programs stop writing. What is in the ring can still be read.
    pub(super) fn end(&mut self) -> Result<()> {
        self.watch
            .set(0, 0, 0)
            .context("cannot tell the programs that nobody listens any more")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // If this fails, the agent does it later.
        let _ = self.end();
    }
}

/// Ends a lease that is over because its holder was killed.
pub(super) fn tidy(maps: &Path, name: &str, dir: &Path) -> Result<()> {
    let mut watch: Array<MapData, u64> = pinned(maps, name)?;
    let until = watch.get(&0, 0)?;
    if until != 0
        && until < coarse()
        && let Some(_lock) = lock(dir)?
    {
        watch.set(0, 0, 0)?;
    }
    Ok(())
}

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
