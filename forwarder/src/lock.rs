//! One agent per network namespace: whoever holds an abstract socket is it.
//!
//! The kernel lets go of the name with its holder, however that ends, so a lock is never stale.

use std::io::{self, ErrorKind};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// The socket's name in the abstract namespace, which each network namespace has of its own.
const NAME: &[u8] = b"forwarder.lock";

/// The right to be the agent of this network namespace, until dropped.
#[derive(Debug)]
pub struct Lock(
    #[expect(dead_code, reason = "held for its name, never accepted from")] UnixListener,
);

/// Why a lock is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody has it.
    #[error("another agent runs in this network namespace{}", process(*.0))]
    Held(
        /// The holder's process id, where it can be told.
        Option<i32>,
    ),
    /// The kernel gives no socket.
    #[error("cannot bind the lock's socket")]
    Io(#[source] io::Error),
}

fn process(pid: Option<i32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

impl Lock {
    /// Takes the lock, or says at once who has it.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn acquire() -> Result<Self, LockError> {
        Self::named(NAME)
    }

    fn named(name: &[u8]) -> Result<Self, LockError> {
        let address = SocketAddr::from_abstract_name(name).map_err(LockError::Io)?;
        match UnixListener::bind_addr(&address) {
            Ok(listener) => Ok(Self(listener)),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                Err(LockError::Held(holder(name).ok().flatten()))
            }
            Err(error) => Err(LockError::Io(error)),
        }
    }
}

/// The process that listens at the name. Does not wait: nobody accepts there, and after many
/// askers the queue is full.
fn holder(name: &[u8]) -> rustix::io::Result<Option<i32>> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new_abstract_name(name)?)?;
    let pid = rustix::net::sockopt::socket_peercred(&socket)?.pid;
    // 0 is a process outside of our pid namespace.
    Ok(Some(pid.as_raw_pid()).filter(|&pid| pid > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_and_told_who_until_the_first_lets_go() {
        let name = format!("forwarder.test.{}", std::process::id());
        let first = Lock::named(name.as_bytes()).unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        // More askers than the queue holds: none may hang.
        for _ in 0..1100 {
            let Err(LockError::Held(holder)) = Lock::named(name.as_bytes()) else {
                panic!("two agents have the same lock");
            };
            assert!(holder.is_none_or(|holder| holder == pid));
        }
        drop(first);
        let _second = Lock::named(name.as_bytes()).unwrap();
    }

    #[test]
    fn the_refusal_is_one_line_that_names_the_process() {
        let line = LockError::Held(Some(42)).to_string();
        assert_eq!(
            line,
            "another agent runs in this network namespace (pid 42)"
        );
    }
}
