// SPDX-License-Identifier: MIT OR Apache-2.0
//! A flood: a few frames sent repeatedly while something else happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::check::eventually;
use crate::netns::Space;
use crate::packet::PacketSocket;

/// The pause between two rounds of all frames.
const PAUSE: Duration = Duration::from_millis(1);
const SOON: Duration = Duration::from_secs(5);

/// About a thousand rounds per second until it is dropped. Frames that their device does not accept
/// are lost.
pub struct Flood {
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    over: AtomicBool,
    rounds: AtomicU64,
}

impl Flood {
    /// Starts to send out of a device.
    ///
    /// # Errors
    /// There is no such device.
    pub fn start(space: &Space, device: &str, frames: Vec<Vec<u8>>) -> Result<Self> {
        let socket = space.enter(|| PacketSocket::open(device))??;
        let state = Arc::new(State::default());
        let own = Arc::clone(&state);
        let thread = spawn(move || {
            while !own.over.load(Ordering::Relaxed) {
                if frames.iter().all(|frame| socket.send(frame).is_ok()) {
                    own.rounds.fetch_add(1, Ordering::Relaxed);
                }
                sleep(PAUSE);
            }
        });
        Ok(Self {
            state,
            thread: Some(thread),
        })
    }

    /// Waits until it has sent this many more rounds, all of them after the call.
    ///
    /// # Errors
    /// It is stuck.
    pub fn more(&self, rounds: u64) -> Result<()> {
        let sent = || self.state.rounds.load(Ordering::Relaxed);
        let before = sent();
        eventually(SOON, || {
            ensure!(sent() > before + rounds, "the flood is stuck");
            Ok(())
        })
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has already printed its message.
            let _ = thread.join();
        }
    }
}
