// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pins: directories in the bpffs, one per layout, and files in the state directory for state
//! without a pin.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use forwarder_common::abi::LAYOUT;
use forwarder_state::desired_state::{Hook, SocketHook};

use crate::sys::remove;
use crate::trusted;

/// The pins of this layout.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Returns the pins under `bpffs_dir`. Creates nothing.
    pub(super) fn below(bpffs_dir: &Path) -> Self {
        Self {
            root: bpffs_dir.join(format!("v{LAYOUT}")),
        }
    }

    /// Creates the directories, 0700.
    ///
    /// # Errors
    /// Pins of another layout are there, or the directory cannot be created.
    pub(super) fn make(&self) -> Result<()> {
        self.check()?;
        for dir in [self.maps(), self.links(), self.socket_links()] {
            trusted::make(&dir)?;
        }
        // Everything that is adopted must have been pinned by root.
        trusted::is_there_with_all(self.parent()).map(drop)
    }

    /// Checks that there are no pins of another layout.
    ///
    /// # Errors
    /// There are some.
    pub(super) fn check(&self) -> Result<()> {
        if let Some(other) = self.other()? {
            bail!(
                "{} holds pins of another version ({other}): run `forwarder cleanup`, which ends its flows, or the version that made them",
                self.parent().display(),
            );
        }
        Ok(())
    }

    /// Returns the directory of the maps.
    pub(super) fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    /// Returns the directory of the programs, with one directory for each build.
    pub(super) fn programs(&self) -> PathBuf {
        self.root.join("programs")
    }

    /// Returns the pin of the defragmentation link.
    pub(super) fn defrag(&self) -> PathBuf {
        self.root.join("defrag")
    }

    /// Returns the directory of the device links.
    pub(super) fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Returns the directory of the links of programs about the host's sockets.
    fn socket_links(&self) -> PathBuf {
        self.root.join("sockets")
    }

    /// Returns the pin of a socket link.
    pub(super) fn socket(&self, hook: SocketHook) -> PathBuf {
        self.socket_links().join(hook.program())
    }

    /// Returns the temporary pin of a new socket link before it replaces the old one. No hook has
    /// such a name.
    pub(super) fn socket_draft(&self, hook: SocketHook) -> PathBuf {
        self.socket_links().join(format!("{}-new", hook.program()))
    }

    /// Returns the socket programs whose links are pinned.
    pub(super) fn sockets(&self) -> Result<BTreeSet<SocketHook>> {
        Ok(entries(&self.socket_links())?
            .iter()
            .filter_map(|name| SocketHook::named(name))
            .collect())
    }

    /// Whether there is any pinned link.
    pub(super) fn hold_links(&self) -> Result<bool> {
        Ok(!self.hooks()?.is_empty() || !self.sockets()?.is_empty())
    }

    fn parent(&self) -> &Path {
        self.root.parent().unwrap_or(Path::new("/"))
    }

    /// Returns another layout that has pins, if there is one.
    pub(super) fn other(&self) -> Result<Option<String>> {
        let own = self.root.file_name().unwrap_or_default();
        Ok(entries(self.parent())?
            .into_iter()
            .find(|name| **name != *own))
    }

    /// Returns the pin of a device link.
    pub(super) fn link(&self, ifindex: u32, hook: Hook) -> PathBuf {
        self.links().join(file_name(ifindex, hook))
    }

    /// Detaches XDP programs that an earlier agent attached in the other mode: an update of their
    /// links cannot change the mode, so they are attached again. A directory records the mode.
    pub(super) fn settle_xdp(&self, generic: bool) -> Result<()> {
        let marker = self.root.join("generic-xdp");
        if marker.is_dir() == generic {
            return Ok(());
        }
        for (ifindex, _) in self
            .hooks()?
            .iter()
            .filter(|(_, hook)| *hook == Hook::Uplink)
        {
            fs::remove_file(self.link(*ifindex, Hook::Uplink))?;
        }
        if generic {
            fs::create_dir(&marker)
        } else {
            fs::remove_dir(&marker)
        }
        .with_context(|| format!("cannot change {}", marker.display()))
    }

    /// Returns the hooks whose links are pinned.
    pub(super) fn hooks(&self) -> Result<BTreeSet<(u32, Hook)>> {
        Ok(entries(&self.links())?
            .iter()
            .filter_map(|name| parse(name))
            .collect())
    }
}

/// Returns a hook's file name: `<device index>-<program>`.
pub(super) fn file_name(ifindex: u32, hook: Hook) -> String {
    format!("{ifindex}-{}", hook.program())
}

/// Returns the hook that a file name stands for.
pub(super) fn parse(name: &str) -> Option<(u32, Hook)> {
    let (ifindex, program) = name.split_once('-')?;
    Some((ifindex.parse().ok()?, Hook::named(program)?))
}

/// Returns the names in a directory; none if the directory does not exist.
pub(super) fn entries(dir: &Path) -> Result<Vec<String>> {
    let listing = match fs::read_dir(dir) {
        Ok(listing) => listing,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", dir.display())),
    };
    let mut names = Vec::new();
    for entry in listing {
        let entry = entry.with_context(|| format!("cannot read {}", dir.display()))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

/// Removes all pins under `bpffs_dir`, of every layout, and the directory. A program is detached
/// with the last pin of its link.
pub(super) fn remove_all(bpffs_dir: &Path) -> Result<()> {
    // The links are removed first, so that no new program starts while maps are removed. A running
    // program keeps its maps. A program without its maps must not be used again.
    for layout in entries(bpffs_dir)? {
        for kind in ["links", "sockets", "programs", "maps"] {
            remove::tree(&bpffs_dir.join(&layout).join(kind))?;
        }
    }
    remove::tree(bpffs_dir)
}
