// SPDX-License-Identifier: MIT OR Apache-2.0
//! The peers of veths: prepared to accept the frames that XDP redirects, and restored afterwards.
//!
//! A veth accepts redirected frames only while its peer polls for them (`veth_xdp_xmit`): with an
//! XDP program on the peer, or with GRO on. GRO costs nothing, so containers get GRO.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use forwarder_state::desired_state::PeerVeth;
use serde::{Deserialize, Serialize};

use super::pins;
use crate::sys::{netns, remove};
use crate::trusted;

/// What is recorded of a peer to restore it.
#[derive(Serialize, Deserialize)]
struct Before {
    sandbox_key: String,
    pid: u32,
    index: u32,
    gro: bool,
}

/// The prepared peers by the index of their veth, recorded in a directory.
pub(super) struct PeerVeths {
    dir: PathBuf,
}

impl PeerVeths {
    pub(super) fn remembered_in(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Prepares a peer to accept frames.
    pub(super) async fn prepare(&self, veth: u32, peer_veth: &PeerVeth) -> Result<()> {
        let PeerVeth {
            sandbox_key,
            pid,
            index,
        } = peer_veth.clone();
        let namespace = netns::open(&sandbox_key, pid)?;
        let gro = netns::set_gro(namespace, index, true).await?;
        let path = self.dir.join(veth.to_string());
        // If an earlier agent has prepared the peer, the state before that counts.
        if !path.exists() {
            trusted::make(&self.dir)?;
            let before = Before {
                sandbox_key,
                pid,
                index,
                gro,
            };
            fs::write(&path, serde_json::to_vec(&before)?)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// Removes the record of a peer that has gone with its container.
    pub(super) fn forget(&self, veth: u32) {
        let _ = fs::remove_file(self.dir.join(veth.to_string()));
    }
}

/// Restores all recorded peers. Peers that have gone need nothing.
pub(super) async fn restore_all(dir: &Path) -> Result<()> {
    for name in pins::entries(dir)? {
        let bytes = fs::read(dir.join(&name))?;
        let Ok(before) = serde_json::from_slice::<Before>(&bytes) else {
            continue;
        };
        if before.gro {
            continue;
        }
        if let Ok(namespace) = netns::open(&before.sandbox_key, before.pid) {
            let _ = netns::set_gro(namespace, before.index, false).await;
        }
    }
    remove::tree(dir)
}
