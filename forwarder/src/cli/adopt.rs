// SPDX-License-Identifier: MIT OR Apache-2.0
//! `forwarder adopt`: comes on top of Docker's rules on a running host, or says what that would
//! change.

mod background;
mod observe;
mod words;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};

use self::background::Background;
pub(super) use self::background::log_file;
use super::output::{self, Format};
use crate::config::{Config, Source};
use crate::control::{self, AskError, Verb};
use crate::preflight;
use crate::report::{Adoption, AgentStatus};

#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// Change nothing, and say what would change; exit status 2 if a network would stay with the
    /// kernel, 1 if this host cannot be adopted
    #[arg(long)]
    plan: bool,
    #[command(flatten)]
    output: output::Args,
}

/// The exit status of a plan that leaves networks to the kernel.
const INCOMPLETE: u8 = 2;

pub(super) fn adopt(config: &Config, source: &Source, args: &Args) -> Result<ExitCode> {
    let format = args.output.output;
    if let Some(pid) = running(config)? {
        let adoption = Adoption {
            agent: Some(pid),
            ..Adoption::default()
        };
        show(format, &adoption, &words::running(pid))?;
        return Ok(ExitCode::SUCCESS);
    }
    // An agent verifies its programs itself when it starts.
    let findings = if args.plan {
        preflight::examine(config)
    } else {
        preflight::examine_host(config)
    };
    let plan = observe::plan(config, findings)?;
    if !plan.problems.is_empty() {
        show(format, &plan, &words::problems(&plan))?;
        return Ok(ExitCode::FAILURE);
    }
    if !args.plan {
        start(config, source, format, &plan)?;
        return Ok(ExitCode::SUCCESS);
    }
    show(format, &plan, &words::plan(&plan))?;
    Ok(if plan.is_complete() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(INCOMPLETE)
    })
}

/// Returns the process id of the agent that runs with these settings.
fn running(config: &Config) -> Result<Option<u32>> {
    match control::ask(&control::socket(&config.state_dir), Verb::Status) {
        Err(AskError::Absent { .. }) => Ok(None),
        Err(error) => Err(error.into()),
        // An agent that is not ready yet answers nothing; its process id is unknown.
        Ok(answer) => Ok(Some(
            serde_json::from_value::<AgentStatus>(answer).map_or(0, |status| status.agent.pid),
        )),
    }
}

/// Starts the agent in the background, and shows what it has changed.
fn start(config: &Config, source: &Source, format: Format, plan: &Adoption) -> Result<()> {
    let progress = |line: &str| match format {
        Format::Table => output::text(&format!("{line}\n")),
        Format::Json => Ok(()),
    };
    progress(&words::checked(plan))?;
    let since = Instant::now();
    let agent = Background::start(config, source)?;
    let pid = agent.pid();
    let log = log_file(&config.state_dir);
    progress(&format!("started   pid {pid}, log {}", log.display()))?;
    agent.wait_until_ready()?;
    progress(&format!(
        "ready     after {:.1} s",
        since.elapsed().as_secs_f32()
    ))?;
    let adoption = adopted(config, plan, pid).context("the agent is ready, but")?;
    show(format, &adoption, &words::adopted(&adoption))
}

/// Returns what the agent has changed.
fn adopted(config: &Config, plan: &Adoption, pid: u32) -> Result<Adoption> {
    let status = super::ask::<AgentStatus>(config, Verb::Status)?;
    Ok(Adoption {
        changed: true,
        would_change: false,
        agent: Some(pid),
        networks: super::ask(config, Verb::Networks)?,
        hooks: status.hooks.values().map(Vec::len).sum(),
        devices: status.hooks.len(),
        kernel_connections: super::view(config)?.kernel_connections(),
        ..plan.clone()
    })
}

fn show(format: Format, adoption: &Adoption, text: &str) -> Result<()> {
    match format {
        Format::Json => output::json(adoption),
        Format::Table => output::text(text),
    }
}
