// SPDX-License-Identifier: MIT OR Apache-2.0
//! The configuration, read again whenever its file changes, and when SIGHUP asks for it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::Sender;
use tokio::time::{MissedTickBehavior, interval};

use crate::config::{Config, Source};

/// The interval at which the file is checked. Watching it by inotify would miss changes behind a
/// symbolic link, and orchestrators replace configuration that way.
const LOOK: Duration = Duration::from_millis(250);

/// Sends the configuration whenever the file has changed or SIGHUP arrives, until the receiver is
/// closed. A file that cannot be read or is wrong is logged, and everything stays as it was.
///
/// A terminal that goes away sends SIGHUP too: the agent goes on without it.
pub(super) async fn watch(source: &Source, read: &Sender<Config>) -> Result<()> {
    let mut hangup = signal(SignalKind::hangup()).context("cannot handle SIGHUP")?;
    let file = source.file();
    let mut seen = look(file);
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let is_asked = tokio::select! {
            _ = ticks.tick() => false,
            _ = hangup.recv() => true,
            () = read.closed() => return Ok(()),
        };
        let now = look(file);
        if now == seen && !is_asked {
            continue;
        }
        seen = now;
        let why = if is_asked { " on SIGHUP" } else { "" };
        match source.read() {
            Ok(config) => {
                tracing::info!("{}: read again{why}", file.display());
                // A closed channel ends the loop.
                let _ = read.send(config).await;
            }
            Err(error) => tracing::error!("{error:#}: the configuration stays as it was"),
        }
    }
}

/// Returns values that change when the file changes.
fn look(file: &Path) -> Option<(u64, u64, i64, i64)> {
    let data = fs::metadata(file).ok()?;
    Some((data.ino(), data.size(), data.mtime(), data.mtime_nsec()))
}
