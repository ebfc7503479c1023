// SPDX-License-Identifier: MIT OR Apache-2.0
//! The programs about the host's sockets, on the root cgroup and on our network namespace: attached
//! by pinned links beside other agents' programs, and replaced without a gap.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aya::programs::CgroupAttachMode;
use aya::programs::links::FdLink;
use forwarder_state::desired_state::SocketHook;

use super::hooks::Hooks;
use crate::sys::cgroup::cgroup_root;
use crate::sys::remove;

impl Hooks {
    /// Returns the socket programs that are attached, whoever attached them.
    pub(super) fn observe_sockets(&self) -> Result<BTreeSet<SocketHook>> {
        self.pins.sockets()
    }

    /// Replaces an earlier agent's programs by this object's.
    pub(super) fn adopt_sockets(&mut self) -> Result<()> {
        for hook in self.observe_sockets()? {
            if let Err(error) = self.attach_socket(hook) {
                // The earlier program goes on if it protects.
                ensure!(hook.is_on_cgroup(), error);
                tracing::debug!("{}: {error:#}", hook.program());
                self.detach_socket(hook)?;
            }
        }
        Ok(())
    }

    /// Attaches a program. An earlier program of ours is detached afterwards. For a moment both
    /// programs run, and the second finds the first one's work done. (aya cannot update such a
    /// link.)
    pub(super) fn attach_socket(&mut self, hook: SocketHook) -> Result<()> {
        let link = if hook.is_on_cgroup() {
            let root = cgroup_root().context("no cgroup v2 hierarchy is mounted")?;
            let cgroup = open(&root)?;
            let program = self.programs.sock_addr(hook)?;
            // Links never exclude other programs, whatever the mode (`BPF_F_ALLOW_MULTI` is
            // implied).
            let id = program.attach(cgroup, CgroupAttachMode::default())?;
            FdLink::try_from(program.take_link(id)?)?
        } else {
            let namespace = open(Path::new("/proc/self/ns/net"))?;
            let program = self.programs.sk_lookup()?;
            let id = program.attach(namespace)?;
            FdLink::from(program.take_link(id)?)
        };
        let place = self.pins.socket(hook);
        let draft = self.pins.socket_draft(hook);
        remove::file(&draft)?;
        link.pin(&draft)?;
        // Replacing its pin detaches the old link.
        fs::rename(&draft, &place).with_context(|| format!("cannot pin {}", place.display()))
    }

    /// Detaches a program.
    pub(super) fn detach_socket(&self, hook: SocketHook) -> Result<()> {
        remove::file(&self.pins.socket(hook))
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cannot open {}", path.display()))
}
