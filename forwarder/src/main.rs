// SPDX-License-Identifier: MIT OR Apache-2.0
//! The binary: calls the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    forwarder::cli::main()
}
