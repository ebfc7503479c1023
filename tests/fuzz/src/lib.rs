// SPDX-License-Identifier: MIT OR Apache-2.0
//! The targets of the fuzzers, each a function of the bytes that the fuzzer comes up with. What must
//! never happen is a panic. `cargo xtask fuzz` runs them.

pub mod parse;
pub mod pipeline;
pub mod plan;

/// Runs a target on what libFuzzer comes up with; without it, on what the arguments name.
#[macro_export]
macro_rules! target {
    ($run:path) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|bytes: &[u8]| $run(bytes));

        #[cfg(not(fuzzing))]
        fn main() -> std::io::Result<()> {
            for file in std::env::args_os().skip(1) {
                $run(&std::fs::read(file)?);
            }
            Ok(())
        }
    };
}
