// SPDX-License-Identifier: MIT OR Apache-2.0
//! The administrator's rules, from the configuration file: read again whenever it changes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::mpsc::Sender;
use tokio::time::{MissedTickBehavior, interval};

use crate::config;
use crate::overrides::Overrides;

/// How often the file is looked at. Watching it by inotify would miss what stands behind a link,
/// which is how orchestrators exchange configuration.
const LOOK: Duration = Duration::from_millis(250);

/// Sends the rules whenever the file has changed, until nobody listens. A file that cannot be read
/// or is wrong is logged, and the rules stay as they were.
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
                tracing::info!("{}: rules read anew", file.display());
                // A closed channel ends the loop.
                let _ = rules.send(read).await;
            }
            Err(error) => tracing::error!("{error:#}: the rules stay as they were"),
        }
    }
}

/// What tells a file from how it was before.
fn look(file: &Path) -> Option<(u64, u64, i64, i64)> {
    let data = fs::metadata(file).ok()?;
    Some((data.ino(), data.size(), data.mtime(), data.mtime_nsec()))
}
