// SPDX-License-Identifier: MIT OR Apache-2.0
//! One agent per network namespace: the agent is the process that has locked the namespace's file.
//!
//! Root owns the file `/run/forwarder-COOKIE.lock`, so that nobody else can lock it. An agent with
//! its own `/run` (in a container) does not see it. Therefore there is also an abstract socket,
//! whose name each network namespace has for itself. Any user can bind that name too, so it counts
//! only if its holder is root. The kernel releases both when the holder ends in any way, so a lock
//! is never stale.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, UCred};
use rustix::process::geteuid;

use crate::sys::netns::netns_cookie;
use crate::trusted;

/// The socket's name in the abstract namespace.
const NAME: &[u8] = b"forwarder.lock";
/// The directory of the lock files.
const DIRECTORY: &str = "/run";

/// The right to be the agent of this network namespace, until it is dropped.
#[derive(Debug)]
pub struct Lock {
    file: Option<LockFile>,
    #[expect(dead_code, reason = "held for its name, never accepted from")]
    name: Option<UnixListener>,
}

/// Why the lock cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error("another agent runs in this network namespace{}", process(*.0))]
    Held(
        /// The holder's process id, if it is known.
        Option<i32>,
    ),
    /// Neither the file nor the socket can be used as a lock.
    #[error("the lock's socket name is held{0}, and no lock file can be used: {1:#}")]
    Nothing(
        /// Who holds the socket's name, if it is known.
        String,
        /// Why there is no lock file.
        anyhow::Error,
    ),
    /// The kernel creates no socket.
    #[error("cannot bind the lock's socket")]
    Io(#[source] io::Error),
}

fn process(pid: Option<i32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

impl Lock {
    /// Takes the lock, or returns at once who holds it.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn acquire() -> Result<Self, LockError> {
        let file = netns_cookie().and_then(|cookie| {
            trusted::is_there(Path::new(DIRECTORY))?;
            Ok(Path::new(DIRECTORY).join(format!("forwarder-{cookie}.lock")))
        });
        Self::of(NAME, file)
    }

    fn of(name: &[u8], file: anyhow::Result<PathBuf>) -> Result<Self, LockError> {
        let file = match file.and_then(|path| LockFile::take(&path)) {
            Ok(Ok(file)) => Ok(file),
            Ok(Err(holder)) => return Err(LockError::Held(holder)),
            Err(error) => Err(error),
        };
        let address = SocketAddr::from_abstract_name(name).map_err(LockError::Io)?;
        let name = match UnixListener::bind_addr(&address) {
            Ok(listener) => Some(listener),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                let holder = holder(name).ok();
                let own = |uid: rustix::fs::Uid| uid.is_root() || uid == geteuid();
                let by = holder.as_ref().map_or_else(String::new, |holder| {
                    let user = holder.uid.as_raw();
                    format!(" by user {user}{}", process(pid(holder)))
                });
                match (holder, &file) {
                    (Some(holder), _) if own(holder.uid) => {
                        return Err(LockError::Held(pid(&holder)));
                    }
                    (_, Ok(_)) => {
                        tracing::warn!(
                            "the lock's socket name is held{by}: only the lock file is used"
                        );
                        None
                    }
                    (_, Err(_)) => {
                        let why = file.expect_err("seen above");
                        return Err(LockError::Nothing(by, why));
                    }
                }
            }
            Err(error) => return Err(LockError::Io(error)),
        };
        if let Err(error) = &file {
            tracing::warn!("no lock file can be used, so only the socket name is: {error:#}");
        }
        Ok(Self {
            file: file.ok(),
            name,
        })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // The file goes before the socket, so the next agent finds either the complete lock or
        // none.
        self.file.take();
    }
}

/// A locked file. It is removed when it is dropped.
#[derive(Debug)]
struct LockFile {
    path: PathBuf,
    #[expect(dead_code, reason = "holds the lock")]
    file: File,
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // The file can only be missing.
        let _ = fs::remove_file(&self.path);
    }
}

impl LockFile {
    /// Locks the file, or returns its holder's process id.
    fn take(path: &Path) -> anyhow::Result<Result<Self, Option<i32>>> {
        loop {
            let mut file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
                .open(path)
                .map_err(|error| anyhow::anyhow!("cannot open {}: {error}", path.display()))?;
            trusted::is_trusted(path, file.metadata()?.uid())?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    let mut holder = String::new();
                    let _ = file.read_to_string(&mut holder);
                    return Ok(Err(holder.trim().parse().ok()));
                }
                Err(error) => anyhow::bail!("cannot lock {}: {error}", path.display()),
            }
            let locked = file.metadata()?.ino();
            if !fs::symlink_metadata(path).is_ok_and(|now| now.ino() == locked) {
                // The last holder has just removed the file.
                continue;
            }
            file.set_len(0)?;
            writeln!(file, "{}", std::process::id())?;
            let path = path.to_owned();
            return Ok(Ok(Self { path, file }));
        }
    }
}

/// Returns the holder's process id; 0 means a process outside of our pid namespace.
fn pid(holder: &UCred) -> Option<i32> {
    Some(holder.pid.as_raw_pid()).filter(|&pid| pid > 0)
}

/// Returns the process that listens at the name. It does not block: nobody accepts connections
/// there, and after many requests the queue is full.
fn holder(name: &[u8]) -> rustix::io::Result<UCred> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new_abstract_name(name)?)?;
    socket_peercred(&socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("forwarder-{name}-{}.lock", std::process::id()))
    }

    fn name(name: &str) -> Vec<u8> {
        format!("forwarder.{name}.{}", std::process::id()).into_bytes()
    }

    /// A second process is refused and told who holds the lock, until the first releases it.
    #[test]
    fn second_holder_is_refused_and_told_the_first() {
        let (name, path) = (name("second"), file("second"));
        let first = Lock::of(&name, Ok(path.clone())).unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        // Each half is enough. There are more requests than the queue holds, and none may block.
        for n in 0..1100 {
            let by_file = Lock::of(b"forwarder.other", Ok(path.clone()));
            assert!(matches!(by_file, Err(LockError::Held(Some(holder))) if holder == pid));
            let by_name = Lock::of(&name, Err(anyhow::anyhow!("no /run")));
            match by_name.unwrap_err() {
                LockError::Held(holder) => assert_eq!(holder, Some(pid)),
                LockError::Nothing(by, _) => assert!(n > 0 && by.is_empty(), "{by}"),
                LockError::Io(error) => panic!("{error}"),
            }
        }
        drop(first);
        assert!(!path.exists(), "the file goes with the lock");
        let _second = Lock::of(&name, Ok(path)).unwrap();
    }

    #[test]
    fn stale_file_is_no_lock() {
        let path = file("stale");
        fs::write(&path, "1\n").unwrap();
        let _lock = Lock::of(&name("stale"), Ok(path.clone())).unwrap();
        let pid = fs::read_to_string(path).unwrap();
        assert_eq!(pid.trim(), std::process::id().to_string());
    }

    /// The refusal is one line that names the process.
    #[test]
    fn refusal_is_one_line_naming_the_process() {
        let line = LockError::Held(Some(42)).to_string();
        assert_eq!(
            line,
            "another agent runs in this network namespace (pid 42)"
        );
    }
}
