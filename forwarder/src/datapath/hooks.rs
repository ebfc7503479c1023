// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs on devices: attached by pinned tcx links, or by clsact filters if the kernel has no
//! tcx, and replaced in place.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::io::ErrorKind;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread::{available_parallelism, scope};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcAttachType, TcHandle, qdisc_add_clsact,
    qdisc_detach_program,
};
use aya::programs::xdp::XdpLink;
use aya::programs::{Program, ProgramError, ProgramInfo, SchedClassifier, Xdp, XdpMode};
use forwarder_state::desired_state::{Hook, XdpKind};
use rustix::net::{AddressFamily, SocketType, netdevice};

use super::kept::Kept;
use super::pins::{self, Pins};
use crate::sys::{qdisc, remove};
use crate::trusted;

/// The priority of our clsact filters: after everybody who chose a priority.
const PRIORITY: u16 = 0xc000;
/// The handle of our clsact filters.
const HANDLE: u16 = 1;

/// The time within which the kernel detaches a program whose link has gone.
const TAKEN_OFF: Duration = Duration::from_secs(2);

/// How often a program is loaded that a signal interrupts.
const LOADS: u32 = 5;

/// The programs of one object and their attachment points.
pub(super) struct Hooks {
    pub(super) ebpf: Ebpf,
    /// The programs of an earlier agent of the same build, which are used instead of the object's.
    earlier: BTreeMap<&'static str, SchedClassifier>,
    /// Where programs are kept for the next agent.
    kept: Option<Kept>,
    /// The verifier's result for each program that was loaded, by the program's name. A refused
    /// program is not loaded again.
    pub(super) judged: BTreeMap<&'static str, Result<(), String>>,
    pub(super) pins: Pins,
    /// Pinned links that somebody has detached from their device, as of the last look.
    detached: BTreeSet<(u32, Hook)>,
    /// The directory that records our clsact filters, if the kernel has no tcx. Nothing else says
    /// who created a qdisc.
    clsact: Option<PathBuf>,
}

impl Hooks {
    pub(super) fn new(ebpf: Ebpf, pins: Pins, clsact: Option<PathBuf>) -> Result<Self> {
        if let Some(dir) = &clsact {
            trusted::make(dir)?;
        }
        Ok(Self {
            ebpf,
            earlier: BTreeMap::new(),
            kept: None,
            judged: BTreeMap::new(),
            pins,
            detached: BTreeSet::new(),
            clsact,
        })
    }

