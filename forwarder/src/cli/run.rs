// SPDX-License-Identifier: MIT OR Apache-2.0
//! `forwarder run`: starts the log, takes the lock, checks the host and runs the agent.

use std::fs;

use anyhow::{Context, Result, anyhow};
use rustix::process::{Resource, getrlimit, setrlimit, setsid};

use super::adopt::log_file;
use crate::config::{Config, Source};
use crate::lock::Lock;
use crate::{daemon, datapath, logging, preflight};

/// The number of worker threads. One is not enough, because the agent waits for the kernel's
/// answers synchronously.
const THREADS: usize = 2;
/// The environment variable with an additional hint for users, set by the program that starts the
/// agent.
const HINT: &str = "FORWARDER_HINT";

#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// Leave the terminal, so that its end does not end the agent
    #[arg(long, hide = true)]
    background: bool,
}

pub(super) fn run(config: Config, source: Source, args: &Args) -> Result<()> {
    if args.background {
        setsid().context("cannot leave the terminal's session")?;
    }
    let file = args.background.then(|| log_file(&config.state_dir));
    logging::start(&config.log, config.log_format, file)?;
    let _lock = Lock::acquire()?;
    preflight::prepare(&config).map_err(|error| match std::env::var(HINT) {
        Ok(hint) if !hint.is_empty() => anyhow!("{error:#} ({hint})"),
        _ => error,
    })?;
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .context("cannot start the agent's threads")?;
    let (state_dir, bpffs_dir) = (config.state_dir.clone(), config.bpffs_dir.clone());
    let ended = runtime.block_on(daemon::run(config, source));
    // The first runtime may hold the last free descriptors.
    drop(runtime);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot remove what was set up: run `forwarder cleanup`")?;
    // An agent that never became ready leaves nothing behind.
    if let Err(error) = runtime.block_on(datapath::take_back(&bpffs_dir, &state_dir)) {
        tracing::warn!("what was set up is left in the kernel: {error:#}: run `forwarder cleanup`");
    }
    for dir in [state_dir, bpffs_dir] {
        // This removes the directory only if it is empty.
        let _ = fs::remove_dir(dir);
    }
    ended
}

/// Raises the limit of open files: a thousand published ports are as many connections of shims.
fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // If this fails, the agent works within the present limit.
    let _ = setrlimit(Resource::Nofile, limit);
}
