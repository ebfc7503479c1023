// SPDX-License-Identifier: MIT OR Apache-2.0
//! Waiting for a state instead of sleeping, and the checks at the beginning of every test.

use std::path::Path;
use std::sync::LazyLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

const POLL: Duration = Duration::from_millis(20);

/// Returns how much of something a test does: the short amount in every run, the long one in a soak
/// (`cargo xtask test --soak`).
#[must_use]
pub fn soaked<T>(short: T, long: T) -> T {
    if std::env::var_os("FORWARDER_TESTS_SOAK").is_some() {
        long
    } else {
        short
    }
}

/// Returns how long something may take that takes `usual` here: an emulated machine is slower by
/// the factor in `FORWARDER_TESTS_PATIENCE`.
pub(crate) fn patient(usual: Duration) -> Duration {
    static FACTOR: LazyLock<u32> = LazyLock::new(|| {
        let factor = std::env::var("FORWARDER_TESTS_PATIENCE");
        factor.ok().and_then(|text| text.parse().ok()).unwrap_or(1)
    });
    usual * *FACTOR
}

/// Repeats `attempt` until it succeeds and returns its value.
///
/// # Errors
/// The last error of `attempt`, if none succeeded `within` the time.
pub fn eventually<T>(within: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let (start, within) = (Instant::now(), patient(within));
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() >= within => {
                return Err(error.context(format!("still so after {within:?}")));
            }
            Err(_) => sleep(POLL),
        }
    }
}

/// Checks repeatedly that `check` succeeds for the whole time.
///
/// # Errors
/// The first error of `check`.
pub fn holds(throughout: Duration, mut check: impl FnMut() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < throughout {
        check().with_context(|| format!("no longer so after {:?}", start.elapsed()))?;
        sleep(POLL);
    }
    Ok(())
}

/// Ends the test unless it runs as root: a skipped test would look like a passed one.
///
/// # Panics
/// The effective user is not root.
pub fn require_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "these tests make network namespaces and start dockerd: run them as root (cargo xtask test)"
    );
}

/// Returns the last lines of a log, indented, for an error message; says so if there are none.
pub(crate) fn tail(log: &Path, lines: usize) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<_> = text.lines().collect();
    if all.is_empty() {
        return format!("  ({} is empty)", log.display());
    }
    let last = &all[all.len().saturating_sub(lines)..];
    last.iter().map(|line| format!("  | {line}\n")).collect()
}
