// SPDX-License-Identifier: MIT OR Apache-2.0
//! The request to stop the agent, which also busy code can check.

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch::{self, Receiver};

/// Whether SIGTERM or SIGINT has arrived, and which.
#[derive(Clone, Debug)]
pub(crate) struct Stop(Receiver<Option<&'static str>>);

impl Stop {
    /// Handles the signals from now on, in a task of its own.
    pub(crate) fn on_signals() -> Result<Self> {
        let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
        let (asked, heard) = watch::channel(None);
        tokio::spawn(async move {
            let signal = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            asked.send_replace(Some(signal));
            // The channel stays open as long as a receiver exists.
            asked.closed().await;
        });
        Ok(Self(heard))
    }

    /// Whether a signal has arrived.
    pub(crate) fn is_asked(&self) -> bool {
        self.signal().is_some()
    }

    /// Returns the name of the signal that has arrived.
    pub(crate) fn signal(&self) -> Option<&'static str> {
        *self.0.borrow()
    }

    /// Waits for a signal.
    pub(crate) async fn asked(&self) {
        let mut heard = self.0.clone();
        if heard.wait_for(Option::is_some).await.is_err() {
            // The channel is closed only if the task has died: no request to stop can arrive any
            // more.
            std::future::pending::<()>().await;
        }
    }
}
