// SPDX-License-Identifier: MIT OR Apache-2.0
//! The configuration of dockerd: its flags and its configuration file, read and judged without
//! changing either.
//!
//! dockerd must create no rules, and must start our shim for each published port, or nothing at
//! all. Docker's own docker-proxy would answer in the containers' place as soon as a packet passed
//! our programs.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use forwarder_protocol::place::{SHIM, STATE_DIR, STATE_DIR_VARIABLE};
use serde_json::Value;

use super::Finding;
use crate::sys::process::named;

/// Docker's configuration file, unless dockerd is told otherwise.
const FILE: &str = "/etc/docker/daemon.json";

/// The configuration of dockerd.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Setup {
    /// Where it was read from, for a person.
    pub(super) source: String,
    /// Whether it creates iptables rules, for either family.
    pub(super) rules: bool,
    /// What it starts for a published port.
    pub(super) proxy: Proxy,
    /// Where its shims look for the agent.
    pub(super) state_dir: PathBuf,
}

/// What dockerd starts for a published port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Proxy {
    /// Nothing.
    Off,
    /// Docker's own docker-proxy.
    Dockers,
    /// Our shim.
    Shim,
    /// A program that cannot be started.
    Unusable(PathBuf),
}

impl Setup {
    /// Returns the configuration of the dockerd of our network namespace; without one, that of the
    /// next dockerd to start. None if there is neither.
    pub(super) fn take() -> Option<Self> {
        let process = named("dockerd").into_iter().next();
        let flags = process.as_ref().and_then(|dockerd| dockerd.cmdline().ok());
        let state_dir = process.and_then(|dockerd| {
            dockerd
                .environ()
                .ok()?
                .remove(OsStr::new(STATE_DIR_VARIABLE))
        });
        let named = flags
            .as_ref()
            .and_then(|flags| value(flags, "--config-file"));
        let path = named.unwrap_or_else(|| FILE.into());
        let file = fs::read_to_string(&path)
            .ok()
            .and_then(|text| serde_json::from_str(&text).ok());
        if flags.is_none() && file.is_none() {
            return None;
        }
        let mut setup = read_settings(&flags.unwrap_or_default(), file.as_ref());
        setup.source = match file {
            Some(_) => path,
            None => "dockerd's command line".into(),
        };
        if let Some(folder) = state_dir {
            setup.state_dir = folder.into();
        }
        Some(setup)
    }
}

/// Combines flags and file; Docker refuses a setting that is in both.
fn read_settings(flags: &[String], file: Option<&Value>) -> Setup {
    let text = |name: &str| {
        let in_file = || match file?.get(name)? {
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        };
        value(flags, &format!("--{name}")).or_else(in_file)
    };
    let is_on = |name: &str| text(name).is_none_or(|text| text != "false");
    let path = text("userland-proxy-path").filter(|path| !path.is_empty());
    let proxy = match path.map(PathBuf::from) {
        _ if !is_on("userland-proxy") => Proxy::Off,
        None => Proxy::Dockers,
        Some(path) => of_path(path),
    };
    Setup {
        source: String::new(),
        rules: is_on("iptables"),
        proxy,
        state_dir: STATE_DIR.into(),
    }
}

/// Returns what a `userland-proxy-path` refers to, through symbolic links.
fn of_path(path: PathBuf) -> Proxy {
    let executable = fs::metadata(&path)
        .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
    let real = fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
    match real.file_name() {
        _ if !executable => Proxy::Unusable(path),
        Some(name) if name == SHIM => Proxy::Shim,
        _ => Proxy::Dockers,
    }
}

