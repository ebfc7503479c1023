// SPDX-License-Identifier: MIT OR Apache-2.0
//! `forwarder release`: hands all connections back to the kernel and Docker's rules, and removes the
//! forwarder. Works with an agent, which then ends, and without one.

use anyhow::{Result, bail};

use super::output;
use super::removal::{Removal, missing};
use crate::config::Config;
use crate::control::Verb;
use crate::hand_back::hand_back;

pub(super) fn release(config: &Config) -> Result<()> {
    let removal = Removal::begin(config, Verb::Release, true)?;
    if missing(config)? {
        return output::text("nothing to release: the forwarder is not attached here\n");
    }
    removal.check()?;
    let Some(flows) = hand_back(&config.bpffs_dir)? else {
        bail!(
            "Docker has no rules on this host that could take over: let dockerd make them again \
             (\"iptables\": true) and restart it, or end all connections with forwarder cleanup"
        )
    };
    removal.finish()?;
    output::text(&format!(
        "released: the kernel has taken over {flows} connections, Docker's rules decide again, and \
         nothing of the forwarder is left\n"
    ))
}
