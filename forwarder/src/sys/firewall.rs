// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reading netfilter rules, by the programs iptables-save and nft.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use forwarder_state::others::{Firewall, Ruleset};

use super::process::program;

/// Whether nobody is to follow the rules now.
static PAUSED: AtomicBool = AtomicBool::new(false);

/// As long as it exists, nobody follows the rules: while programs that read them come and go, the
/// kernel may refuse to load a program (`EAGAIN`).
pub(crate) struct Pause;

impl Pause {
    pub(crate) fn begin() -> Self {
        PAUSED.store(true, Ordering::SeqCst);
        Self
    }

    pub(crate) fn is_on() -> bool {
        PAUSED.load(Ordering::SeqCst)
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        PAUSED.store(false, Ordering::SeqCst);
    }
}

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
