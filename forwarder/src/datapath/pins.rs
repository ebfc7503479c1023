// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where things are pinned: directories below the bpffs, one per layout, and files in the state
//! directory for what has no pin.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use forwarder_common::abi::LAYOUT;

use crate::desired_state::{Hook, SocketHook};
use crate::trusted;

/// The pins of this layout.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Below `bpffs_dir`; makes nothing.
    pub(super) fn below(bpffs_dir: &Path) -> Self {
        Self {
            root: bpffs_dir.join(format!("v{LAYOUT}")),
        }
    }

    /// Makes the directories, 0700.
    ///
    /// # Errors
    /// Another layout's pins are there, or the directory cannot be made.
    pub(super) fn make(&self) -> Result<()> {
        self.check()?;
        for dir in [self.maps(), self.links(), self.socket_links()] {
            trusted::make(&dir)?;
        }
        // What is adopted was pinned by root.
        trusted::is_there_with_all(self.parent()).map(drop)
    }

    /// Checks that no other layout's pins are there.
    ///
    /// # Errors
    /// Some are.
    pub(super) fn check(&self) -> Result<()> {
        if let Some(other) = self.other()? {
            bail!(
                "{} holds pins of another version ({other}): run `forwarder cleanup`, which ends its flows, or the version that made them",
                self.parent().display(),
            );
        }
        Ok(())
    }

    /// The maps' directory.
    pub(super) fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    /// The pin of the switch of reassembly.
    pub(super) fn defrag(&self) -> PathBuf {
        self.root.join("defrag")
    }

    /// The links' directory.
    pub(super) fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// The directory of the links on the root of all control groups.
    fn socket_links(&self) -> PathBuf {
        self.root.join("sockets")
    }

    /// The pin of such a link.
    pub(super) fn socket(&self, hook: SocketHook) -> PathBuf {
        self.socket_links().join(hook.program())
    }

    /// Where a new link waits to take its place: such a name is no hook's.
    pub(super) fn socket_draft(&self, hook: SocketHook) -> PathBuf {
        self.socket_links().join(format!("{}-new", hook.program()))
    }

    /// The socket programs whose links are pinned.
    pub(super) fn sockets(&self) -> Result<BTreeSet<SocketHook>> {
        Ok(entries(&self.socket_links())?
            .iter()
            .filter_map(|name| SocketHook::named(name))
            .collect())
    }

    /// Whether anything is attached by pins.
    pub(super) fn hold_links(&self) -> Result<bool> {
        Ok(!self.hooks()?.is_empty() || !self.sockets()?.is_empty())
    }

    fn parent(&self) -> &Path {
        self.root.parent().unwrap_or(Path::new("/"))
    }

    /// Another layout whose pins are there.
    pub(super) fn other(&self) -> Result<Option<String>> {
        let own = self.root.file_name().unwrap_or_default();
        Ok(entries(self.parent())?
            .into_iter()
            .find(|name| **name != *own))
    }

    /// A link's pin.
    pub(super) fn link(&self, ifindex: u32, hook: Hook) -> PathBuf {
        self.links().join(file_name(ifindex, hook))
    }

    /// Takes off XDP programs that an earlier agent attached in the other mode, which an update of
    /// their links cannot change: they are attached anew. A directory remembers the mode.
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

    /// The hooks whose links are pinned.
    pub(super) fn hooks(&self) -> Result<BTreeSet<(u32, Hook)>> {
        Ok(entries(&self.links())?
            .iter()
            .filter_map(|name| parse(name))
            .collect())
    }
}

/// A hook's file name: `<device index>-<program>`.
pub(super) fn file_name(ifindex: u32, hook: Hook) -> String {
    format!("{ifindex}-{}", hook.program())
}

/// The hook that a file name names.
pub(super) fn parse(name: &str) -> Option<(u32, Hook)> {
    let (ifindex, program) = name.split_once('-')?;
    Some((ifindex.parse().ok()?, Hook::named(program)?))
}

/// The names in a directory; none where there is no such directory.
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

/// Removes all pins below `bpffs_dir`, of every layout, and the directory: with the last pin of a
/// link its program is off the device.
pub(super) fn remove_all(bpffs_dir: &Path) -> Result<()> {
    // Links first: a program never runs on maps that were taken from it, it only runs on.
    for layout in entries(bpffs_dir)? {
        for kind in ["links", "sockets", "maps"] {
            remove_tree(&bpffs_dir.join(&layout).join(kind))?;
        }
    }
    remove_tree(bpffs_dir)
}

/// Removes a directory and what is in it; fine if there is none.
pub(super) fn remove_tree(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", dir.display())),
    }
}
