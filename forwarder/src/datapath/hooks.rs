// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs on devices: attached by pinned tcx links, or by clsact filters if the kernel has no
//! tcx, and replaced in place.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcAttachType, TcHandle, qdisc_add_clsact,
    qdisc_detach_program,
};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramInfo, SchedClassifier, XdpMode};
use forwarder_state::desired_state::{Hook, XdpKind};
use rustix::net::{AddressFamily, SocketType, netdevice};

use super::pins::{self, Pins};
use super::programs::Programs;
use crate::sys::{qdisc, remove};
use crate::trusted;

/// The priority of our clsact filters: after everybody who chose a priority.
const PRIORITY: u16 = 0xc000;
/// The handle of our clsact filters.
const HANDLE: u16 = 1;

/// The time within which the kernel detaches a program whose link has gone.
const TAKEN_OFF: Duration = Duration::from_secs(2);

/// The programs and their attachment points.
pub(super) struct Hooks {
    pub(super) programs: Programs,
    pub(super) pins: Pins,
    /// Pinned links that somebody has detached from their device, as of the last look.
    detached: BTreeSet<(u32, Hook)>,
    /// The directory that records our clsact filters, if the kernel has no tcx. Nothing else says
    /// who created a qdisc.
    clsact: Option<PathBuf>,
}

impl Hooks {
    pub(super) fn new(programs: Programs, pins: Pins, clsact: Option<PathBuf>) -> Result<Self> {
        if let Some(dir) = &clsact {
            trusted::make(dir)?;
        }
        Ok(Self {
            programs,
            pins,
            detached: BTreeSet::new(),
            clsact,
        })
    }

    /// Returns the hooks that are in place, whoever attached them. With `look` it asks the kernel
    /// whether each link is still attached; otherwise it uses the last answer.
    pub(super) fn observe(&mut self, look: bool) -> Result<BTreeSet<(u32, Hook)>> {
        let pinned = self.pins.hooks()?;
        if look {
            self.detached = &pinned - &attached(&self.pins, &pinned);
        }
        let mut hooks = &pinned - &self.detached;
        if let Some(dir) = &self.clsact {
            hooks.extend(
                pins::entries(dir)?
                    .iter()
                    .filter_map(|name| pins::parse(name)),
            );
        }
        Ok(hooks)
    }

    /// Replaces the programs of an earlier agent by this build's, link by link.
    pub(super) fn adopt(&mut self, name_of: impl Fn(u32) -> Option<String>) -> Result<()> {
        let hooks = self.observe(true)?;
        // All programs are loaded before any is replaced. An exception is XDP: if the kernel
        // refuses ours, the earlier agent's program stays.
        for &(_, hook) in hooks.iter().filter(|(_, hook)| *hook != Hook::Uplink) {
            self.programs.load(hook)?;
        }
        for (ifindex, hook) in hooks {
            if hook == Hook::Uplink && self.programs.load(hook).is_err() {
                continue;
            }
            if let Err(error) = self.replace(ifindex, hook, &name_of) {
                // The device has gone in the meantime, or the link is broken: it is created again
                // if it is still desired.
                tracing::debug!("{} on device {ifindex}: {error:#}", hook.program());
                self.forget(ifindex, hook);
            }
        }
        self.programs.forget_others()
    }

    /// Prepares the XDP mode: see [`Pins::settle_xdp`].
    pub(super) fn settle_xdp(&self, generic: bool) -> Result<()> {
        self.pins.settle_xdp(generic)
    }

    fn replace(
        &mut self,
        ifindex: u32,
        hook: Hook,
        name_of: impl Fn(u32) -> Option<String>,
    ) -> Result<()> {
        let path = self.pins.link(ifindex, hook);
        if !path.exists() {
            let name = name_of(ifindex).context("no such device")?;
            let program = self.programs.classifier(hook)?;
            let (kind, handle) = (direction(hook), TcHandle::new(0, HANDLE));
            let link = SchedClassifierLink::attached(&name, kind, PRIORITY, handle, None)?;
            let id = program.attach_to_link(link)?;
            std::mem::forget(program.take_link(id)?);
            return Ok(());
        }
        let link = FdLink::from(PinnedLink::from_pin(&path)?);
        if hook == Hook::Uplink {
            let program = self.programs.xdp()?;
            let id = program.attach_to_link(XdpLink::try_from(link)?)?;
            // The link is dropped here; its pin keeps it attached.
            drop(program.take_link(id)?);
        } else {
            let program = self.programs.classifier(hook)?;
            let id = program.attach_to_link(SchedClassifierLink::try_from(link)?)?;
            drop(program.take_link(id)?);
        }
        Ok(())
    }

