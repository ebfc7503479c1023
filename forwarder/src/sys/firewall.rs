// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reading netfilter rules, by the programs iptables-save and nft.

use std::path::Path;
use std::process::{Command, Stdio};

use forwarder_state::others::{Firewall, Ruleset};

use super::process::program;

/// Reads the rules with every installed program: both variants of iptables may have some.
pub(crate) fn read() -> Firewall {
    let mut firewall = Firewall::default();
    let mut save = |name: &str, arguments: &[&str], tool| {
        let Some(path) = program(name) else {
            return false;
        };
        match output(&path, arguments) {
            Some(text) => firewall.rulesets.push(Ruleset { tool, text }),
            None => firewall.unread.push(name.to_owned()),
        }
        true
    };
    let legacy = save("iptables-legacy-save", &[], "iptables-legacy");
    let nft = save("iptables-nft-save", &[], "iptables-nft");
    if !legacy && !nft {
        save("iptables-save", &[], "iptables");
    }
    save("nft", &["list", "ruleset"], "nft");
    firewall
}

fn output(program: &Path, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let done = command.output().ok().filter(|done| done.status.success())?;
    Some(String::from_utf8_lossy(&done.stdout).into_owned())
}
