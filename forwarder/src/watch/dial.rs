// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connecting to Docker's daemon: waits for its socket and for an answer of a sufficient version.
use std::io::ErrorKind;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bollard::Docker;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use super::bounded::{self, Unfinished};

/// The API version of Docker 20.10.
const OLDEST_API: (u32, u32) = (1, 41);
/// The first and the longest pause between two attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(500));
/// How long the daemon may take to report its version. A starting daemon makes callers wait.
const GREETING: Duration = Duration::from_secs(2);
/// The timeout of any other answer, in seconds. Reading a container blocks while the daemon starts
/// it.
const ANSWER: u64 = 120;

/// Waits for a daemon; returns it and its version. `events` is told of each complete event.
pub(super) async fn dial(path: &str, events: &Unfinished) -> Result<(Docker, String)> {
    let mut pause = BACKOFF.0;
    let mut said = false;
    loop {
        let why = match UnixStream::connect(path).await.map(drop) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                bail!("may not open {path}: run as root or as a member of its group");
            }
            Err(error) => error.to_string(),
            Ok(()) => match greet(path, events).await {
                Ok(Ok(docker)) => return Ok(docker),
                Ok(Err(unfit)) => return Err(unfit),
                Err(error) => format!("{error:#}"),
            },
        };
        if !said {
            tracing::info!("waiting for Docker at {path} ({why})");
            said = true;
        }
        sleep(pause).await;
        pause = (pause * 2).min(BACKOFF.1);
    }
}

/// Asks for the version. The outer error may be temporary, the inner one is permanent.
async fn greet(path: &str, events: &Unfinished) -> Result<Result<(Docker, String)>> {
    let docker = bounded::client(path, ANSWER, events.clone())?;
    let docker = timeout(GREETING, docker.negotiate_version())
        .await
        .context("no answer")??;
    let version = docker.version().await?;
    let name = version.version.unwrap_or_default();
    let api = version.api_version.unwrap_or_default();
    Ok(if is_new_enough(&api) {
        Ok((docker, name))
    } else {
        Err(anyhow!(
            "Docker {name} (API {api}) is too old: 20.10 (API 1.41) or later is needed"
        ))
    })
}

fn is_new_enough(api: &str) -> bool {
    let parts = api
        .split_once('.')
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    parts.is_some_and(|parts: (u32, u32)| parts >= OLDEST_API)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn docker_20_10_is_the_oldest_supported() {
        for (api, fits) in [
            ("1.41", true),
            ("1.40", false),
            ("1.9", false),
            ("2.0", true),
            ("", false),
            ("x.y", false),
        ] {
            assert_eq!(is_new_enough(api), fits, "{api}");
        }
    }

    /// Starts a daemon that reports the same version to each of its `calls` callers.
    fn daemon(path: &std::path::Path, calls: usize) -> std::thread::JoinHandle<()> {
        use std::io::{Read, Write};
        let listener = UnixListener::bind(path).unwrap();
        std::thread::spawn(move || {
            let body = r#"{"Version":"19.03.15","ApiVersion":"1.40"}"#;
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n";
            let mut answered = 0;
            while answered < calls {
                let (mut caller, _) = listener.accept().unwrap();
                if caller.read(&mut [0; 4096]).unwrap() > 0 {
                    write!(caller, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
                    answered += 1;
                }
            }
        })
    }

    #[tokio::test]
    async fn a_socket_that_is_missing_is_waited_for_and_an_old_daemon_is_refused() {
        let path = std::env::temp_dir().join(format!("forwarder-dial-{}.sock", std::process::id()));
        let name = path.to_str().unwrap().to_owned();
        assert!(
            timeout(BACKOFF.0 / 2, dial(&name, &Unfinished::default()))
                .await
                .is_err(),
            "no socket: it waits"
        );
        let daemon = daemon(&path, 2);
        let refused = timeout(GREETING, dial(&name, &Unfinished::default()))
            .await
            .expect("an answer")
            .expect_err("a refusal");
        assert_eq!(
            refused.to_string(),
            "Docker 19.03.15 (API 1.40) is too old: 20.10 (API 1.41) or later is needed"
        );
        daemon.join().unwrap();
        std::fs::remove_file(path).unwrap();
    }
}
