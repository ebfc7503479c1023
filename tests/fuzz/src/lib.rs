// SPDX-License-Identifier: MIT OR Apache-2.0
//! The targets of the fuzzers, each a function of the bytes that the fuzzer comes up with. What must
//! never happen is a panic. `cargo xtask fuzz` runs them.

// The agent's plans alone: they need nothing of what the agent is made of, which takes minutes to
// build a second time.
extern crate self as forwarder;
#[path = "../../../forwarder/src/desired_state.rs"]
pub mod desired_state;
#[path = "../../../forwarder/src/diff.rs"]
pub mod diff;
#[path = "../../../forwarder/tests/laws/mod.rs"]
mod laws;

pub mod parse;
pub mod pipeline;
pub mod plan;

/// Runs a target on what libFuzzer comes up with; without it, on what the arguments name.
#[macro_export]
macro_rules! target {
    ($run:path) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|octets: &[u8]| $run(octets));

        #[cfg(not(fuzzing))]
        fn main() -> std::io::Result<()> {
            for file in std::env::args_os().skip(1) {
                $run(&std::fs::read(file)?);
            }
            Ok(())
        }
    };
}
