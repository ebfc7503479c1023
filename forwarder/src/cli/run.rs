// SPDX-License-Identifier: MIT OR Apache-2.0
//! `forwarder run`: log, lock, look at the host, then be the agent.

use std::fs;

use anyhow::{Context, Result, anyhow};
use rustix::process::{Resource, getrlimit, setrlimit};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::config::Config;
use crate::lock::Lock;
use crate::{daemon, datapath, plain, preflight};

/// More than one, since the kernel's answers are waited for in place.
const THREADS: usize = 2;
/// What whoever starts us would like to add for those whom we refuse.
const HINT: &str = "FORWARDER_HINT";

pub(super) fn run(config: Config) -> Result<()> {
    start_log(&config.log)?;
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
    let ended = runtime.block_on(daemon::run(config));
    // Its descriptors may be all that there are.
    drop(runtime);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot take back what was made: run `forwarder cleanup`")?;
    // An agent that did not come to work leaves nothing.
    if let Err(error) = runtime.block_on(datapath::take_back(&bpffs_dir, &state_dir)) {
        tracing::warn!("what was made is left: {error:#}: run `forwarder cleanup`");
    }
    for dir in [state_dir, bpffs_dir] {
        // Only if it is empty.
        let _ = fs::remove_dir(dir);
    }
    ended
}

/// A thousand published ports are as many connections of shims.
fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // With what we have we get along as far as it goes.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Logs to stderr.
fn start_log(filter: &str) -> Result<()> {
    let filter = EnvFilter::try_new(directives(filter))
        .with_context(|| format!("--log {filter} is neither a level nor a filter"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(plain::Log)
        // Colours are control characters: none get through.
        .with_ansi(false)
        .with_target(false)
        .try_init()
        .map_err(|error| anyhow!("cannot start the log: {error}"))
}

/// A bare level is ours; libraries stay at warnings.
fn directives(filter: &str) -> String {
    match filter.parse::<LevelFilter>() {
        Ok(level) => format!("{},forwarder={level}", level.min(LevelFilter::WARN)),
        Err(_) => filter.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log level without a target is for the forwarder alone.
    #[test]
    fn plain_log_level_is_for_forwarder_only() {
        assert_eq!(directives("debug"), "warn,forwarder=debug");
        assert_eq!(directives("error"), "error,forwarder=error");
        assert_eq!(directives("off"), "off,forwarder=off");
        assert_eq!(
            directives("forwarder=trace,bollard=debug"),
            "forwarder=trace,bollard=debug"
        );
    }
}
