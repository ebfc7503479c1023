// SPDX-License-Identifier: MIT OR Apache-2.0
//! The administrator's overrides, read again from the configuration file whenever it changes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use forwarder_state::overrides::Overrides;
use tokio::sync::mpsc::Sender;
use tokio::time::{MissedTickBehavior, interval};

use crate::config;

/// The interval at which the file is checked. Watching it by inotify would miss changes behind a
/// symbolic link, and orchestrators replace configuration that way.
const LOOK: Duration = Duration::from_millis(250);

/// Sends the overrides whenever the file has changed, until the receiver is closed. A file that
/// cannot be read or is wrong is logged, and the overrides stay as they were.
pub(super) async fn watch(file: &Path, rules: &Sender<Overrides>) -> Result<()> {
    let mut seen = look(file);
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = rules.closed() => return Ok(()),
        }
        let now = look(file);
        if now == seen {
            continue;
        }
        seen = now;
        match config::rules(file) {
            Ok(read) => {
                tracing::info!("{}: overrides read again", file.display());
                // A closed channel ends the loop.
                let _ = rules.send(read).await;
            }
            Err(error) => tracing::error!("{error:#}: the overrides stay as they were"),
        }
    }
}

/// Returns values that change when the file changes.
fn look(file: &Path) -> Option<(u64, u64, i64, i64)> {
    let data = fs::metadata(file).ok()?;
    Some((data.ino(), data.size(), data.mtime(), data.mtime_nsec()))
}
