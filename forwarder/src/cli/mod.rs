// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line: settings, verbs and the format of errors.

mod adopt;
mod cleanup;
mod doctor;
mod drops;
mod endpoints;
mod flows;
mod names;
mod networks;
mod output;
mod ports;
mod release;
mod removal;
mod run;
mod status;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use clap::error::ContextKind;
use clap::{Arg, Args as _, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use forwarder_common::abi::LAYOUT;
use rustix::process::geteuid;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::config::{Config, Settings, Source};
use crate::control;
use crate::datapath::View;
use crate::sys::expedite;
use crate::{logging, plain};

/// Docker's bridge networking on BPF: bridge mode's isolation at host mode's speed.
#[derive(Parser)]
#[command(name = "forwarder", version, args_override_self = true)]
#[command(
    after_help = "Every command takes the settings that forwarder run --help lists: each is a \
                  flag, else an environment variable, else a key of the file, else its default."
)]
struct Cli {
    /// File of settings [default: /etc/forwarder/forwarder.toml, if it exists]
    #[arg(long, global = true, env = "FORWARDER_CONFIG")]
    #[arg(value_name = "FILE", hide_env_values = true)]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the agent of this network namespace until SIGTERM; traffic continues without it
    Run(run::Args),
    /// Come on top of Docker's rules: start the agent in the background; --plan changes nothing
    Adopt(adopt::Args),
    /// Show whether it runs, the share of the fast path, and what an operator has to know
    Status(status::Args),
    /// List Docker's bridge networks
    Networks(networks::Args),
    /// List containers on bridge networks
    Endpoints(output::ListArgs),
    /// List published ports
    Ports(ports::Args),
    /// List, watch or end live flows; needs no agent
    Flows(flows::Args),
    /// Count dropped packets by their reasons, or show them as it happens; needs no agent
    Drops(drops::Args),
    /// Hand all connections back to the kernel and Docker's rules, and remove the forwarder
    Release,
    /// Remove all of the forwarder's state from the kernel; ends its flows where Docker has no rules
    Cleanup(cleanup::Args),
    /// Report what this kernel, host and Docker offer, and what is missing
    Doctor(output::Args),
    /// Show the version
    Version,
    /// Shorten the kernel's grace periods until standard input ends, for an agent that starts
    #[command(name = expedite::VERB, hide = true)]
    Expedite,
}

/// Runs the command line. An error is one line on stderr and exit status 1.
#[must_use]
pub fn main() -> ExitCode {
    let matches = command().try_get_matches();
    let parsed = matches.and_then(|matches| Cli::from_arg_matches(&matches));
    let Cli {
        config,
        settings,
        verb,
    } = parsed.unwrap_or_else(|error| without_settings(error, std::env::args_os()).exit());
    let source = Source::new(settings.clone(), config.as_deref());
    let variable = |name: &str| std::env::var(name).ok();
    let done = settings
        .resolve(config.as_deref(), variable)
        .and_then(|config| perform(&verb, config, source).map_err(|error| for_user(&verb, error)));
    done.unwrap_or_else(|error| {
        complain(&one_line(&error));
        ExitCode::FAILURE
    })
}

/// Returns an error of the command line that suggests no setting, but to `run`: where the help lists
/// no settings, one that looks alike has nothing to do with what was meant.
fn without_settings(
    mut error: clap::Error,
    mut words: impl Iterator<Item = OsString>,
) -> clap::Error {
    if words.any(|word| word == "run") {
        return error;
    }
    let suggested = error
        .get(ContextKind::SuggestedArg)
        .map(ToString::to_string);
    let settings = Settings::augment_args(clap::Command::new("settings"));
    let mut names = settings.get_arguments().filter_map(Arg::get_long);
    let is_setting = |flag: String| names.any(|name| flag == format!("--{name}"));
    if suggested.is_some_and(is_setting) {
        error.remove(ContextKind::SuggestedArg);
    }
    error
}