    /// Uses what an earlier agent of the same build has kept, and keeps programs for the next one.
    pub(super) fn keep(&mut self, kept: Kept) {
        self.earlier = kept.programs(&self.pins.maps());
        self.kept = Some(kept);
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
            self.load(hook)?;
        }
        for (ifindex, hook) in hooks {
            if hook == Hook::Uplink && self.load(hook).is_err() {
                continue;
            }
            if let Err(error) = self.replace(ifindex, hook, &name_of) {
                // The device has gone in the meantime, or the link is broken: it is created again
                // if it is still desired.
                tracing::debug!("{} on device {ifindex}: {error:#}", hook.program());
                self.forget(ifindex, hook);
            }
        }
        match &self.kept {
            Some(kept) => kept.forget_others(),
            None => Ok(()),
        }
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
            let program = self.classifier(hook)?;
            let (kind, handle) = (direction(hook), TcHandle::new(0, HANDLE));
            let link = SchedClassifierLink::attached(&name, kind, PRIORITY, handle, None)?;
            let id = program.attach_to_link(link)?;
            std::mem::forget(program.take_link(id)?);
            return Ok(());
        }
        let link = FdLink::from(PinnedLink::from_pin(&path)?);
        if hook == Hook::Uplink {
            let program = self.xdp()?;
            let id = program.attach_to_link(XdpLink::try_from(link)?)?;
            // The link is dropped here; its pin keeps it attached.
            drop(program.take_link(id)?);
        } else {
            let program = self.classifier(hook)?;
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
        let program = self.classifier(hook)?;
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
        let program = self.xdp()?;
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
        let program = self.classifier(hook)?;
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

    /// Passes programs through the verifier, as many at a time as the machine has CPUs, unless the
    /// agent is asked to stop. The kernel's results are returned when each program is needed.
    pub(super) fn load_together(
        &mut self,
        names: &[&'static str],
        is_stopped: &(dyn Fn() -> bool + Sync),
    ) {
        let mut programs: BTreeMap<_, _> = self.ebpf.programs_mut().collect();
        let is_new = |name: &&&'static str| {
            !self.judged.contains_key(**name) && !self.earlier.contains_key(**name)
        };
        let new = names.iter().filter(is_new);
        let new = new.filter_map(|name| Some((*name, programs.remove(name)?)));
        let waiting = Mutex::new(new.collect::<VecDeque<_>>());
        let next = || {
            let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.pop_front().filter(|_| !is_stopped())
        };
        let load = || {
            let mut judged = Vec::new();
            while let Some((name, program)) = next() {
                let loaded = uninterrupted(|| load(program));
                judged.push((name, loaded.map_err(|error| refusal(name, error))));
            }
            judged
        };
        let threads = available_parallelism().map_or(1, NonZero::get);
        self.judged.extend(scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(load)).collect();
            // What a thread that panicked has not loaded is loaded when it is needed.
            let judged = threads.into_iter().filter_map(|thread| thread.join().ok());
            judged.flatten().collect::<Vec<_>>()
        }));
        if let Err(error) = self.keep_loaded(names) {
            tracing::debug!("the next agent loads the programs again: {error:#}");
        }
    }

    /// Keeps programs that the kernel has accepted.
    fn keep_loaded(&mut self, names: &[&'static str]) -> Result<()> {
        let Some(kept) = &self.kept else {
            return Ok(());
        };
        for name in names {
            let is_loaded = self.judged.get(name).is_some_and(Result::is_ok);
            if let (true, Some(Program::SchedClassifier(program))) =
                (is_loaded, self.ebpf.program_mut(name))
            {
                kept.keep(name, program)?;
            }
        }
        Ok(())
    }

    /// Passes a hook's program through the verifier.
    pub(super) fn load(&mut self, hook: Hook) -> Result<()> {
        if hook == Hook::Uplink {
            self.xdp().map(drop)
        } else {
            self.classifier(hook).map(drop)
        }
    }

    pub(super) fn classifier(&mut self, hook: Hook) -> Result<&mut SchedClassifier> {
        let name = hook.program();
        if self.earlier.contains_key(name) {
            return self.earlier.get_mut(name).context("not there");
        }
        let program = self.ebpf.program_mut(name).context("not in the object")?;
        let program: &mut SchedClassifier = program.try_into()?;
        once(&mut self.judged, name, || uninterrupted(|| program.load()))?;
        Ok(program)
    }

    pub(super) fn xdp(&mut self) -> Result<&mut Xdp> {
        let name = Hook::Uplink.program();
        let program = self.ebpf.program_mut(name).context("not in the object")?;
        let program: &mut Xdp = program.try_into()?;
        once(&mut self.judged, name, || uninterrupted(|| program.load()))?;
        Ok(program)
    }
}

/// Loads a program the first time, and keeps the kernel's result.
pub(super) fn once(
    judged: &mut BTreeMap<&'static str, Result<(), String>>,
    name: &'static str,
    load: impl FnOnce() -> Result<(), ProgramError>,
) -> Result<()> {
    let judge = || load().map_err(|error| refusal(name, error));
    let said = judged.entry(name).or_insert_with(judge);
    said.clone().map_err(anyhow::Error::msg)
}

/// Loads a program of any of the object's types.
fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Loads a program, again if a signal has interrupted the verifier (`EAGAIN`), as libbpf does.
pub(super) fn uninterrupted(
    mut load: impl FnMut() -> Result<(), ProgramError>,
) -> Result<(), ProgramError> {
    let is_interrupted = |loaded: &Result<(), ProgramError>| {
        matches!(loaded, Err(ProgramError::LoadError { io_error, .. })
            if io_error.kind() == ErrorKind::WouldBlock)
    };
    let mut loaded = load();
    for _ in 1..LOADS {
        if !is_interrupted(&loaded) {
            break;
        }
        loaded = load();
    }
    loaded
}

/// Formats in one line why the kernel refuses a program: the last line of the verifier's log, or
/// the name of the missing privilege.
fn refusal(name: &str, error: ProgramError) -> String {
    let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    else {
        return format!("the kernel refuses the program {name}: {error}");
    };
    let log = verifier_log.to_string();
    let statistics = [
        "processed ",
        "verification time",
        "stack depth",
        "max_states_per_insn",
    ];
    let last = log
        .lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty() && !statistics.iter().any(|start| line.starts_with(start)));
    match last {
        Some(words) => format!("the kernel refuses the program {name}: {words} ({io_error})"),
        None => format!("the kernel refuses the program {name}: {io_error}"),
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
