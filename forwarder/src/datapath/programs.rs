// SPDX-License-Identifier: MIT OR Apache-2.0
//! The object's programs: each passes the verifier once, or is an earlier agent's.

use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread::{available_parallelism, scope};

use anyhow::{Context, Result, bail};
use aya::Ebpf;
use aya::programs::{CgroupSockAddr, Program, ProgramError, SchedClassifier, SkLookup, Xdp};
use forwarder_state::desired_state::{Hook, SocketHook};

use super::kept::Kept;

/// How often a program is loaded that a signal interrupts.
const LOADS: u32 = 5;

/// The programs of one object.
pub(super) struct Programs {
    ebpf: Ebpf,
    /// The programs of an earlier agent of the same build, which are used instead of the object's.
    earlier: BTreeMap<&'static str, SchedClassifier>,
    /// Where programs are kept for the next agent.
    kept: Option<Kept>,
    /// What the kernel has said of programs, by their names. One that it refuses is not loaded again.
    judged: BTreeMap<&'static str, Result<(), String>>,
}

impl Programs {
    pub(super) fn new(ebpf: Ebpf) -> Self {
        Self {
            ebpf,
            earlier: BTreeMap::new(),
            kept: None,
            judged: BTreeMap::new(),
        }
    }

    /// Uses what an earlier agent of the same build has kept, if its programs use the maps in this
    /// directory, and keeps programs for the next agent.
    pub(super) fn keep(&mut self, kept: Kept, maps: &Path) {
        self.earlier = kept.programs(maps);
        self.kept = Some(kept);
    }

    /// Removes the programs that agents of other builds have kept.
    pub(super) fn forget_others(&self) -> Result<()> {
        self.kept.as_ref().map_or(Ok(()), Kept::forget_others)
    }

    /// Passes programs through the verifier, several at a time, unless the agent is asked to stop.
    /// One CPU stays free: where all are busy, the processes of containers wait for up to half a
    /// second. The kernel's results are returned when each program is needed.
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
                // What was not decided is loaded again when it is needed.
                let said = judge(name, program);
                judged.extend(said.ok().map(|said| (name, said)));
            }
            judged
        };
        let threads = available_parallelism().map_or(1, |cpus| (cpus.get() - 1).max(1));
        self.judged.extend(scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(load)).collect();
            // So is what a thread that panicked has not loaded.
            let judged = threads.into_iter().filter_map(|thread| thread.join().ok());
            judged.flatten().collect::<Vec<_>>()
        }));
        self.keep_for_the_next(names);
    }

    fn keep_for_the_next(&mut self, names: &[&'static str]) {
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
        if !self.judged.contains_key(name) {
            self.named::<SchedClassifier>(name)?;
            self.keep_for_the_next(&[name]);
        }
        self.named(name)
    }

    pub(super) fn xdp(&mut self) -> Result<&mut Xdp> {
        self.named(Hook::Uplink.program())
    }

    /// Passes a socket program through the verifier.
    pub(super) fn load_socket(&mut self, hook: SocketHook) -> Result<()> {
        if hook.is_on_cgroup() {
            self.sock_addr(hook).map(drop)
        } else {
            self.sk_lookup().map(drop)
        }
    }

    pub(super) fn sk_lookup(&mut self) -> Result<&mut SkLookup> {
        self.named(SocketHook::SkLookup.program())
    }

    pub(super) fn sock_addr(&mut self, hook: SocketHook) -> Result<&mut CgroupSockAddr> {
        self.named(hook.program())
    }

    /// Returns a program of the object by its name, loaded.
    pub(super) fn named<P>(&mut self, name: &'static str) -> Result<&mut P>
    where
        for<'a> &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        let program = self.ebpf.program_mut(name).context("not in the object")?;
        if !self.judged.contains_key(name) {
            let said = judge(name, program)?;
            self.judged.insert(name, said);
        }
        if let Some(Err(refusal)) = self.judged.get(name) {
            bail!("{refusal}");
        }
        Ok(program.try_into()?)
    }
}

/// Passes a program through the verifier, and returns what the kernel says of it for good.
///
/// # Errors
/// The kernel may say something else next time: it lacked memory, or signals interrupted it.
fn judge(name: &str, program: &mut Program) -> Result<Result<(), String>> {
    let loaded = uninterrupted(program);
    let is_final = loaded.as_ref().err().is_none_or(is_refusal);
    let said = loaded.map_err(|error| refusal(name, error));
    if is_final {
        return Ok(said);
    }
    said.map(Ok).map_err(anyhow::Error::msg)
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
fn uninterrupted(program: &mut Program) -> Result<(), ProgramError> {
    let is_interrupted = |loaded: &Result<(), ProgramError>| {
        matches!(loaded, Err(ProgramError::LoadError { io_error, .. })
            if io_error.kind() == ErrorKind::WouldBlock)
    };
    let mut loaded = load(program);
    for _ in 1..LOADS {
        if !is_interrupted(&loaded) {
            break;
        }
        loaded = load(program);
    }
    loaded
}

/// Whether the kernel will refuse the program again, and does not only lack memory at the moment.
fn is_refusal(error: &ProgramError) -> bool {
    !matches!(error, ProgramError::LoadError { io_error, .. }
        if matches!(io_error.kind(), ErrorKind::OutOfMemory | ErrorKind::WouldBlock))
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