/// Says why a verb fails: as an event where the log is JSON, with its priority in the journal.
fn complain(error: &str) {
    let line = logging::last_event(error).unwrap_or_else(|| {
        let priority = if logging::is_journal() { "<3>" } else { "" };
        format!("{priority}forwarder: {}\n", plain::line(error))
    });
    // The terminal may have gone.
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Returns the command line. Every verb takes all settings, and only the help of `run` lists them.
fn command() -> clap::Command {
    let settings = Settings::augment_args(clap::Command::new("settings"));
    let settings: Vec<_> = settings.get_arguments().cloned().collect();
    let is_setting = |arg: &Arg| settings.iter().any(|other| other.get_id() == arg.get_id());
    Cli::command()
        .mut_args(|arg| {
            let hidden = is_setting(&arg);
            arg.hide(hidden)
        })
        .mut_subcommand("run", |run| run.args(&settings))
}

/// Returns the error that a user sees: for an ordinary user, every refusal has the same cause. `run`
/// itself says which rights it lacks.
fn for_user(verb: &Verb, error: anyhow::Error) -> anyhow::Error {
    let is_told = matches!(verb, Verb::Run(_));
    if is_told || geteuid().is_root() {
        return error;
    }
    anyhow!("this needs root: run the same command with sudo")
}

fn perform(verb: &Verb, config: Config, source: Source) -> Result<ExitCode> {
    match verb {
        Verb::Run(args) => run::run(config, source, args)?,
        Verb::Adopt(args) => return adopt::adopt(&config, &source, args),
        Verb::Status(args) => return status::status(&config, args),
        Verb::Networks(args) => networks::networks(&config, args)?,
        Verb::Endpoints(args) => endpoints::endpoints(&config, args)?,
        Verb::Ports(args) => ports::ports(&config, args)?,
        Verb::Flows(args) => flows::flows(&config, args)?,
        Verb::Drops(args) => drops::drops(&config, args)?,
        Verb::Release => release::release(&config)?,
        Verb::Cleanup(args) => cleanup::cleanup(&config, args)?,
        Verb::Doctor(args) => return doctor::doctor(&config, args.output),
        Verb::Expedite => expedite::serve()?,
        Verb::Version => println!("forwarder {}", env!("CARGO_PKG_VERSION")),
    }
    Ok(ExitCode::SUCCESS)
}

/// Formats an error and its causes on one line, without their line breaks.
fn one_line(error: &anyhow::Error) -> String {
    let chain = format!("{error:#}");
    let lines = chain.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ")
}

/// Sends a query to the agent of these settings.
fn ask<T: DeserializeOwned>(config: &Config, verb: control::Verb) -> Result<T> {
    let path = control::socket(&config.state_dir);
    let value = control::ask(&path, verb)?;
    if value == Value::Null {
        bail!("the agent is not ready yet: it waits for Docker's first lists (see its log)");
    }
    serde_json::from_value(value)
        .with_context(|| format!("the agent at {} is of another version", path.display()))
}

/// Opens the pins under these settings.
fn view(config: &Config) -> Result<View> {
    let dir = &config.bpffs_dir;
    View::open(dir).with_context(|| {
        let dir = dir.display();
        format!(
            "no datapath of version {LAYOUT} under {dir}: start an agent with forwarder adopt, or \
             name its --bpffs-dir"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_sound() {
        command().debug_assert();
    }

    /// The settings are accepted by every verb, and listed by one.
    #[test]
    fn only_the_help_of_run_lists_settings() {
        let help = |line: &str| {
            let shown = command().try_get_matches_from(line.split(' '));
            shown.unwrap_err().to_string()
        };
        for line in [
            "forwarder --help",
            "forwarder ports --help",
            "forwarder help flows",
        ] {
            let text = help(line);
            assert!(
                text.contains("Usage: ") && !text.contains("--state-dir"),
                "{text}"
            );
        }
        let run = help("forwarder run --help");
        for flag in ["--state-dir", "--reserved-ports", "--mode"] {
            assert!(run.contains(flag), "{flag}: {run}");
        }
        for line in [
            "forwarder run --state-dir=/s",
            "forwarder --state-dir=/s run",
            "forwarder ports --state-dir=/s",
        ] {
            let matches = command().try_get_matches_from(line.split(' ')).unwrap();
            let cli = Cli::from_arg_matches(&matches).unwrap();
            let config = cli.settings.resolve(None, |_| None).unwrap();
            assert_eq!(config.state_dir, PathBuf::from("/s"), "{line}");
        }
    }

    /// A wrong flag is not answered by a setting that looks alike.
    #[test]
    fn wrong_flag_suggests_no_setting() {
        let refused = |line: &str| {
            let words = || line.split(' ').map(OsString::from);
            let refused = command().try_get_matches_from(words());
            without_settings(refused.unwrap_err(), words()).to_string()
        };
        let text = refused("forwarder doctor --watch");
        assert!(text.contains("unexpected argument '--watch'"), "{text}");
        assert!(!text.contains("--attach"), "{text}");
        let text = refused("forwarder flows --limi=3");
        assert!(text.contains("'--limit'"), "{text}");
        let text = refused("forwarder run --flow=1024");
        assert!(text.contains("'--flows'"), "{text}");
    }

    #[test]
    fn settings_may_stand_before_or_after_the_verb() {
        for line in [
            ["forwarder", "--state-dir", "/s", "ports", "-o", "json"],
            ["forwarder", "ports", "-o", "json", "--state-dir", "/s"],
        ] {
            let cli = Cli::try_parse_from(line).unwrap();
            let config = cli.settings.resolve(None, |_| None).unwrap();
            assert_eq!(config.state_dir, PathBuf::from("/s"));
            let Verb::Ports(args) = cli.verb else {
                panic!("another verb")
            };
            assert_eq!(args.list.output.output, output::Format::Json);
        }
    }

    /// Flows are named by the same flags for every verb.
    #[test]
    fn every_flows_verb_takes_the_same_filters() {
        for line in [
            "forwarder flows --port 80 --peer 198.18.1.2 -o json",
            "forwarder flows --watch --state time-wait --proto tcp",
            "forwarder --state-dir /s flows delete --container web --state-dir /s",
            "forwarder flows delete --all",
        ] {
            let parsed = Cli::try_parse_from(line.split(' '));
            assert!(parsed.is_ok(), "{line}: {:?}", parsed.err());
        }
        // It would be unclear what such a condition applies to.
        for line in [
            "forwarder flows --port 80 delete",
            "forwarder flows --watch delete --all",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }

    #[test]
    fn last_of_a_flag_counts() {
        let line = ["forwarder", "run", "--state-dir=/a", "--state-dir=/b"];
        let config = Cli::try_parse_from(line)
            .unwrap()
            .settings
            .resolve(None, |_| None);
        assert_eq!(config.unwrap().state_dir, PathBuf::from("/b"));
    }

    #[test]
    fn error_is_one_line() {
        let error = anyhow::anyhow!("inner\n  more\n").context("outer");
        assert_eq!(one_line(&error), "outer: inner more");
    }
}
