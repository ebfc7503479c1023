// SPDX-License-Identifier: MIT OR Apache-2.0
//! Child processes: their lines, their signals, and their end when the handle is dropped.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::check::{patient, tail};

/// The time limit of a command: a command of a test that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// The result of a command.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
}

impl Finished {
    /// Returns the standard output without trailing white space.
    ///
    /// # Errors
    /// The command did not end with status 0; the error shows its output.
    pub fn success(self) -> Result<String> {
        ensure!(
            self.status.success(),
            "{}: {}{}",
            self.status,
            self.stdout,
            self.stderr.trim_end()
        );
        Ok(self.stdout.trim_end().to_owned())
    }
}

/// Runs a command to its end, with nothing on its standard input.
///
/// # Errors
/// It cannot be started or hangs for a minute (then it is killed). An exit status other than 0 is
/// no error here: see [`Finished::success`].
pub fn finish(command: &mut Command) -> Result<Finished> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {command:?}: is it installed?"))?;
    let stdout = read_all(child.stdout.take());
    let stderr = read_all(child.stderr.take());
    let Some(status) = wait(&mut child, PATIENCE)? else {
        child.kill().and_then(|()| child.wait())?;
        bail!("{command:?} hung for {PATIENCE:?}");
    };
    let text = |reader: thread::JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned()
    };
    Ok(Finished {
        status,
        stdout: text(stdout),
        stderr: text(stderr),
    })
}

/// Runs a command that must succeed and returns its output.
pub(crate) fn succeed(command: &mut Command) -> Result<String> {
    finish(command)?
        .success()
        .with_context(|| format!("{command:?}"))
}

fn read_all(from: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        if let Some(mut from) = from {
            // After a read error, only what came before it can be shown.
            let _ = from.read_to_end(&mut all);
        }
        all
    })
}

fn wait(child: &mut Child, within: Duration) -> Result<Option<ExitStatus>> {
    let (start, within) = (Instant::now(), patient(within));
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() >= within {
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

#[derive(Default)]
struct Lines {
    seen: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Default)]
struct Seen {
    lines: Vec<String>,
    closed: bool,
}

impl Lines {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(&self, from: impl Read) {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            self.lock().lines.push(line);
            self.changed.notify_all();
        }
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

/// A running child process. When it is dropped, it is killed and waited for.
pub struct Process {
    what: String,
    child: Child,
    lines: Arc<Lines>,
    read: usize,
    log: PathBuf,
}

impl Process {
    /// Starts a command in its own process group (so that Ctrl-C does not end it, and the harness
    /// does); its standard error goes to the file `log`.
    ///
    /// # Errors
    /// The log cannot be written or the command cannot be started.
    pub fn spawn(what: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| format!("cannot write {}", log.display()))?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {what} ({command:?})"))?;
        let lines = Arc::new(Lines::default());
        if let Some(stdout) = child.stdout.take() {
            let lines = Arc::clone(&lines);
            thread::spawn(move || lines.follow(stdout));
        }
        Ok(Self {
            what: what.to_owned(),
            child,
            lines,
            read: 0,
            log: log.to_owned(),
        })
    }

    /// Returns its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the next line of standard output with this beginning; earlier lines are skipped.
    ///
    /// # Errors
    /// The process ends first or the time is over; the error shows the end of its log.
    pub fn line(&mut self, beginning: &str, within: Duration) -> Result<String> {
        let within = patient(within);
        let deadline = Instant::now() + within;
        let mut seen = self.lines.lock();
        loop {
            while let Some(line) = seen.lines.get(self.read) {
                self.read += 1;
                if line.starts_with(beginning) {
                    return Ok(line.clone());
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(
                !seen.closed && !left.is_zero(),
                "{} {} without the line “{beginning}…”:\n{}",
                self.what,
                if seen.closed {
                    "ended".to_owned()
                } else {
                    format!("ran for {within:?}")
                },
                tail(&self.log, 20)
            );
            let waited = self.lines.changed.wait_timeout(seen, left);
            seen = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Returns all lines of standard output so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().lines.clone()
    }

    /// Returns what it has written to standard error so far (with what earlier runs wrote to the
    /// same log).
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Writes one line to its standard input.
    ///
    /// # Errors
    /// The process no longer reads.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        let stdin = self
            .child
            .stdin
            .as_mut()
            .context("its standard input is closed")?;
        writeln!(stdin, "{line}").with_context(|| format!("{} does not listen", self.what))
    }

    /// Sends a signal; none if the process has ended.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        // The id of a process that was waited for may be reused.
        if self.child.try_wait()?.is_none() {
            let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
            kill_process(pid.context("a child without an id")?, signal)?;
        }
        Ok(())
    }

    /// Returns the exit status, if it has ended.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It still runs after the time.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        wait(&mut self.child, within)?
            .with_context(|| format!("{} still runs after {within:?}", self.what))
    }

    /// Stops it (SIGTERM) and waits.
    ///
    /// # Errors
    /// It still runs after the time.
    pub fn stop(&mut self, within: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(within)
    }

    /// Kills it (SIGKILL) and waits.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It fails only if the process has already ended.
        let _ = self.kill();
    }
}
