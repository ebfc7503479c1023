// SPDX-License-Identifier: MIT OR Apache-2.0
//! The programs' messages for programmers (aya-log), forwarded to the agent's log under a target of
//! their own.
//!
//! The ring is small and is pinned with the programs of its build: what is reported while no agent
//! reads it is dropped once the ring is full. If the log does not show the messages
//! when the programs are loaded, the verifier removes them from the programs.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use aya::{Ebpf, EbpfLoader};
use aya_log::{EbpfLogger, Level};

/// The tracing target, for directives such as `info,programs=off`.
const TARGET: &str = "programs";
/// The map that aya-log reads.
pub(super) const RING: &str = "AYA_LOGS";
/// Bytes of the ring; the kernel rounds it up to a page.
const BYTES: u32 = 4096;
/// The maximum number of messages logged at once.
const BURST: u32 = 8;

/// The number of the least important level that the programs report.
static WANTED: u8 = Level::Warn as u8;
static NONE: u8 = 0;

/// Sets the ring's size, and whether the programs report anything.
pub(super) fn set_up(loader: &mut EbpfLoader<'_>) {
    let level = if is_shown() { &WANTED } else { &NONE };
    loader.override_global(aya_log::LEVEL, level, true);
    loader.map_max_entries(RING, BYTES);
}

/// Returns the number of the least important level that the programs report.
pub(super) fn level() -> u8 {
    if is_shown() { WANTED } else { NONE }
}

fn is_shown() -> bool {
    tracing::enabled!(target: TARGET, tracing::Level::WARN)
}

/// The reader of the ring. It must live as long as programs are loaded, which need the map.
pub(super) struct Messages(EbpfLogger<&'static Forward>);

impl Messages {
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<Self> {
        EbpfLogger::init_with_logger(ebpf, &FORWARD)
            .map(Self)
            .context("cannot read the programs' messages")
    }

    /// Logs what the programs have reported since the last time.
    pub(super) fn flush(&mut self) {
        FORWARD.0.store(0, Ordering::Relaxed);
        self.0.flush();
        let more = FORWARD.0.load(Ordering::Relaxed).saturating_sub(BURST);
        if more != 0 {
            tracing::warn!(target: TARGET, "and {more} more messages");
        }
    }
}

static FORWARD: Forward = Forward(AtomicU32::new(0));

/// Passes records on to tracing; holds the number of them since the last flush.
struct Forward(AtomicU32);

impl log::Log for Forward {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.0.fetch_add(1, Ordering::Relaxed) < BURST {
            tracing::warn!(target: TARGET, "{}", record.args());
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use log::Log as _;

    #[test]
    fn messages_are_counted_beyond_the_burst() {
        let forward = Forward(AtomicU32::new(0));
        for _ in 0..BURST + 3 {
            forward.log(&log::Record::builder().build());
        }
        assert_eq!(forward.0.load(Ordering::Relaxed), BURST + 3);
    }
}
