// SPDX-License-Identifier: MIT OR Apache-2.0
//! The socket programs on the root cgroup: attached by pinned links beside other agents' programs,
//! and replaced without a gap.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::ErrorKind;

use super::hooks::{Hooks, once};
use crate::sys::cgroup::cgroup_root;
use anyhow::{Context, Result};
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use forwarder_state::desired_state::SocketHook;

impl Hooks {
    /// Returns the socket programs that are attached, whoever attached them.
    pub(super) fn observe_sockets(&self) -> Result<BTreeSet<SocketHook>> {
        self.pins.sockets()
    }

    /// Replaces an earlier agent's programs by this object's.
    pub(super) fn adopt_sockets(&mut self) -> Result<()> {
        for hook in self.observe_sockets()? {
            if let Err(error) = self.attach_socket(hook) {
                tracing::debug!("{}: {error:#}", hook.program());
                self.detach_socket(hook)?;
            }
        }
        Ok(())
    }

    /// Attaches a program to the root cgroup. An earlier program of ours is detached afterwards.
    /// For a moment both programs run, and the second finds the first one's work done. (aya cannot
    /// update such a link.)
    pub(super) fn attach_socket(&mut self, hook: SocketHook) -> Result<()> {
        let root = cgroup_root().context("no cgroup v2 hierarchy is mounted")?;
        let cgroup =
            File::open(&root).with_context(|| format!("cannot open {}", root.display()))?;
        let program = self.sock_addr(hook)?;
        // Links never exclude other programs, whatever the mode (`BPF_F_ALLOW_MULTI` is implied).
        let id = program.attach(cgroup, CgroupAttachMode::default())?;
        let link = FdLink::try_from(program.take_link(id)?)?;
        let place = self.pins.socket(hook);
        let draft = self.pins.socket_draft(hook);
        missing_is_fine(fs::remove_file(&draft))?;
        link.pin(&draft)?;
        // Replacing its pin detaches the old link.
        fs::rename(&draft, &place).with_context(|| format!("cannot pin {}", place.display()))
    }

    /// Detaches a program.
    pub(super) fn detach_socket(&self, hook: SocketHook) -> Result<()> {
        missing_is_fine(fs::remove_file(self.pins.socket(hook)))
    }

    pub(super) fn sock_addr(&mut self, hook: SocketHook) -> Result<&mut CgroupSockAddr> {
        let name = hook.program();
        let program = self.ebpf.program_mut(name).context("not in the object")?;
        let program: &mut CgroupSockAddr = program.try_into()?;
        once(&mut self.judged, name, || program.load())?;
        Ok(program)
    }
}

fn missing_is_fine(done: std::io::Result<()>) -> Result<()> {
    match done {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
