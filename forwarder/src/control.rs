// SPDX-License-Identifier: MIT OR Apache-2.0
//! The control socket: each query and each answer is one line of JSON. Shims stay connected; their
//! lines go to [`crate::watch::shim`].

use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use forwarder_protocol::line;
use forwarder_protocol::query::{self, Answer};

use crate::watch::claim;
use crate::watch::lines::Lines;
use crate::watch::shim::{self, ShimEvent};

pub use forwarder_protocol::place::socket;
pub use forwarder_protocol::query::Verb;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);
/// The maximum number of callers that have not sent a query or have no answer yet.
const CALLERS: usize = 256;
/// The maximum number of connected shims: two for each port.
const SHIMS: usize = 1 << 17;

/// A query for the agent's event loop.
#[derive(Debug)]
pub struct Query {
    /// What is asked.
    pub verb: Verb,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Value>,
}

/// The server side. When it is dropped, it stops and removes its file.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        // The file can only be missing.
        let _ = fs::remove_file(&self.path);
    }
}

/// Serves the control socket at `path` (mode 0600): queries go to `queries`, lines of shims to
/// `calls`. Replaces the file of a dead agent. Needs a tokio runtime.
///
/// # Errors
/// A living agent answers there, or the file cannot be created.
pub fn serve(
    path: &Path,
    queries: mpsc::Sender<Query>,
    calls: mpsc::Sender<ShimEvent>,
) -> Result<Server> {
    if UnixStream::connect(path).is_ok() {
        bail!(
            "another agent answers at {}: give this one another --state-dir",
            path.display()
        );
    }
    let listener =
        bind(path).with_context(|| format!("cannot create the socket {}", path.display()))?;
    Ok(Server {
        path: path.to_owned(),
        task: tokio::spawn(accept(listener, queries, calls)),
    })
}

/// Binds under a temporary name first, so that the socket at `path` always has its mode and
/// listens.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let new = path.with_extension("new");
    if let Err(error) = fs::remove_file(&new)
        && error.kind() != ErrorKind::NotFound
    {
        return Err(error);
    }
    let listener = UnixListener::bind(&new)?;
    fs::set_permissions(&new, Permissions::from_mode(0o600))?;
    fs::rename(&new, path)?;
    Ok(listener)
}

async fn accept(
    listener: UnixListener,
    queries: mpsc::Sender<Query>,
    calls: mpsc::Sender<ShimEvent>,
) {
    let mut callers = JoinSet::new();
    let room = Room {
        callers: Arc::new(Semaphore::new(CALLERS)),
        shims: Arc::new(Semaphore::new(SHIMS)),
    };
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((caller, _)) => {
                    // A caller for whom there is no room sees the end of its connection.
                    let Ok(place) = Arc::clone(&room.callers).try_acquire_owned() else {
                        continue;
                    };
                    let (queries, calls) = (queries.clone(), calls.clone());
                    let shims = Arc::clone(&room.shims);
                    callers.spawn(async move {
                        // A caller that closes its connection early loses only its own answer.
                        let _ = converse(caller, place, &shims, &queries, calls).await;
                    });
                }
                Err(error) => {
                    tracing::warn!("cannot accept a connection at the control socket: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = callers.join_next() => {}
            () = queries.closed() => return,
        }
    }
}

/// The limits of simultaneous connections.
struct Room {
    callers: Arc<Semaphore>,
    shims: Arc<Semaphore>,
}

async fn converse(
    caller: tokio::net::UnixStream,
    place: OwnedSemaphorePermit,
    shims: &Semaphore,
    queries: &mpsc::Sender<Query>,
    calls: mpsc::Sender<ShimEvent>,
) -> Result<()> {
    claim::is_root(&caller).map_err(|why| {
        tracing::warn!("a caller at the control socket is refused: {why}");
        anyhow!(why)
    })?;
    let (from, mut to) = caller.into_split();
    let mut from = Lines::new(from);
    let line = timeout(PATIENCE, from.next()).await??;
    if let Some(question) = shim::ShimRequest::parse(&line) {
        let _shim = shims.try_acquire().context("too many shims")?;
        drop(place);
        return shim::converse(question, from, to, &calls).await;
    }
    let answer = match timeout(PATIENCE, answer(&line, queries)).await? {
        Ok(value) => Answer::Ok(value),
        Err(error) => Answer::Error(format!("{error:#}")),
    };
    let line = line::encode(&answer)?;
    Ok(timeout(PATIENCE, to.write_all(&line)).await??)
}

