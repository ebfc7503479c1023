// SPDX-License-Identifier: MIT OR Apache-2.0
//! Services of the host's that bind ports, as the socket programs tell it.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use aya::maps::{MapData, RingBuf};
use forwarder_common::abi::name;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::maps;
use super::pins::Pins;

/// How often the agent hears of it at most, however many ports are bound.
const PACE: Duration = Duration::from_millis(100);

/// The ring that wakes the agent.
pub struct Binds(AsyncFd<RingBuf<MapData>>);

impl Binds {
    /// Of the programs that are pinned below `bpffs_dir`. Needs a tokio runtime.
    ///
    /// # Errors
    /// Nothing of this version is pinned there.
    pub fn open(bpffs_dir: &Path) -> Result<Self> {
        maps::ring(&Pins::below(bpffs_dir).maps(), name::BINDS).map(Self)
    }

    /// Says so whenever a service has bound a port, until nobody hears it. The programs tell before
    /// the socket has the port: it is said twice, the second time when it has.
    ///
    /// # Errors
    /// The kernel refuses to wait.
    pub async fn watch(mut self, told: mpsc::Sender<()>) -> Result<()> {
        loop {
            self.0.readable_mut().await?.clear_ready();
            for _ in 0..2 {
                sleep(PACE).await;
                // What comes from here on wakes us again.
                while self.0.get_mut().next().is_some() {}
                if told.send(()).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}
