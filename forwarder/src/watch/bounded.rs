// SPDX-License-Identifier: MIT OR Apache-2.0
//! A connection to Docker's socket for each request, with limits on the size of an answer.
//!
//! The program at the socket may send any amount of data. An answer that is longer than any answer
//! of a daemon ends the connection, before it is held in memory.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bollard::errors::Error;
use bollard::{API_DEFAULT_VERSION, BollardRequest, Docker};
use hyper::Response;
use hyper::body::Incoming;
use hyper::client::conn::http1::handshake;
use hyper::header::{HOST, HeaderValue};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// The maximum size of an answer, in bytes: a container that publishes every port of a host has 25
/// MB.
const ANSWER: usize = 32 << 20;
/// The maximum number of JSON objects in an answer, because each takes more memory than its text: a
/// list of 10,000 containers has 200,000.
const OBJECTS: usize = 1 << 18;
/// The maximum number of bytes of an unfinished event in the event stream: an event with all labels
/// of its container, and the read-ahead.
const EVENT: usize = 4 << 20;

/// The number of bytes in the event stream since the last complete event.
#[derive(Clone, Debug, Default)]
pub(super) struct Unfinished(Arc<AtomicUsize>);

impl Unfinished {
    /// Records that an event is complete.
    pub(super) fn is_whole(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// Returns a client of the daemon at `path`, which opens a new connection for each request.
pub(super) fn client(path: &str, timeout: u64, events: Unfinished) -> Result<Docker, Error> {
    let path: Arc<str> = path.into();
    let transport = move |request: BollardRequest| {
        let (path, events) = (Arc::clone(&path), events.clone());
        async move { exchange(&path, request, events).await }
    };
    let address = Some("http://docker");
    Docker::connect_with_custom_transport(transport, address, timeout, API_DEFAULT_VERSION)
}

async fn exchange(
    path: &str,
    mut request: BollardRequest,
    events: Unfinished,
) -> Result<Response<Incoming>, Error> {
    let bound = if request.uri().path().ends_with("/events") {
        events.is_whole();
        Bound::Event(events)
    } else {
        Bound::Answer {
            bytes: ANSWER,
            objects: OBJECTS,
        }
    };
    let inner = UnixStream::connect(path).await?;
    let (mut requests, connection) = handshake(TokioIo::new(Bounded { inner, bound })).await?;
    // The task ends with the answer, or with its reader.
    tokio::spawn(connection);
    let target = request.uri().path_and_query().map(|target| target.as_str());
    *request.uri_mut() = target.unwrap_or("/").parse()?;
    let host = HeaderValue::from_static("docker");
    request.headers_mut().insert(HOST, host);
    Ok(requests.send_request(request).await?)
}

/// The limit of a connection.
enum Bound {
    /// The limits of one answer.
    Answer { bytes: usize, objects: usize },
    /// The limit of one event.
    Event(Unfinished),
}

impl Bound {
    /// Counts received data.
    fn count(&mut self, new: &[u8]) -> io::Result<()> {
        let is_within = match self {
            Self::Answer { bytes, objects } => {
                let new_objects = new.iter().filter(|&&byte| byte == b'{').count();
                *bytes = bytes.saturating_sub(new.len());
                *objects = objects.saturating_sub(new_objects);
                *bytes > 0 && *objects > 0
            }
            Self::Event(Unfinished(unfinished)) => {
                unfinished.fetch_add(new.len(), Ordering::Relaxed) + new.len() <= EVENT
            }
        };
        if is_within {
            return Ok(());
        }
        let what = match self {
            Self::Answer { .. } => format!(
                "an answer has more than {} MiB or {OBJECTS} objects",
                ANSWER >> 20
            ),
            Self::Event(_) => format!("an event has more than {} MiB", EVENT >> 20),
        };
        let why = format!("{what}: is it Docker's daemon that answers?");
        // The reader of an event stream learns that it ended, but not why.
        tracing::error!("{why}");
        Err(io::Error::other(why))
    }
}

/// A connection that ends when it exceeds its limit.
struct Bounded {
    inner: UnixStream,
    bound: Bound,
}

impl AsyncRead for Bounded {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { inner, bound } = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(inner).poll_read(context, buffer);
        match read {
            Poll::Ready(Ok(())) => Poll::Ready(bound.count(&buffer.filled()[before..])),
            other => other,
        }
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::path::{Path, PathBuf};

    use futures_util::StreamExt as _;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("forwarder-{name}-{}.sock", std::process::id()))
    }

    /// Starts a daemon whose one answer is `begin`, then `piece` again and again. Returns how much
    /// it wrote.
    fn daemon(path: &Path, begin: &'static str, piece: String) -> std::thread::JoinHandle<usize> {
        use std::io::{Read, Write};
        let listener = UnixListener::bind(path).unwrap();
        std::thread::spawn(move || {
            let (mut caller, _) = listener.accept().unwrap();
            assert!(caller.read(&mut [0; 4096]).unwrap() > 0);
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
            write!(caller, "{head}{}", chunk(begin)).unwrap();
            let piece = chunk(&piece);
            let mut written = 0;
            while written < 600 << 20 && caller.write_all(piece.as_bytes()).is_ok() {
                written += piece.len();
            }
            written
        })
    }

    async fn refused(name: &str, begin: &'static str, piece: String, most: usize) -> String {
        let path = path(name);
        let daemon = daemon(&path, begin, piece);
        let events = Unfinished::default();
        let docker = client(path.to_str().unwrap(), 60, events.clone()).unwrap();
        let error = if name == "events" {
            let mut stream = Box::pin(docker.events(None));
            let first = stream.next().await.unwrap();
            events.is_whole();
            assert_eq!(first.unwrap().action.as_deref(), Some("start"));
            stream.next().await.unwrap().unwrap_err()
        } else {
            docker.list_networks(None).await.unwrap_err()
        };
        drop(docker);
        let written = daemon.join().unwrap();
        assert!(written < most + (4 << 20), "{written} bytes went in");
        std::fs::remove_file(path).unwrap();
        format!("{:#}", anyhow::Error::from(error))
    }

    #[tokio::test]
    async fn answer_that_never_ends_is_cut() {
        let piece = "\"x\",".repeat(16_384);
        let why = refused("long", "[", piece, ANSWER).await;
        assert!(why.contains("more than 32 MiB"), "{why}");
        let why = refused("many", "[", "{},".repeat(16_384), 3 * OBJECTS).await;
        assert!(why.contains("or 262144 objects"), "{why}");
    }

    #[tokio::test]
    async fn event_that_never_ends_is_cut() {
        let begin = "{\"Type\":\"container\",\"Action\":\"start\"}\n{\"Type\":\"";
        let why = refused("events", begin, "x".repeat(65_536), EVENT).await;
        assert!(why.contains("error reading a body"), "{why}");
    }
}
