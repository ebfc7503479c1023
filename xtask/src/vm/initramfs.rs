// SPDX-License-Identifier: MIT OR Apache-2.0
//! The root file system of a machine: a cpio archive in the format `newc`, unpacked by the kernel.
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// File type and permissions of a directory, a program and a character device.
const DIRECTORY: u32 = 0o40_755;
const PROGRAM: u32 = 0o100_755;
const DEVICE: u32 = 0o20_600;
/// `/dev/console`, major and minor.
const CONSOLE: [u32; 2] = [5, 1];

/// A file's path in the archive, relative to its root, and the path of its content.
pub(super) type Placed = (String, PathBuf);

/// Writes an archive of the console and of files, with their directories.
pub(super) fn write(archive: &Path, files: &[Placed]) -> Result<()> {
    let cannot = || format!("cannot write {}", archive.display());
    let mut out = BufWriter::new(File::create(archive).with_context(cannot)?);
    let mut directories = BTreeSet::from(["dev", "mnt", "proc", "sys", "run", "tmp", "root"]);
    for (place, _) in files {
        directories.extend(parents(place));
    }
    for directory in directories {
        entry(&mut out, directory, DIRECTORY, [0, 0], &[]).with_context(cannot)?;
    }
    entry(&mut out, "dev/console", DEVICE, CONSOLE, &[]).with_context(cannot)?;
    for (place, path) in files {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        entry(&mut out, place, PROGRAM, [0, 0], &bytes).with_context(cannot)?;
    }
    entry(&mut out, "TRAILER!!!", 0, [0, 0], &[])
        .and_then(|()| out.flush())
        .with_context(cannot)
}

/// Returns the directories that a file is in.
fn parents(place: &str) -> impl Iterator<Item = &str> {
    place.match_indices('/').map(|(end, _)| &place[..end])
}

/// Writes one file: a header of hexadecimal numbers, its name, its bytes, each padded to four
/// bytes.
fn entry(
    out: &mut impl Write,
    name: &str,
    mode: u32,
    [major, minor]: [u32; 2],
    bytes: &[u8],
) -> io::Result<()> {
    let size = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let name_size = name.len() as u32 + 1;
    let (inode, user, group, links, time) = (0, 0, 0, 1, 0);
    write!(out, "070701")?;
    for number in [
        inode, mode, user, group, links, time, size, 0, 0, major, minor, name_size, 0,
    ] {
        write!(out, "{number:08X}")?;
    }
    const HEADER: usize = 6 + 13 * 8;
    out.write_all(name.as_bytes())?;
    let end = HEADER + name.len() + 1;
    out.write_all(&[0; 4][..1 + padding(end)])?;
    out.write_all(bytes)?;
    out.write_all(&[0; 4][..padding(bytes.len())])
}

/// Returns the number of bytes up to the next multiple of four.
fn padding(size: usize) -> usize {
    size.next_multiple_of(4) - size
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_brings_its_directories() {
        let found: Vec<_> = parents("usr/bin/docker").collect();
        assert_eq!(found, ["usr", "usr/bin"]);
        assert_eq!(parents("init").count(), 0);
    }

    #[test]
    fn entry_is_aligned_and_has_its_sizes() {
        let mut out = Vec::new();
        entry(&mut out, "init", PROGRAM, [0, 0], b"12345").unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("07070100000000000081ED"));
        assert_eq!(&text[6 + 6 * 8..][..8], "00000005");
        assert_eq!(&text[6 + 11 * 8..][..8], "00000005");
        assert_eq!(&text[110..], "init\0\x0012345\0\0\0");
    }
}
