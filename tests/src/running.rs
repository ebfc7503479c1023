// SPDX-License-Identifier: MIT OR Apache-2.0
//! Processes that others started in a namespace, mainly dockerd's proxies.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::netns::Space;

/// A process of a namespace.
#[derive(Debug, Clone)]
pub struct Running {
    /// Its id.
    pub pid: i32,
    /// Its command line, separated by spaces.
    pub line: String,
}

impl Running {
    /// Returns the processes with this name (at most fifteen letters, as the kernel keeps it) in a
    /// namespace.
    ///
    /// # Errors
    /// There is no such namespace.
    pub fn named(name: &str, space: &Space) -> Result<Vec<Self>> {
        use std::os::unix::fs::MetadataExt as _;
        let id = |path: PathBuf| fs::metadata(path).map(|file| (file.dev(), file.ino()));
        let there = id(space.path().to_owned()).context("no such namespace")?;
        let mut all = Vec::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let folder = entry.path();
            let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
                continue;
            };
            let read = |file: &str| fs::read(folder.join(file)).unwrap_or_default();
            if read("comm").trim_ascii_end() == name.as_bytes()
                && id(folder.join("ns/net")).is_ok_and(|here| here == there)
            {
                let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
                all.push(Self { pid, line });
            }
        }
        Ok(all)
    }

    /// Returns the sum of its private memory in kB (`Private_*` of `smaps_rollup`).
    ///
    /// # Errors
    /// It has ended.
    pub fn private_kb(&self) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid))?;
        let rows = text.lines().filter(|line| line.starts_with("Private_"));
        let numbers = rows.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        Ok(numbers.sum())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.pid).context("no process id")?;
        Ok(kill_process(pid, signal)?)
    }
}