    /// Attaches a program to a device.
    pub(super) async fn attach(
        &mut self,
        ifindex: u32,
        device: &str,
        hook: Hook,
        xdp: Option<XdpKind>,
    ) -> Result<()> {
        if hook == Hook::Uplink {
            return self.attach_xdp(ifindex, xdp).await;
        }
        if let Some(dir) = self.clsact.clone() {
            return self.attach_filter(&dir, ifindex, device, hook);
        }
        let path = self.pins.link(ifindex, hook);
        let program = self.programs.classifier(hook)?;
        let id = once_taken_off(|| {
            let options = TcAttachOptions::TcxOrder(LinkOrder::default());
            Ok(program.attach_with_options(device, direction(hook), options)?)
        })
        .await?;
        let link = FdLink::try_from(program.take_link(id)?)?;
        // The pin of a link that somebody has detached is in the way.
        if self.detached.remove(&(ifindex, hook)) {
            fs::remove_file(&path)?;
        }
        link.pin(&path)?;
        Ok(())
    }

    async fn attach_xdp(&mut self, ifindex: u32, xdp: Option<XdpKind>) -> Result<()> {
        let path = self.pins.link(ifindex, Hook::Uplink);
        let mode = match xdp {
            Some(XdpKind::Generic) => XdpMode::Skb,
            Some(XdpKind::Native) | None => XdpMode::Driver,
        };
        let program = self.programs.xdp()?;
        let id = once_taken_off(|| Ok(program.attach_to_if_index(ifindex, mode)?)).await?;
        let link = FdLink::try_from(program.take_link(id)?)?;
        link.pin(&path)?;
        Ok(())
    }

    fn attach_filter(&mut self, dir: &Path, ifindex: u32, device: &str, hook: Hook) -> Result<()> {
        // The files are written before the filter is added, so that a kill in between leaves
        // nothing that cleanup misses.
        let qdisc = dir.join(format!("{ifindex}-qdisc"));
        let ours = qdisc.exists();
        fs::write(dir.join(pins::file_name(ifindex, hook)), device)?;
        fs::write(&qdisc, device)?;
        if let Err(error) = qdisc_add_clsact(device) {
            let error = anyhow::Error::from(error);
            if !already_there(&error) {
                return Err(error.context(format!("cannot add a clsact qdisc to {device}")));
            }
            if !ours {
                // Somebody else created this qdisc, so it stays when we go.
                fs::remove_file(&qdisc)?;
            }
        }
        let options = NlOptions {
            priority: PRIORITY,
            handle: TcHandle::new(0, HANDLE),
            classid: None,
        };
        let program = self.programs.classifier(hook)?;
        let attached =
            program.attach_with_options(device, direction(hook), TcAttachOptions::Netlink(options));
        let id = match attached {
            Ok(id) => id,
            Err(error) => {
                // A recorded filter counts as attached.
                fs::remove_file(dir.join(pins::file_name(ifindex, hook)))?;
                return Err(error.into());
            }
        };
        // Dropping the link would remove the filter.
        std::mem::forget(program.take_link(id)?);
        Ok(())
    }

    /// Detaches a program from a device.
    pub(super) fn detach(&mut self, ifindex: u32, hook: Hook) -> Result<()> {
        if let Some(dir) = &self.clsact {
            remove_filter(dir, ifindex, hook)?;
        }
        self.forget(ifindex, hook);
        Ok(())
    }

    fn forget(&self, ifindex: u32, hook: Hook) {
        let _ = fs::remove_file(self.pins.link(ifindex, hook));
        if let Some(dir) = &self.clsact {
            let _ = fs::remove_file(dir.join(pins::file_name(ifindex, hook)));
        }
    }
}

