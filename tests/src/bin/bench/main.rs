// SPDX-License-Identifier: MIT OR Apache-2.0
//! `forwarder-bench`: measures the forwarder against a stock Docker host and a bare veth, in turn.

mod arms;
mod cpu;
mod flood;
mod parse;
mod report;
mod sample;
mod tools;
mod work;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum as _};
use harness::{Lab, forwarder_bin};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::arms::{Route, Stand};
use crate::flood::Flood;
use crate::report::Report;
use crate::sample::Sample;
use crate::tools::Servers;
use crate::work::{Arm, Direction, Work};

/// The niceness of all processes of the bench.
const PRIORITY: i32 = -19;

/// Measures the forwarder against a stock Docker host and a bare veth, all of them made of network
/// namespaces: this machine's Docker and network are neither touched nor loaded.
#[derive(Parser)]
#[command(name = "forwarder-bench")]
struct Args {
    /// How often the arms are measured in turn
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// An older build of the forwarder, measured as one more arm
    #[arg(long, value_name = "BINARY")]
    against: Option<PathBuf>,
    /// Write everything, including the samples, to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fail when a target is missed
    #[arg(long)]
    check: bool,
    /// How long each client runs; flows that follow the kernel need some seconds
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Into how many flows the UDP frames are divided, a power of two
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = flows)]
    flows: u32,
    /// Only these arms; all ratios are to stock
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    arms: Vec<Arm>,
    /// Only this work
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    works: Vec<Work>,
    /// Only these directions
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    directions: Vec<Direction>,
}

fn flows(text: &str) -> Result<u32> {
    let flows: u32 = text.parse()?;
    ensure!(
        flows.is_power_of_two() && flows <= flood::MAX_FLOWS,
        "1, 2, 4, … or {}",
        flood::MAX_FLOWS
    );
    Ok(flows)
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("forwarder-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<ExitCode> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "run as root: it makes network namespaces and loads BPF programs"
    );
    // All started processes inherit it, so that other work on the machine disturbs less.
    rustix::process::setpriority_process(None, PRIORITY)?;
    // A flag that is checked between measurements, so that everything is removed in order. Blocking
    // the signals instead would pass on to every child.
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let samples = Bench::build(args, &interrupted)
        .and_then(Bench::measure)
        .map_err(|error| match interrupted.load(Ordering::Relaxed) {
            true => error.context("interrupted; all is taken down"),
            false => error,
        })?;
    let report = Report::new(samples, args.rounds, args.flows)?;
    report.print();
    if let Some(file) = &args.json {
        report.write(file)?;
    }
    let failed = args.check && !report.targets_met();
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// The arms, set up, and the options of the measurement.
struct Bench<'args> {
    args: &'args Args,
    interrupted: &'args AtomicBool,
    flood: Flood,
    // The fields are dropped in this order.
    stands: Vec<Stand>,
    _lan: Servers,
    _lab: Lab,
    _folder: Folder,
}

impl<'args> Bench<'args> {
    fn build(args: &'args Args, interrupted: &'args AtomicBool) -> Result<Self> {
        let flood = Flood::load(args.flows)?;
        let folder = Folder::new()?;
        let lab = Lab::new("bench")?;
        let lan = Servers::start(lab.lan(), &folder.0.join("lan"))?;
        let mut stands = Vec::new();
        for arm in wanted(&args.arms, Arm::value_variants()) {
            let by_name = arm == Arm::Against && args.against.is_none()
                || matches!(arm, Arm::Adopt | Arm::Follow);
            if by_name && args.arms.is_empty() {
                continue;
            }
            if matches!(arm, Arm::Ours | Arm::Adopt | Arm::Follow | Arm::OursXdp) {
                forwarder_bin()?;
            }
            let start = Instant::now();
            let stand = Stand::build(&lab, arm, args.against.as_ref(), &folder.0);
            stands.push(stand.with_context(|| format!("cannot build the arm “{}”", arm.title()))?);
            eprintln!(
                "{:<9} stands after {:.1} s",
                arm.title(),
                start.elapsed().as_secs_f32()
            );
            ensure!(
                !interrupted.load(Ordering::Relaxed),
                "stopped while building"
            );
        }
        Ok(Self {
            args,
            interrupted,
            flood,
            stands,
            _lan: lan,
            _lab: lab,
            _folder: folder,
        })
    }

