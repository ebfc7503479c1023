// SPDX-License-Identifier: MIT OR Apache-2.0
//! Releasing memory before the shim sleeps: there may be a thousand shims.
#![expect(unsafe_code, reason = "the kernel takes a range of addresses")]

use rustix::mm::{Advice, madvise};

/// Releases the program's own pages. The kernel reads them from the file again when they are
/// needed, and other processes that run the same file keep theirs. A kernel without this (before
/// 5.4) only uses more memory.
pub(crate) fn let_go() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return;
    };
    let own = maps.lines().filter(|line| line.contains(" /"));
    for (start, end) in own.filter_map(range) {
        // SAFETY: this is a mapping of ours, and only the location of its pages changes
        // (`MADV_PAGEOUT`).
        let _ = unsafe { madvise(start as *mut _, end - start, Advice::LinuxPageOut) };
    }
}

/// Parses the addresses in a line of `/proc/PID/maps`.
fn range(line: &str) -> Option<(usize, usize)> {
    let (range, _) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    Some((address(start)?, address(end)?))
}
