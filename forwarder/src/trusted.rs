// SPDX-License-Identifier: MIT OR Apache-2.0
//! Directories and files that only root can replace: what the agent creates, reads and adopts.
//!
//! A bpffs and `/run` may be writable by everybody, and the creator of a directory owns it.
//! Therefore each step of a path is checked without following it: root must own it, and others must
//! not be able to write to it or (in a sticky directory) remove it. Everything else is refused and
//! left alone.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Stat, fstat, mkdirat, openat, readlinkat, statat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

/// The maximum number of symbolic links on one path.
const LINKS: usize = 16;
const OTHERS: u32 = 0o002;
const GROUP: u32 = 0o020;
const STICKY: u32 = 0o1000;

/// What to do at the end of a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// Create the missing directories, 0700.
    Make,
    /// Open a directory, if it exists.
    Directory,
    /// Open a file, or a link of root's to a file, if it exists.
    File,
}

/// Creates a directory and its parents, 0700, or adopts it if only root can change it.
///
/// # Errors
/// It cannot be created, or others can change it or a parent. The error names the path and the
/// owner.
pub fn make(dir: &Path) -> Result<()> {
    walk(dir, End::Make).map(drop)
}

/// Whether a directory exists. If it does, only root can change it.
///
/// # Errors
/// Others can change it or a parent.
pub fn is_there(dir: &Path) -> Result<bool> {
    Ok(walk(dir, End::Directory)?.is_some())
}

/// Whether a directory exists; also checks everything below it.
///
/// # Errors
/// Something does not belong to root. The error names it.
pub fn is_there_with_all(dir: &Path) -> Result<bool> {
    if !is_there(dir)? {
        return Ok(false);
    }
    let mut unseen = vec![dir.to_owned()];
    while let Some(dir) = unseen.pop() {
        let cannot = || format!("cannot read {}", dir.display());
        for entry in fs::read_dir(&dir).with_context(cannot)? {
            let path = entry.with_context(cannot)?.path();
            let seen = match fs::symlink_metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                seen => seen.with_context(cannot)?,
            };
            is_trusted(&path, seen.uid())?;
            if seen.is_dir() {
                unseen.push(path);
            }
        }
    }
    Ok(true)
}

/// Reads a file that belongs to root; none if it is missing.
///
/// # Errors
/// It cannot be read, or others could write it.
pub fn read(file: &Path) -> Result<Option<String>> {
    let Some(opened) = walk(file, End::File)? else {
        return Ok(None);
    };
    let mut text = String::new();
    let read = File::from(opened).read_to_string(&mut text);
    read.with_context(|| format!("cannot read {}", file.display()))?;
    Ok(Some(text))
}

/// Checks that an owner is root, or the user that runs us.
///
/// # Errors
/// It is another user. The error names the owner of `path` and what to do.
pub fn is_trusted(path: &Path, uid: u32) -> Result<()> {
    ensure!(
        uid == 0 || uid == geteuid().as_raw(),
        "{} belongs to user {uid}, not to root, so that user could replace its content: inspect \
         it, remove it, and try again",
        path.display()
    );
    Ok(())
}

/// Walks along a path step by step; returns what is at its end, if it exists.
fn walk(path: &Path, end: End) -> Result<Option<OwnedFd>> {
    let path = std::path::absolute(path).context("no current directory")?;
    let shown = path.display();
    let mut steps: VecDeque<OsString> = names(&path)?;
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut here = PathBuf::from("/");
    let mut at = openat(CWD, &here, directory, Mode::empty()).context("cannot open /")?;
    check(&here, &fstat(&at)?, steps.is_empty())?;
    let mut links = 0;
    while let Some(step) = steps.pop_front() {
        let last = steps.is_empty();
        let next = here.join(&step);
        let cannot = |what: &str| format!("cannot {what} {}", next.display());
        let seen = match statat(&at, &step, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) if end != End::Make => return Ok(None),
            Err(Errno::NOENT) => {
                match mkdirat(&at, &step, Mode::RWXU) {
                    // A directory that another process created in the meantime is checked like
                    // every other.
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => {
                        return Err(error).with_context(|| cannot("create the directory"));
                    }
                }
                statat(&at, &step, AtFlags::SYMLINK_NOFOLLOW)
            }
            seen => seen,
        };
        let seen = seen.with_context(|| cannot("look at"))?;
        match FileType::from_raw_mode(seen.st_mode) {
            FileType::Symlink => {
                is_trusted(&next, seen.st_uid)?;
                ensure!(
                    !last || end == End::File,
                    "{} is a symbolic link: give its target instead",
                    next.display()
                );
                links += 1;
                ensure!(links <= LINKS, "{shown}: too many symbolic links");
                let to = readlinkat(&at, &step, Vec::new()).with_context(|| cannot("read"))?;
                let to = here.join(OsString::from_vec(to.into_bytes()));
                // The walk starts again at the root: a link may lead upwards.
                let mut anew = names(&resolved(&to))?;
                anew.append(&mut steps);
                steps = anew;
                here = PathBuf::from("/");
                at = openat(CWD, &here, directory, Mode::empty()).context("cannot open /")?;
            }
            FileType::Directory if !(last && end == End::File) => {
                at =
                    openat(&at, &step, directory, Mode::empty()).with_context(|| cannot("open"))?;
                check(&next, &fstat(&at)?, last)?;
                here = next;
            }
            _ if last && end == End::File => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY;
                at = openat(&at, &step, flags | OFlags::NONBLOCK, Mode::empty())
                    .with_context(|| cannot("read"))?;
                check(&next, &fstat(&at)?, true)?;
            }
            _ => bail!("{} is not a directory", next.display()),
        }
    }
    Ok(Some(at))
}