    /// Runs all rounds. The arms take turns at each work, so that other work on the machine affects
    /// them equally, and each round begins with another arm.
    fn measure(mut self) -> Result<Vec<Sample>> {
        let mut samples = Vec::new();
        for round in 1..=self.args.rounds {
            for work in wanted(&self.args.works, Work::value_variants()) {
                for direction in wanted(&self.args.directions, Direction::value_variants()) {
                    let from = samples.len();
                    for turn in 0..self.stands.len() {
                        let stand = &self.stands[(turn + round as usize) % self.stands.len()];
                        let Some(route) = stand
                            .route(direction)
                            .filter(|_| stand.arm.does(work, direction))
                        else {
                            continue;
                        };
                        samples.push(sample(
                            &mut self.flood,
                            stand,
                            route,
                            self.args.seconds,
                            (round, work, direction),
                        ));
                        ensure!(
                            !self.interrupted.load(Ordering::Relaxed),
                            "stopped in round {round}"
                        );
                    }
                    self.tell(&samples[from..]);
                }
            }
        }
        Ok(samples)
    }

    /// Prints one line of progress about the last measurement.
    fn tell(&self, samples: &[Sample]) {
        let Some(Sample {
            round,
            work,
            direction,
            ..
        }) = samples.first()
        else {
            return;
        };
        let mut line = format!(
            "round {round}/{} {} {}:",
            self.args.rounds,
            work.title(),
            direction.title()
        );
        for sample in samples {
            let value = sample
                .value
                .map_or("–".to_owned(), |value| work.show(value));
            line += &format!(" {} {value}", sample.arm.title());
            if let Some(why) = &sample.void {
                line += &format!(" VOID ({why})");
            }
            line.push(';');
        }
        eprintln!("{} {}", line.trim_end_matches(';'), work.unit());
    }
}

/// Returns what was requested, or everything.
fn wanted<T: Copy>(asked: &[T], all: &[T]) -> Vec<T> {
    if asked.is_empty() { all } else { asked }.to_vec()
}

/// Measures once. A measurement that fails, or whose packets took another path than the arm's, is
/// void.
fn sample(
    flood: &mut Flood,
    stand: &Stand,
    route: &Route,
    seconds: u32,
    (round, work, direction): (u32, Work, Direction),
) -> Sample {
    let mut sample = Sample {
        round,
        work,
        direction,
        arm: stand.arm,
        value: None,
        share: None,
        void: None,
    };
    let measured = stand.paths().and_then(|before| {
        let value = match work {
            Work::PingPong => tools::ping_pong(route, seconds),
            Work::Connections => tools::connections(route, seconds),
            Work::KeepAlive => tools::keep_alive(route, seconds),
            Work::Stream => tools::stream(route, seconds),
            Work::UdpSocket => flood.socket(route),
            Work::Forwarding => flood.door(route),
        }?;
        let share = before
            .zip(stand.paths()?)
            .map(|(before, after)| after.share_since(before));
        Ok((value, share))
    });
    match measured {
        Ok((value, share)) => {
            (sample.value, sample.share) = (Some(value), share);
            if value <= 0.0 {
                sample.void = Some("nothing arrived".to_owned());
            } else if let Some(share) = share.filter(|share| *share < stand.arm.share()) {
                sample.void = Some(format!("only {:.0} % took its path", share * 100.0));
            }
        }
        Err(error) => sample.void = Some(format!("{error:#}")),
    }
    sample
}

/// A folder for the servers' files. It is removed when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let path = env::temp_dir().join(format!("forwarder-bench-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let path: &Path = &self.0;
        if let Err(error) = fs::remove_dir_all(path) {
            eprintln!("cannot remove {}: {error}", path.display());
        }
    }
}