/// Returns the pinned hooks whose links are attached to their devices. If the kernel does not show
/// a link's state, its pin counts as attached.
pub(super) fn attached(pins: &Pins, pinned: &BTreeSet<(u32, Hook)>) -> BTreeSet<(u32, Hook)> {
    let is_attached = |&&(ifindex, hook): &&(u32, Hook)| {
        // If the device has gone, the pin counts as attached: it is removed like any hook that is
        // not desired.
        let Some(device) = name_of(ifindex) else {
            return true;
        };
        let link = PinnedLink::from_pin(pins.link(ifindex, hook));
        let (Ok(info), false) = (
            link.and_then(|l| FdLink::from(l).info()),
            hook == Hook::Uplink,
        ) else {
            return true;
        };
        SchedClassifier::query_tcx(&device, direction(hook)).map_or(true, |(_, programs)| {
            let mut ids = programs.iter().map(ProgramInfo::id);
            ids.any(|id| id == info.program_id())
        })
    };
    pinned.iter().filter(is_attached).copied().collect()
}

/// Waits until the kernel has detached programs whose links have gone. A device that has gone has
/// none.
pub(super) async fn taken_off(links: &[(u32, Hook)]) {
    let runs = |&(ifindex, hook): &(u32, Hook)| {
        let Some(device) = name_of(ifindex) else {
            return false;
        };
        let programs = SchedClassifier::query_tcx(&device, direction(hook));
        programs.is_ok_and(|(_, programs)| {
            let mut names = programs.iter().map(ProgramInfo::name);
            names.any(|name| name == hook.program().as_bytes())
        })
    };
    let start = Instant::now();
    while start.elapsed() < TAKEN_OFF && links.iter().any(runs) {
        tokio::time::sleep(TAKEN_OFF / 1000).await;
    }
}

/// Attaches a program, and waits if the attachment point is still taken. The kernel detaches a
/// program some time after the last pin of its link has gone (`bpf_link_put`), so an earlier
/// program of ours may still be attached.
async fn once_taken_off<T>(mut attach: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attach() {
            Err(error) if already_there(&error) && start.elapsed() < TAKEN_OFF => {
                tokio::time::sleep(TAKEN_OFF / 100).await;
            }
            attached => return attached,
        }
    }
}

/// Removes all recorded clsact filters, and the qdiscs that were created for them.
pub(super) async fn remove_filters(dir: &Path) -> Result<()> {
    let names = pins::entries(dir)?;
    for (ifindex, hook) in names.iter().filter_map(|name| pins::parse(name)) {
        remove_filter(dir, ifindex, hook)?;
    }
    for name in names.iter().filter(|name| name.ends_with("-qdisc")) {
        let index = name.split('-').next().and_then(|index| index.parse().ok());
        if let Some(index) = index {
            qdisc::remove_clsact(index)
                .await
                .with_context(|| format!("cannot remove the clsact qdisc of device {index}"))?;
        }
    }
    remove::tree(dir)
}

/// Returns the current name of a device, which may have been renamed.
pub(super) fn name_of(index: u32) -> Option<String> {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None).ok()?;
    netdevice::index_to_name(socket, index).ok()
}

fn remove_filter(dir: &Path, ifindex: u32, hook: Hook) -> Result<()> {
    let path = dir.join(pins::file_name(ifindex, hook));
    if !path.exists() {
        return Ok(());
    }
    // A device that has gone has no filters any more.
    if let Some(device) = name_of(ifindex) {
        let _ = qdisc_detach_program(&device, direction(hook), hook.program());
    }
    fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
}

fn already_there(error: &anyhow::Error) -> bool {
    let causes = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    causes
        .into_iter()
        .any(|error| error.kind() == ErrorKind::AlreadyExists)
        || format!("{error:#}").contains("File exists")
}

fn direction(hook: Hook) -> TcAttachType {
    if hook.is_ingress() {
        TcAttachType::Ingress
    } else {
        TcAttachType::Egress
    }
}