/// Returns the value of `--name=value`, `--name value` or `NAME=value`; a flag without a value is
/// `true`.
fn value(words: &[String], name: &str) -> Option<String> {
    let position = words.iter().rposition(|word| {
        let rest = word.strip_prefix(name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    })?;
    match words[position].split_once('=') {
        Some((_, value)) => Some(value.to_owned()),
        None => {
            let next = words.get(position + 1);
            let next = next.filter(|next| !next.starts_with('-')).cloned();
            Some(next.unwrap_or_else(|| "true".into()))
        }
    }
}

/// Returns what to write into Docker's configuration.
fn advice() -> String {
    let beside = std::env::current_exe().map(|own| own.with_file_name(SHIM));
    let shim = beside.unwrap_or_else(|_| Path::new("/usr/local/libexec").join(SHIM));
    format!(
        "in {FILE} set \"iptables\": false, \"ip6tables\": false, \"userland-proxy-path\": \"{}\" \
         (or \"userland-proxy\": false), and restart docker",
        shim.display()
    )
}

/// Judges the configuration. `proxies` is the number of docker-proxy processes for IPv4.
pub(super) fn judge(
    setup: Option<&Setup>,
    proxies: usize,
    state_dir: &Path,
    keeps_rules: bool,
) -> Vec<Finding> {
    let Some(setup) = setup else {
        return vec![Finding::note(
            "no dockerd is configured on this host",
            advice(),
        )];
    };
    let source = &setup.source;
    let mut findings = Vec::new();
    if setup.rules && !keeps_rules {
        let what = format!("dockerd creates iptables rules ({source})");
        findings.push(Finding::warn(what, advice()));
    }
    findings.push(match &setup.proxy {
        Proxy::Shim if setup.state_dir != state_dir => {
            let (theirs, ours) = (setup.state_dir.display(), state_dir.display());
            Finding::warn(
                format!("dockerd's shims look for the agent in {theirs}, not in {ours}"),
                format!("set {STATE_DIR_VARIABLE}={ours} in dockerd's environment (systemctl edit docker)"),
            )
        }
        Proxy::Shim => Finding::ok("dockerd starts the shim for each published port"),
        Proxy::Off => Finding::ok(
            "dockerd starts no proxy for published ports: the agent learns of them \
                from Docker's events",
        ),
        Proxy::Dockers if keeps_rules => Finding::ok(
            "dockerd starts its own docker-proxy for published ports: it stays, and serves what the \
             forwarder leaves to the kernel",
        ),
        Proxy::Dockers => Finding::warn(
            format!("dockerd starts its own docker-proxy for published ports ({source})"),
            advice(),
        ),
        Proxy::Unusable(path) => {
            let path = path.display();
            Finding::warn(
                format!("dockerd cannot start {path} for published ports ({source})"),
                format!(
                    "install an executable {SHIM} there, or set userland-proxy-path to where \
                    it is"
                ),
            )
        }
    });
    if proxies > 0 && setup.proxy != Proxy::Dockers {
        findings.push(Finding::warn(
            format!("{proxies} processes of Docker's docker-proxy still run for IPv4 ports"),
            "restart docker",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn flags(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn flags_and_file_are_read() {
        let stock = read_settings(&flags("dockerd -H fd://"), None);
        assert!(stock.rules && stock.proxy == Proxy::Dockers);
        let file = json!({ "iptables": false, "userland-proxy": false });
        let off = read_settings(&flags("dockerd"), Some(&file));
        assert!(!off.rules && off.proxy == Proxy::Off);
        let off = read_settings(
            &flags("dockerd --iptables=false --userland-proxy=false"),
            None,
        );
        assert!(!off.rules && off.proxy == Proxy::Off);
        let nowhere = json!({ "userland-proxy-path": "/nowhere/forwarder-proxy" });
        assert_eq!(
            read_settings(&[], Some(&nowhere)).proxy,
            Proxy::Unusable("/nowhere/forwarder-proxy".into())
        );
        let other = read_settings(&flags("dockerd --userland-proxy-path /bin/sh"), None);
        assert_eq!(other.proxy, Proxy::Dockers);
    }

    #[test]
    fn symlink_to_the_shim_is_the_shim() {
        let folder = std::env::temp_dir().join(format!("forwarder-shim-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (shim, link) = (folder.join(SHIM), folder.join("proxy"));
        fs::write(&shim, "").unwrap();
        std::os::unix::fs::symlink(&shim, &link).unwrap();
        assert_eq!(of_path(link.clone()), Proxy::Unusable(link.clone()));
        fs::set_permissions(&shim, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(of_path(link), Proxy::Shim);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn environment_is_read() {}
}
