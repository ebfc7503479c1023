// SPDX-License-Identifier: MIT OR Apache-2.0
//! The connection to the agent: its control socket, one line of JSON at a time.

use std::io::{self, ErrorKind, IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::cmsg_space;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::geteuid;

/// The variable with the agent's state directory; dockerd passes it to the shim.
const STATE_DIR: &str = "FORWARDER_STATE_DIR";
/// The variable that says how long to wait for an absent agent, in seconds. Without it the shim
/// does not wait.
const WAIT: &str = "FORWARDER_PROXY_WAIT";
/// The maximum length of a line from the agent, in bytes.
const LINE: usize = 4096;

/// A reply of the agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum ShimReply {
    /// The request is done.
    Done,
    /// The request is refused, and why.
    Refused(String),
    /// The shim must release the port: another shim needs it, or its container has gone.
    Release,
}

/// A connection to the agent.
pub(crate) struct Agent {
    stream: UnixStream,
    /// Bytes that were received and not yet parsed.
    heard: Vec<u8>,
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
        Ok(Self {
            stream,
            heard: Vec::new(),
        })
    }

    /// Sends one line.
    pub(crate) fn say(&mut self, line: &str) -> Result<(), String> {
        self.stream.write_all(line.as_bytes()).map_err(|e| lost(&e))
    }

    /// Sends one line, with the socket that holds the port attached: the agent accepts no claim
    /// without it.
    pub(crate) fn say_with(
        &mut self,
        line: &str,
        socket: Option<BorrowedFd<'_>>,
    ) -> Result<(), String> {
        let Some(socket) = socket else {
            return self.say(line);
        };
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let sockets = [socket];
        control.push(SendAncillaryMessage::ScmRights(&sockets));
        let bytes = [IoSlice::new(line.as_bytes())];
        let sent = sendmsg(&self.stream, &bytes, &mut control, SendFlags::NOSIGNAL)
            .map_err(|e| lost(&e.into()))?;
        self.say(&line[sent..])
    }

    /// Whether a whole line has already arrived.
    pub(crate) fn has_heard(&self) -> bool {
        self.heard.contains(&b'\n')
    }

    /// Returns the next reply, if a whole one has arrived. Must be called when there is something
    /// to read. An error means that the agent has gone.
    pub(crate) fn hear(&mut self) -> Result<Option<ShimReply>, String> {
        if !self.has_heard() {
            let mut buffer = [0; 256];
            let length = self.stream.read(&mut buffer).map_err(|e| lost(&e))?;
            if length == 0 || self.heard.len() + length > LINE {
                return Err(lost(&ErrorKind::UnexpectedEof.into()));
            }
            self.heard.extend_from_slice(&buffer[..length]);
        }
        let Some(end) = self.heard.iter().position(|&byte| byte == b'\n') else {
            return Ok(None);
        };
        let line: Vec<u8> = self.heard.drain(..=end).collect();
        // A sleeping shim keeps no memory that it does not need.
        self.heard.shrink_to_fit();
        Ok(Some(word(String::from_utf8_lossy(&line).trim_end())))
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
    let folder = std::env::var_os(STATE_DIR).filter(|folder| !folder.is_empty());
    let folder = folder.map_or_else(|| Path::new("/run/forwarder").to_owned(), PathBuf::from);
    folder.join("forwarder.sock")
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

/// Parses one of the three lines that the agent sends to shims.
fn word(line: &str) -> ShimReply {
    match line {
        "{\"ok\":null}" => ShimReply::Done,
        "{\"release\":null}" => ShimReply::Release,
        _ => {
            let text = line
                .strip_prefix("{\"error\":\"")
                .and_then(|rest| rest.strip_suffix("\"}"));
            ShimReply::Refused(
                text.map_or_else(|| format!("unknown reply of the agent: {line}"), unescape),
            )
        }
    }
}

/// Decodes a JSON string's text. Of the escapes it knows those that are a backslash before the
/// character itself.
fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => match letters.next() {
                Some('n' | 't' | 'r') => plain.push(' '),
                other => plain.extend(other),
            },
            letter => plain.push(letter),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_lines_are_parsed() {
        assert_eq!(word("{\"ok\":null}"), ShimReply::Done);
        assert_eq!(word("{\"release\":null}"), ShimReply::Release);
        let why = "{\"error\":\"\\\"web\\\" has it\\nalready\"}";
        assert_eq!(
            word(why),
            ShimReply::Refused("\"web\" has it already".into())
        );
        assert_eq!(
            word("x"),
            ShimReply::Refused("unknown reply of the agent: x".into())
        );
    }

    #[test]
    fn lines_are_whole_whatever_the_reads() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut agent = Agent {
            stream: ours,
            heard: Vec::new(),
        };
        theirs.write_all(b"{\"ok\":").unwrap();
        assert_eq!(agent.hear(), Ok(None));
        theirs.write_all(b"null}\n{\"release\":null}\n").unwrap();
        assert_eq!(agent.hear(), Ok(Some(ShimReply::Done)));
        assert!(agent.has_heard());
        assert_eq!(agent.hear(), Ok(Some(ShimReply::Release)));
        drop(theirs);
        assert!(agent.hear().is_err());
    }
}
