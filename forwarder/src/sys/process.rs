// SPDX-License-Identifier: MIT OR Apache-2.0
//! Processes in our network namespace, and programs on the path.

use std::ffi::OsStr;
use std::path::PathBuf;

use procfs::process::{Process, all_processes};

/// Returns the processes with this name in our network namespace.
pub(crate) fn named(name: &str) -> Vec<Process> {
    let netns = |process: &Process| process.namespaces().ok()?.0.remove(OsStr::new("net"));
    let ours = Process::myself().ok().as_ref().and_then(netns);
    let has_name = |process: &Process| process.stat().is_ok_and(|stat| stat.comm == name);
    let all = all_processes().into_iter().flatten().flatten();
    all.filter(|process| has_name(process) && ours.is_some() && netns(process) == ours)
        .collect()
}

/// Finds a program on the path, or in the directories of programs for root.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = std::env::split_paths(&path);
    own.chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_process_is_found_by_name() {
        let own = Process::myself().unwrap();
        let name = own.stat().unwrap().comm;
        assert!(named(&name).iter().any(|process| process.pid == own.pid));
        assert!(named("no such name").is_empty());
    }
}
