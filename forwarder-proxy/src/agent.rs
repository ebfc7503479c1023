// SPDX-License-Identifier: MIT OR Apache-2.0
//! The connection to the agent.

use std::io::{self, ErrorKind, IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use forwarder_protocol::line::{self, Lines};
use forwarder_protocol::place;
use forwarder_protocol::shim::{ShimReply, ShimRequest};
use rustix::cmsg_space;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::geteuid;

/// The variable that says how long to wait for an absent agent, in seconds. Without it the shim
/// does not wait.
const WAIT: &str = "FORWARDER_PROXY_WAIT";
/// The maximum length of a line from the agent, in bytes.
const LINE: usize = 4096;

/// A connection to the agent.
pub(crate) struct Agent {
    stream: UnixStream,
    received: Lines,
}

impl Agent {
    /// Connects to the agent. The error says, for a person, where nobody answers.
    pub(crate) fn connect() -> Result<Self, String> {
        let path = socket();
        let stream = UnixStream::connect(&path).map_err(|error| {
            format!(
                "no agent answers at {} ({error}): is `forwarder run` running?",
                path.display()
            )
        })?;
        // The process that listens there decides what is published, so it must be trusted.
        let owner = socket_peercred(&stream).map_err(|e| lost(&e.into()))?.uid;
        if !owner.is_root() && owner != geteuid() {
            return Err(format!(
                "{} belongs to user {}, not to root: remove it, and start `forwarder run`",
                path.display(),
                owner.as_raw()
            ));
        }
        Ok(Self::new(stream))
    }

    fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            received: Lines::new(LINE),
        }
    }

    /// Sends a request.
    pub(crate) fn say(&mut self, request: &ShimRequest) -> Result<(), String> {
        self.say_with(request, None)
    }

    /// Sends a request, with the socket that holds the port attached: the agent accepts no claim
    /// without it.
    pub(crate) fn say_with(
        &mut self,
        request: &ShimRequest,
        socket: Option<BorrowedFd<'_>>,
    ) -> Result<(), String> {
        let line = line::encode(request).map_err(|e| lost(&e))?;
        let sent = socket.map_or(Ok(0), |socket| self.send_first(&line, socket));
        sent.and_then(|sent| self.stream.write_all(&line[sent..]))
            .map_err(|e| lost(&e))
    }

    /// Sends the beginning of a line with a socket attached; returns how much of it was sent.
    fn send_first(&self, line: &[u8], socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let sockets = [socket];
        control.push(SendAncillaryMessage::ScmRights(&sockets));
        let bytes = [IoSlice::new(line)];
        Ok(sendmsg(
            &self.stream,
            &bytes,
            &mut control,
            SendFlags::NOSIGNAL,
        )?)
    }

    /// Whether a whole line has already arrived.
    pub(crate) fn has_heard(&self) -> bool {
        self.received.has_line()
    }

    /// Returns the next reply, if a whole one has arrived. Must be called when there is something
    /// to read. An error means that the agent has gone.
    pub(crate) fn hear(&mut self) -> Result<Option<ShimReply>, String> {
        if !self.has_heard() {
            let mut buffer = [0; 256];
            let length = self.stream.read(&mut buffer).map_err(|e| lost(&e))?;
            if length == 0 {
                return Err(lost(&ErrorKind::UnexpectedEof.into()));
            }
            self.received.receive(&buffer[..length]);
        }
        let line = self.received.next_line().map_err(|e| lost(&e))?;
        Ok(line.map(|line| ShimReply::parse(&line)))
    }

    /// Waits for a reply until the deadline: see [`Self::hear`].
    pub(crate) fn hear_until(&mut self, deadline: Instant) -> Result<Option<ShimReply>, String> {
        let left = deadline.saturating_duration_since(Instant::now());
        // A timeout of zero would mean no timeout.
        let left = left.max(Duration::from_millis(1));
        self.stream
            .set_read_timeout(Some(left))
            .map_err(|e| lost(&e))?;
        self.hear()
    }
}

impl AsFd for Agent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn lost(error: &io::Error) -> String {
    format!("the agent at {} is gone ({error})", socket().display())
}

fn socket() -> PathBuf {
    place::socket(&place::state_dir())
}

/// Returns how long to wait for an absent agent.
pub(crate) fn patience() -> Result<Duration, String> {
    match std::env::var(WAIT) {
        Ok(text) if !text.is_empty() => text
            .parse()
            .map(Duration::from_secs)
            .map_err(|_| format!("{WAIT}={text} is not a number of seconds")),
        _ => Ok(Duration::ZERO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_heard_one_by_one() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut agent = Agent::new(ours);
        theirs.write_all(b"{\"ok\":").unwrap();
        assert_eq!(agent.hear(), Ok(None));
        theirs.write_all(b"null}\n{\"release\":null}\n").unwrap();
        assert_eq!(agent.hear(), Ok(Some(ShimReply::Ok(()))));
        assert!(agent.has_heard());
        assert_eq!(agent.hear(), Ok(Some(ShimReply::Release(()))));
        drop(theirs);
        assert!(agent.hear().is_err());
    }
}