fn names(path: &Path) -> Result<VecDeque<OsString>> {
    let mut names = VecDeque::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push_back(name.to_owned()),
            Component::ParentDir => bail!("{}: give the path without ..", path.display()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(names)
}

/// Returns a link's target without `..`: the steps before each `..` were checked and are no links.
fn resolved(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        if component == Component::ParentDir {
            plain.pop();
        } else {
            plain.push(component);
        }
    }
    plain
}

/// Checks that others cannot replace this step, or anything below it.
fn check(path: &Path, seen: &Stat, last: bool) -> Result<()> {
    is_trusted(path, seen.st_uid)?;
    let mode = seen.st_mode;
    let writable = mode & OTHERS != 0 || mode & GROUP != 0 && seen.st_gid != 0;
    // In a sticky directory others cannot remove or rename what belongs to root.
    ensure!(
        !writable || !last && mode & STICKY != 0,
        "{} is writable by others (mode {:04o}): run chmod go-w on it, or choose another path",
        path.display(),
        mode & 0o7777
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    fn folder(name: &str) -> PathBuf {
        let folder = format!("forwarder-trusted-{name}-{}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        fs::create_dir(&folder).unwrap();
        folder
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn refused(done: Result<impl Sized>) -> String {
        format!("{:#}", done.err().unwrap())
    }

    #[test]
    fn directories_are_made_and_adopted() {
        let folder = folder("made");
        let dir = folder.join("a/b");
        assert!(!is_there(&dir).unwrap() && !is_there(&folder.join("a")).unwrap());
        make(&dir).unwrap();
        make(&dir).unwrap();
        let mode = fs::metadata(folder.join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o700);
        fs::write(dir.join("x"), "y").unwrap();
        assert!(is_there_with_all(&folder).unwrap());
        assert_eq!(read(&dir.join("x")).unwrap().unwrap(), "y");
        assert_eq!(read(&dir.join("z")).unwrap(), None);
        // A link of root's above the directory, as /var/run is one.
        symlink("a/../a", folder.join("link")).unwrap();
        make(&folder.join("link/b")).unwrap();
        assert!(refused(make(&folder.join("link"))).contains("is a symbolic link"));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn writable_by_others_is_refused() {
        let folder = folder("open");
        let dir = folder.join("a");
        make(&dir).unwrap();
        chmod(&dir, 0o777);
        let why = refused(make(&dir));
        assert!(
            why.contains("/a is writable by others (mode 0777)"),
            "{why}"
        );
        assert!(refused(make(&dir.join("b"))).contains("is writable by others"));
        // A directory below a sticky directory is accepted; the sticky directory itself is not.
        chmod(&dir, 0o1777);
        make(&dir.join("b")).unwrap();
        assert!(refused(is_there(&dir)).contains("(mode 1777)"));
        let file = dir.join("file");
        fs::write(&file, "").unwrap();
        chmod(&file, 0o666);
        assert!(refused(read(&file)).contains("file is writable by others"));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn foreign_owner_is_refused() {
        if !geteuid().is_root() {
            return;
        }
        let folder = folder("foreign");
        let dir = folder.join("a");
        make(&dir.join("b")).unwrap();
        chown(&dir, Some(65534), None).unwrap();
        for why in [refused(make(&dir)), refused(make(&dir.join("b/c")))] {
            assert!(
                why.contains("/a belongs to user 65534, not to root"),
                "{why}"
            );
        }
        chown(&dir, Some(0), None).unwrap();
        fs::write(dir.join("b/pin"), "").unwrap();
        chown(dir.join("b/pin"), Some(65534), None).unwrap();
        assert!(refused(is_there_with_all(&folder)).contains("b/pin belongs to user 65534"));
        symlink("a", folder.join("link")).unwrap();
        std::os::unix::fs::lchown(folder.join("link"), Some(65534), None).unwrap();
        assert!(refused(make(&folder.join("link/x"))).contains("link belongs to user 65534"));
        fs::remove_dir_all(folder).unwrap();
    }
}
