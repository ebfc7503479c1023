// SPDX-License-Identifier: MIT OR Apache-2.0
//! One long step of a task: a spinner with its last line on a terminal, plain lines otherwise.
//!
//! All of it goes to stderr, because stdout belongs to the task's result.
use std::{
    io::{self, BufRead, BufReader, IsTerminal},
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// Runs a command as the step `what`; an error if it fails, after its output was shown.
pub(crate) fn step(what: &str, command: Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let start = Instant::now();
    let status = if io::stderr().is_terminal() {
        with_spinner(what, command)
    } else {
        eprintln!("» {what}");
        with_plain_lines(command)
    };
    let status = status.with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        bail!("{what}: {program} ended with {status}");
    }
    say(what, start.elapsed());
    Ok(())
}

fn say(what: &str, elapsed: Duration) {
    match elapsed.as_secs() {
        0 => eprintln!("✓ {what}"),
        seconds => eprintln!("✓ {what} ({seconds} s)"),
    }
}

fn with_plain_lines(mut command: Command) -> io::Result<ExitStatus> {
    command.stdin(Stdio::null()).stdout(io::stderr()).status()
}

/// Shows only the last line while the command succeeds, and everything if it fails.
fn with_spinner(what: &str, mut command: Command) -> io::Result<ExitStatus> {
    let (reader, writer) = io::pipe()?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    command.env("CARGO_TERM_COLOR", "always");
    let mut child = command.spawn()?;
    // The command holds the pipe's writing ends: without this drop the loop below never sees the
    // end.
    drop(command);

    let spinner = ProgressBar::new_spinner().with_prefix(what.to_owned());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg:.dim}")
    {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(Duration::from_millis(120));
    let mut log = String::new();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        spinner.set_message(line.trim().to_owned());
        log.push_str(&line);
        log.push('\n');
    }
    let status = child.wait();
    spinner.finish_and_clear();
    if !status.as_ref().is_ok_and(ExitStatus::success) {
        eprint!("{log}");
    }
    status
}
