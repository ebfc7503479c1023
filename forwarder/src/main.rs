// SPDX-License-Identifier: MIT OR Apache-2.0
//! The binary: hands over to the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    forwarder::cli::main()
}