async fn answer(line: &[u8], queries: &mpsc::Sender<Query>) -> Result<Value> {
    let query::Query { verb } = serde_json::from_slice(line).context("not a query")?;
    let (reply, answer) = oneshot::channel();
    let ending = "the agent is stopping";
    queries.send(Query { verb, reply }).await.context(ending)?;
    answer.await.context(ending)
}

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens at the socket.
    #[error(
        "no agent answers at {}: start one with forwarder adopt, or name its --state-dir",
        path.display()
    )]
    Absent {
        /// The socket.
        path: PathBuf,
    },
    /// Somebody listens but gives no answer, or access is denied.
    #[error("the agent at {} gives no answer: {why}", path.display())]
    Silent {
        /// The socket.
        path: PathBuf,
        /// The reason, for a person.
        why: String,
    },
}

/// Sends a query to the agent at `path` and waits a few seconds for the answer.
///
/// # Errors
/// See [`AskError`].
pub fn ask(path: &Path, verb: Verb) -> Result<Value, AskError> {
    let stream = UnixStream::connect(path).map_err(|why| match why.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => AskError::Absent {
            path: path.to_owned(),
        },
        _ => silent(path, &why),
    })?;
    claim::is_root(&stream).map_err(|why| {
        silent(
            path,
            &format!("the process that listens there is not trusted: {why}"),
        )
    })?;
    let answer = exchange(&stream, verb).map_err(|why| match why.kind() {
        ErrorKind::WouldBlock => silent(path, &"it takes too long"),
        _ => silent(path, &why),
    })?;
    match answer {
        Answer::Ok(value) => Ok(value),
        Answer::Error(why) => Err(silent(path, &why)),
    }
}

fn silent(path: &Path, why: &dyn ToString) -> AskError {
    AskError::Silent {
        path: path.to_owned(),
        why: why.to_string(),
    }
}

fn exchange(mut stream: &UnixStream, verb: Verb) -> io::Result<Answer> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&line::encode(&query::Query { verb })?)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("forwarder-{name}-{}.sock", std::process::id()))
    }

    async fn ask(path: &Path, verb: Verb) -> Result<Value, AskError> {
        let path = path.to_owned();
        tokio::task::spawn_blocking(move || super::ask(&path, verb))
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn a_question_reaches_the_loop_and_its_answer_comes_back() {
        let path = path("asked");
        let (to, mut queries) = mpsc::channel(1);
        let server = serve(&path, to, mpsc::channel(1).0).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        tokio::spawn(async move {
            while let Some(Query { verb, reply }) = queries.recv().await {
                let _ = reply.send(json!({ "asked": verb }));
            }
        });
        let value = ask(&path, Verb::Ports).await.unwrap();
        assert_eq!(value, json!({ "asked": "ports" }));
        drop(server);
        assert!(!path.exists(), "the file goes with the server");
    }

    #[tokio::test]
    async fn a_bad_question_gets_an_error() {
        let path = path("bad");
        let (to, _queries) = mpsc::channel(1);
        let _server = serve(&path, to, mpsc::channel(1).0).unwrap();
        let asked = path.clone();
        let answer = tokio::task::spawn_blocking(move || {
            let mut stream = UnixStream::connect(asked).unwrap();
            stream.write_all(b"{\"verb\":\"dance\"}\n").unwrap();
            std::io::read_to_string(stream).unwrap()
        });
        let answer = answer.await.unwrap();
        assert!(answer.starts_with("{\"error\":\"not a query"), "{answer}");
    }

    #[tokio::test]
    async fn a_dead_agents_file_is_replaced_and_a_living_ones_is_not() {
        let path = path("stale");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let refused = ask(&path, Verb::Status).await.unwrap_err();
        assert!(matches!(refused, AskError::Absent { .. }), "{refused}");
        assert!(
            refused.to_string().starts_with("no agent answers at "),
            "{refused}"
        );

        let (to, _queries) = mpsc::channel(1);
        let server = serve(&path, to.clone(), mpsc::channel(1).0).unwrap();
        let second = serve(&path, to, mpsc::channel(1).0)
            .unwrap_err()
            .to_string();
        assert!(second.contains("--state-dir"), "{second}");
        drop(server);
    }

    #[tokio::test]
    async fn an_agent_that_ends_says_so() {
        let path = path("ending");
        let (to, mut queries) = mpsc::channel(1);
        let _server = serve(&path, to, mpsc::channel(1).0).unwrap();
        tokio::spawn(async move { drop(queries.recv().await) });
        let refused = ask(&path, Verb::Status).await.unwrap_err().to_string();
        assert!(
            refused.ends_with("the agent is stopping: channel closed"),
            "{refused}"
        );
    }
}
