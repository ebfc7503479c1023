// SPDX-License-Identifier: MIT OR Apache-2.0
//! `forwarder cleanup`: removes all of the forwarder's state from the kernel, also after an agent
//! was killed.

use anyhow::Result;

use super::output;
use super::removal::{Removal, missing};
use crate::config::Config;
use crate::control::Verb;
use crate::hand_back::hand_back;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Stop the agent first if one runs
    #[arg(long)]
    force: bool,
}

pub(super) fn cleanup(config: &Config, args: &Args) -> Result<()> {
    let removal = Removal::begin(config, Verb::Cleanup, args.force)?;
    if missing(config)? {
        return output::text("nothing to clean up\n");
    }
    removal.check()?;
    // Flows that Docker's rules can go on with do not end.
    hand_back(&config.bpffs_dir)?;
    removal.finish()?;
    output::text("removed: all programs, maps, pins and files of the forwarder\n")
}
