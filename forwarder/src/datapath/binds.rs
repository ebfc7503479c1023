// SPDX-License-Identifier: MIT OR Apache-2.0
//! Notifications of the socket programs about services of the host that bind ports.

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

/// The minimum interval between two notifications to the agent, however many ports are bound.
const PACE: Duration = Duration::from_millis(100);

/// The ring whose events wake the agent.
pub struct Binds(AsyncFd<RingBuf<MapData>>);

impl Binds {
    /// Opens the ring of the programs pinned under `bpffs_dir`. Needs a tokio runtime.
    ///
    /// # Errors
    /// No datapath of this version is pinned there.
    pub fn open(bpffs_dir: &Path) -> Result<Self> {
        maps::ring(&Pins::below(bpffs_dir).maps(), name::BINDS).map(Self)
    }

    /// Notifies the receiver whenever a service has bound a port, until the receiver is dropped.
    /// The programs send their event before the socket has the port. Therefore each notification is
    /// repeated once, when the socket has it.
    ///
    /// # Errors
    /// The kernel refuses to wait.
    pub async fn watch(mut self, told: mpsc::Sender<()>) -> Result<()> {
        loop {
            self.0.readable_mut().await?.clear_ready();
            for _ in 0..2 {
                sleep(PACE).await;
                // An event that arrives after this wakes the task again.
                while self.0.get_mut().next().is_some() {}
                if told.send(()).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}
