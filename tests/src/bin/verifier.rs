// SPDX-License-Identifier: MIT OR Apache-2.0
//! `verifier OBJECT [NAME]`: has the running kernel verify every program of a BPF object, or those
//! whose name contains NAME, and prints each result in the form of cargo's test harness. It needs
//! only the object: it is the only process of the virtual machines in which `cargo xtask test
//! --tier vm` boots other kernels.

use std::env;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use aya::programs::{Program, ProgramError};
use aya::{EbpfLoader, VerifierLogLevel};

/// The number of lines shown of a refused program's log: the last ones say why, and where.
const LINES: usize = 30;

fn main() -> ExitCode {
    match run() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            println!("verifier: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Verifies the programs and returns how many the kernel refused.
fn run() -> Result<usize> {
    let mut words = env::args().skip(1);
    let object = words.next().context("which object?")?;
    let wanted = words.next().unwrap_or_default();
    // The whole log of one program takes minutes in an emulated machine; the statistics alone do
    // not.
    let mut ebpf = EbpfLoader::new()
        .verifier_log_level(VerifierLogLevel::STATS)
        .load_file(object)
        .context("the kernel refuses the maps")?;
    let (mut passed, mut failed) = (0, 0);
    let programs = ebpf.programs_mut();
    for (name, program) in programs.filter(|(name, _)| name.contains(&wanted)) {
        let start = Instant::now();
        match verify(program) {
            Ok(walked) => {
                passed += 1;
                let time = start.elapsed().as_secs_f32();
                println!("test {name} ... ok ({walked} instructions in {time:.1} s)");
            }
            Err(error) => {
                failed += 1;
                println!("test {name} ... FAILED");
                report(&error);
            }
        }
    }
    let result = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {result}. {passed} passed; {failed} failed; 0 ignored; 0 measured");
    Ok(failed)
}

/// Returns the number of instructions that the verifier checked; 0 if the kernel does not say.
fn verify(program: &mut Program) -> Result<u32> {
    match program {
        Program::SchedClassifier(program) => program.load()?,
        Program::Xdp(program) => program.load()?,
        Program::CgroupSockAddr(program) => program.load()?,
        Program::SkLookup(program) => program.load()?,
        other => bail!("a program of an unexpected kind: {:?}", other.prog_type()),
    }
    Ok(program.info()?.verified_instruction_count().unwrap_or(0))
}

/// Prints why a program was refused, and the end of the verifier's log.
fn report(error: &anyhow::Error) {
    let Some(ProgramError::LoadError {
        io_error,
        verifier_log,
    }) = error.downcast_ref()
    else {
        println!("  {error:#}");
        return;
    };
    println!("  {io_error}");
    let log = verifier_log.to_string();
    let lines: Vec<_> = log.lines().collect();
    for line in &lines[lines.len().saturating_sub(LINES)..] {
        println!("  {line}");
    }
}
