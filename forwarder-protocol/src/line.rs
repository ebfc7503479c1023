// SPDX-License-Identifier: MIT OR Apache-2.0
//! The framing of the control socket: each message is one line of JSON.

use std::io;

use bytes::{Bytes, BytesMut};
use serde::Serialize;

/// Encodes a message as one line.
///
/// # Errors
/// The message is not expressible in JSON, which no message of this crate is.
pub fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// Splits received bytes into lines. Between two lines it keeps no memory: a thousand connections
/// wait for most of the time.
#[derive(Debug)]
pub struct Lines {
    received: BytesMut,
    limit: usize,
}

impl Lines {
    /// Starts with no bytes; a line of `limit` bytes or more is refused.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            received: BytesMut::new(),
            limit,
        }
    }

    /// Adds bytes from the connection.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
    }

    /// Whether a whole line has been received.
    #[must_use]
    pub fn has_line(&self) -> bool {
        self.end().is_some()
    }

    /// Returns the next line with its newline, if a whole one has been received.
    ///
    /// # Errors
    /// The bytes received are more than a line may have.
    pub fn next_line(&mut self) -> io::Result<Option<Bytes>> {
        if let Some(end) = self.end() {
            let line = self.received.split_to(end + 1).freeze();
            if self.received.is_empty() {
                self.received = BytesMut::new();
            }
            return Ok(Some(line));
        }
        if self.received.len() >= self.limit {
            let limit = self.limit;
            return Err(io::Error::other(format!(
                "a line is longer than {limit} bytes"
            )));
        }
        Ok(None)
    }

    fn end(&self) -> Option<usize> {
        self.received.iter().position(|&byte| byte == b'\n')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_whatever_the_reads() {
        let mut lines = Lines::new(64);
        lines.receive(b"{\"ok\":");
        assert!(!lines.has_line());
        assert_eq!(lines.next_line().unwrap(), None);
        lines.receive(b"null}\n{\"release\":null}\nx");
        assert!(lines.has_line());
        let mut next = || lines.next_line().unwrap();
        assert_eq!(next().as_deref(), Some(&b"{\"ok\":null}\n"[..]));
        assert_eq!(next().as_deref(), Some(&b"{\"release\":null}\n"[..]));
        assert_eq!(next(), None);
    }

    #[test]
    fn line_is_bounded() {
        let mut lines = Lines::new(4);
        lines.receive(b"abc");
        assert_eq!(lines.next_line().unwrap(), None);
        lines.receive(b"d");
        let error = lines.next_line().unwrap_err().to_string();
        assert_eq!(error, "a line is longer than 4 bytes");
        lines.receive(b"\n");
        assert!(lines.next_line().unwrap().is_some(), "it had arrived whole");
    }

    #[test]
    fn empty_buffer_keeps_no_memory() {
        let mut lines = Lines::new(64);
        lines.receive(b"a\n");
        lines.next_line().unwrap();
        assert_eq!(lines.received.capacity(), 0);
    }
}
