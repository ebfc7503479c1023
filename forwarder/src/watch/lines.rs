// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reading lines from a caller: bounded lines, and the file descriptor that may be attached to one.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use bytes::Bytes;
use forwarder_protocol::line;
use rustix::cmsg_space;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;

/// The maximum length of a line, in bytes.
pub(crate) const LINE: usize = 1024;
/// The number of bytes read at once. Lines of shims are shorter.
const PIECE: usize = 512;

/// A reader of a caller's lines. A thousand shims stay connected, so it is small.
#[derive(Debug)]
pub(crate) struct Lines {
    from: OwnedReadHalf,
    received: line::Lines,
    /// The descriptor that was received last.
    attached: Option<OwnedFd>,
}

impl Lines {
    pub(crate) fn new(from: OwnedReadHalf) -> Self {
        Self {
            from,
            received: line::Lines::new(LINE),
            attached: None,
        }
    }

    /// Returns the connection.
    pub(crate) fn stream(&self) -> &UnixStream {
        self.from.as_ref()
    }

    /// Returns the next line with its newline; an empty one when the caller has closed the
    /// connection. It is cancel-safe: nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> io::Result<Bytes> {
        loop {
            if let Some(line) = self.received.next_line()? {
                return Ok(line);
            }
            let (piece, attached) = self.receive().await?;
            if piece.is_empty() {
                return Ok(Bytes::new());
            }
            self.received.receive(&piece);
            self.attached = attached.or(self.attached.take());
        }
    }

    /// Returns the descriptor that came with the line, or before it.
    pub(crate) fn take_attached(&mut self) -> Option<OwnedFd> {
        self.attached.take()
    }

    async fn receive(&self) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
        let stream = self.stream();
        let receive = || {
            let mut piece = [0; PIECE];
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let into = &mut [IoSliceMut::new(&mut piece)];
            // The kernel closes descriptors that do not fit into the buffer.
            let length = recvmsg(stream, into, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
            let attached = control.drain().filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => descriptors.last(),
                _ => None,
            });
            Ok((piece[..length].to_vec(), attached.last()))
        };
        stream.async_io(Interest::READABLE, receive).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::IoSlice;
    use std::os::fd::AsFd;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    fn pair() -> (Lines, std::os::unix::net::UnixStream) {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let (from, to) = UnixStream::from_std(ours).unwrap().into_split();
        to.forget();
        (Lines::new(from), theirs)
    }

    fn send(to: &std::os::unix::net::UnixStream, text: &str, descriptor: Option<&dyn AsFd>) {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<_> = descriptor.iter().map(|fd| fd.as_fd()).collect();
        if descriptor.is_some() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        }
        let bytes = &[IoSlice::new(text.as_bytes())];
        sendmsg(to, bytes, &mut control, SendFlags::empty()).unwrap();
    }

    #[tokio::test]
    async fn descriptor_belongs_to_its_line() {
        let (mut lines, theirs) = pair();
        send(&theirs, "one\ntw", None);
        assert_eq!(lines.next().await.unwrap(), "one\n");
        assert!(lines.take_attached().is_none());
        send(&theirs, "o\n", Some(&theirs));
        assert_eq!(lines.next().await.unwrap(), "two\n");
        assert!(lines.take_attached().is_some());
        assert!(lines.take_attached().is_none());
        drop(theirs);
        assert_eq!(lines.next().await.unwrap(), "");
    }

    #[tokio::test]
    async fn line_is_bounded() {
        let (mut lines, theirs) = pair();
        send(&theirs, &"x".repeat(3 * LINE), None);
        let error = lines.next().await.unwrap_err().to_string();
        assert_eq!(error, "a line is longer than 1024 bytes");
    }
}
