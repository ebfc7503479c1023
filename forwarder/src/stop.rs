// SPDX-License-Identifier: MIT OR Apache-2.0
//! Being asked to stop, which also whoever is busy hears of.

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch::{self, Receiver};

/// Whether SIGTERM or SIGINT has come.
#[derive(Clone, Debug)]
pub(crate) struct Stop(Receiver<bool>);

impl Stop {
    /// Hears the signals from now on, in a task of its own.
    pub(crate) fn on_signals() -> Result<Self> {
        let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
        let (asked, heard) = watch::channel(false);
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            asked.send_replace(true);
            // The channel is open as long as anybody listens.
            asked.closed().await;
        });
        Ok(Self(heard))
    }

    /// Whether one has come.
    pub(crate) fn is_asked(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits for one.
    pub(crate) async fn asked(&self) {
        let mut heard = self.0.clone();
        if heard.wait_for(|asked| *asked).await.is_err() {
            // Only if the task has died: nobody asks any more.
            std::future::pending::<()>().await;
        }
    }
}
