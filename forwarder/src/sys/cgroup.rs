// SPDX-License-Identifier: MIT OR Apache-2.0
//! The root cgroup (version 2), to which the socket programs are attached, wherever it is mounted.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use procfs::process::MountInfo;

/// Returns where the cgroup v2 hierarchy is mounted, if it is: at `/sys/fs/cgroup`, on hybrid hosts
/// at `/sys/fs/cgroup/unified`, or anywhere else.
#[must_use]
pub(crate) fn cgroup_root() -> Option<PathBuf> {
    root_in(&fs::read_to_string("/proc/self/mountinfo").ok()?)
}

/// Reads `/proc/self/mountinfo`. Prefers a mount of the whole hierarchy to a mount of a part of it.
/// A line that cannot be parsed is skipped.
fn root_in(mounts: &str) -> Option<PathBuf> {
    let mounts = mounts
        .lines()
        .filter_map(|line| MountInfo::from_line(line).ok());
    mounts
        .filter(|mount| mount.fs_type == "cgroup2")
        .min_by_key(|mount| mount.root != "/")
        .map(|mount| unescaped(&mount.mount_point))
}

/// Decodes spaces and backslashes, which the file writes as `\ooo`.
fn unescaped(path: &Path) -> PathBuf {
    let mut octets = Vec::new();
    let mut rest = path.as_os_str().as_bytes();
    while let Some((&first, others)) = rest.split_first() {
        let digits = others.get(..3).filter(|_| first == b'\\');
        let octal = digits
            .and_then(|digits| str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        octets.push(octal.unwrap_or(first));
        rest = if octal.is_some() {
            &others[3..]
        } else {
            others
        };
    }
    OsString::from_vec(octets).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
25 30 0:22 / /proc rw,nosuid shared:5 - proc proc rw
32 25 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
33 32 0:28 / /sys/fs/cgroup/cpu rw,relatime shared:9 master:1 - cgroup cgroup rw,cpu
41 32 0:36 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn root_is_found_wherever_it_is_mounted() {
        assert_eq!(root_in(HYBRID), Some("/sys/fs/cgroup/unified".into()));
        let odd = "9 1 0:1 / /a\\040b\\134 rw - cgroup2 none rw\n";
        assert_eq!(root_in(odd), Some("/a b\\".into()));
        let none = HYBRID.replace("cgroup2", "cgroup");
        assert_eq!(root_in(&none), None);
    }

    /// A part of the cgroup hierarchy serves only where there is no mount of the whole.
    #[test]
    fn partial_hierarchy_serves_without_a_whole() {
        let part = "9 1 0:1 /../x /part rw - cgroup2 none rw\n";
        assert_eq!(root_in(part), Some("/part".into()));
        let whole = root_in(&format!("{part}{HYBRID}"));
        assert_eq!(whole, Some("/sys/fs/cgroup/unified".into()));
    }
}
