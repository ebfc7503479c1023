// SPDX-License-Identifier: MIT OR Apache-2.0
//! Asleep, the shim keeps next to nothing in memory: it may be one of a thousand.
#![expect(unsafe_code, reason = "the kernel takes a range of addresses")]

use rustix::mm::{Advice, madvise};

/// Lets go of the program's own pages. They come back from the file when they are needed; other
/// processes that run the same file keep theirs. A kernel that does not (before 5.4) costs memory.
pub(crate) fn let_go() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return;
    };
    let own = maps.lines().filter(|line| line.contains(" /"));
    for (start, end) in own.filter_map(range) {
        // SAFETY: a mapping of ours, of which nothing changes but where its pages lie
        // (`MADV_PAGEOUT`).
        let _ = unsafe { madvise(start as *mut _, end - start, Advice::LinuxPageOut) };
    }
}

/// The addresses of a line of `/proc/PID/maps`.
fn range(line: &str) -> Option<(usize, usize)> {
    let (range, _) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    Some((address(start)?, address(end)?))
}
