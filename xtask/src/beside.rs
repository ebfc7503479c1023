// SPDX-License-Identifier: MIT OR Apache-2.0
//! A background task that runs beside another one, on the CPU time that the other leaves.
use std::{
    env,
    fs::File,
    io::{self, Seek, Write},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};

use crate::{totals::Totals, workspace::Workspace};

/// A running task.
pub(crate) struct Beside {
    child: Child,
    /// The task's output.
    output: File,
}

impl Beside {
    /// Starts `cargo xtask ARGUMENTS` in the kernel's idle scheduling class (`sched(7)`), so that
    /// it delays nothing.
    pub(crate) fn start(workspace: &Workspace, arguments: &[&str]) -> Result<Self> {
        let path = workspace.target.join("beside.log");
        let mut options = File::options();
        let output = options.read(true).write(true).create(true).truncate(true);
        let output = output
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let child = Command::new("chrt")
            .args(["--idle", "0"])
            .arg(env::current_exe().context("this program has no path")?)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output.try_clone()?)
            .spawn()
            .context("cannot run chrt (package util-linux)")?;
        Ok(Self { child, output })
    }

    /// Waits for its end, prints its output, and parses the totals in its last line.
    pub(crate) fn finish(mut self, shown: &mut impl Write) -> Result<Totals> {
        let status = self.child.wait().context("cannot wait for a task")?;
        self.output.rewind()?;
        let text = io::read_to_string(&self.output)?;
        shown.write_all(text.as_bytes())?;
        let mut totals = text.lines().next_back().and_then(Totals::parse_sum);
        if !status.success() && totals.is_none_or(|totals| totals.failed == 0) {
            totals = Some(totals.unwrap_or_default() + Totals::ONE_FAILED);
        }
        totals.context("a task ended without a sum")
    }
}

impl Drop for Beside {
    /// Ends the task if nobody waits for it any more.
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
