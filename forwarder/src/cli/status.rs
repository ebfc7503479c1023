// SPDX-License-Identifier: MIT OR Apache-2.0
//! `forwarder status`: shows the agent's status from the agent and the datapath's status from the
//! pins.

mod render;

use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::net::{AddressFamily, SocketType, netdevice};

use super::output::{self, Format};
use crate::config::Config;
use crate::control::{AskError, Verb};
use crate::datapath::View;
use crate::report::{self, AgentStatus, Sample};

#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// Also show attached programs, all reasons with their meaning, and how full the maps are
    #[arg(short, long)]
    verbose: bool,
    /// Count packets for some seconds, and show rates in place of totals
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "1", value_parser = clap::value_parser!(u32).range(1..=SAMPLE_MAX))]
    sample: Option<u32>,
    #[command(flatten)]
    output: output::Args,
}

/// The longest sample, in seconds.
const SAMPLE_MAX: i64 = 3600;

/// The exit status where nothing runs and nothing is attached, as that of `systemctl status`.
const NOT_RUNNING: u8 = 3;

pub(super) fn status(config: &Config, args: &Args) -> Result<ExitCode> {
    let agent = match super::ask::<AgentStatus>(config, Verb::Status) {
        Ok(told) => Some(told),
        Err(error) if matches!(error.downcast_ref(), Some(AskError::Absent { .. })) => None,
        Err(error) => return Err(error),
    };
    // An ordinary user may not look: then something may be there.
    if agent.is_none() && matches!(config.bpffs_dir.try_exists(), Ok(false)) {
        eprintln!(
            "not running here, nothing attached. Start it: sudo forwarder adopt  (is this host \
             ready? forwarder doctor)"
        );
        return Ok(ExitCode::from(NOT_RUNNING));
    }
    let view = super::view(config).with_context(|| match agent {
        Some(_) => "the agent has no maps",
        None => "no agent runs here",
    })?;
    let pinned = report::hooks(view.hooks()?, device_name);
    let sample = args.sample.map(|seconds| sample(&view, seconds));
    let mut status = report::status(
        agent,
        pinned,
        view.sockets()?,
        &view.reasons()?,
        &view.maps()?,
        view.armed()?,
    );
    status.sample = sample.transpose()?;
    match args.output.output {
        Format::Json => output::json(&status)?,
        Format::Table => {
            output::text(&render::summary(&status, &kernel(), args.verbose))?;
            if args.verbose {
                output::text(&render::details(&status))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Counts packets for a while.
fn sample(view: &View, seconds: u32) -> Result<Sample> {
    let (since, before) = (Instant::now(), view.reasons()?);
    std::thread::sleep(Duration::from_secs(seconds.into()));
    let after = view.reasons()?;
    Ok(report::sample(
        &before,
        &after,
        since.elapsed().as_secs_f64(),
    ))
}

/// Returns the kernel's release.
fn kernel() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease");
    release.unwrap_or_default().trim().to_owned()
}

/// Returns the name of a device in our network namespace.
fn device_name(index: u32) -> Option<String> {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None).ok()?;
    netdevice::index_to_name(socket, index).ok()
}
