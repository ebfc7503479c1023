// SPDX-License-Identifier: MIT OR Apache-2.0
//! The differential suite: the same random trace through a host with stock Docker's rules and through
//! ours, with the same addresses; testers at all ends compare what they see.
//!
//! A seed makes a [trace](trace) of steps, [played](play) on two [arms](arm). What differs must be in
//! `known.toml`, with a reason. `DIFFERENTIAL_SEEDS` and `DIFFERENTIAL_SEED` choose how many seeds
//! and which is the first (`cargo xtask differential`).

mod arm;
mod compare;
mod errors;
mod flow;
mod grammar;
mod known;
mod odd;
mod ordinary;
mod pieces;
mod place;
mod play;
mod sctp;
mod shot;
mod trace;
mod view;

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};

use crate::known::Known;
use crate::play::Play;

/// Seeds of a short run.
const SHORT: u64 = 100;
/// A run of at least so many has to meet every entry of the list.
const LONG: u64 = 500;
/// Of the eligible packets, how many in a hundred our path has to take.
const TAKEN: u64 = 90;

/// A number from the environment.
fn number(variable: &str, default: u64) -> Result<u64> {
    match std::env::var(variable) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{variable}={text} is no number")),
        Err(_) => Ok(default),
    }
}

/// Both arms show the same but for known differences.
#[test]
fn arms_agree_but_for_known_differences() -> Result<()> {
    let (first, seeds) = (
        number("DIFFERENTIAL_SEED", 0)?,
        number("DIFFERENTIAL_SEEDS", SHORT)?,
    );
    let known = Known::read()?;
    let begun = Instant::now();
    let mut play = Play::new(&known)?;
    let built = begun.elapsed();
    // All that a packet causes happens on the processor that sends it.
    let mut one = CpuSet::new();
    one.set(sched_getcpu());
    sched_setaffinity(None, &one)?;
    play.survey = std::env::var_os("DIFFERENTIAL_SURVEY").map(|_| Default::default());
    for seed in first..first + seeds {
        play.seed(seed)?;
    }
    let totals = &play.totals;
    println!(
        "{seeds} seeds from {first} in {:.1?} and {built:.1?} before: {} steps, {} packets on each \
         arm, {} known differences and {} by chance, {} of {} eligible packets took our path",
        begun.elapsed() - built,
        totals.steps,
        totals.packets,
        totals.known,
        totals.chance,
        totals.fast,
        totals.eligible
    );
    for (difference, (times, seed)) in play.survey.iter().flatten() {
        println!("unexplained, {times} times, first by seed {seed}: {difference}");
    }
    let mut stale = Vec::new();
    for (name, (met, first)) in known.met() {
        if met == 0 {
            println!("       0 {name}");
            stale.push(name);
        } else {
            println!("  {met:6} {name}, first by seed {first}");
        }
    }
    ensure!(
        totals.fast * 100 >= totals.eligible * TAKEN,
        "void: our path took only {} of {} eligible packets",
        totals.fast,
        totals.eligible
    );
    ensure!(
        seeds < LONG || stale.is_empty(),
        "entries of known.toml that nothing was like: {stale:?}"
    );
    Ok(())
}
