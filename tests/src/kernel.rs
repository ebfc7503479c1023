// SPDX-License-Identifier: MIT OR Apache-2.0
//! The forwarder's objects in the kernel on one host, and everything that a cleanup must restore.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::host::Host;
use crate::netns::Space;
use crate::process::succeed;

/// Values in `/proc/sys/net` that change by themselves.
const RESTLESS: [&str; 4] = ["_count", "random", "uuid", "flush"];

/// The pinned objects of one host by their pins' names, and the programs of the links.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pinned {
    /// Ids of maps.
    pub maps: BTreeMap<String, u64>,
    /// Ids of links.
    pub links: BTreeMap<String, u64>,
    /// Ids of the links of programs about the host's sockets.
    pub sockets: BTreeMap<String, u64>,
    /// The id of the defragmentation link; its program never changes.
    pub defrag: BTreeMap<String, u64>,
    /// Ids of the programs of links and sockets.
    pub programs: BTreeMap<String, u64>,
}

impl Pinned {
    /// Waits until none of the objects exists in the kernel any more.
    ///
    /// # Errors
    /// Names the first object that still exists.
    pub fn are_gone(&self) -> Result<()> {
        let kinds = [
            ("map", &self.maps),
            ("link", &self.links),
            ("link", &self.sockets),
            ("link", &self.defrag),
            ("prog", &self.programs),
        ];
        for (kind, objects) in kinds {
            let left = ids(kind)?;
            for (name, id) in objects {
                ensure!(!left.contains(id), "{kind} {id} ({name}) is left");
            }
        }
        Ok(())
    }
}

/// Returns all ids of a kind of BPF objects on the machine.
fn ids(kind: &str) -> Result<BTreeSet<u64>> {
    let text = succeed(Command::new("bpftool").args(["-j", kind, "show"]))?;
    let all: Vec<Value> =
        serde_json::from_str(&text).with_context(|| format!("bpftool: {text}"))?;
    Ok(all
        .iter()
        .filter_map(|object| object["id"].as_u64())
        .collect())
}

impl Host {
    /// Returns the pinned maps and links of the agent with this host's usual folders; none without
    /// pins.
    ///
    /// # Errors
    /// bpftool does not understand a pin.
    pub fn pinned(&self) -> Result<Pinned> {
        let mut pinned = Pinned::default();
        for path in files(&self.bpffs_dir()) {
            // Those that are attached are known by their links.
            if path.iter().any(|step| step == "programs") {
                continue;
            }
            let name = file_name(&path);
            let is_in = |name: &str| path.parent().is_some_and(|dir| dir.ends_with(name));
            let (kind, objects) = if is_in("links") {
                ("link", &mut pinned.links)
            } else if is_in("sockets") {
                ("link", &mut pinned.sockets)
            } else if name == "defrag" {
                ("link", &mut pinned.defrag)
            } else {
                ("map", &mut pinned.maps)
            };
            let mut bpftool = Command::new("bpftool");
            let text = succeed(bpftool.args(["-j", kind, "show", "pinned"]).arg(&path))?;
            let mut object: Value = serde_json::from_str(&text)?;
            if let Some(only) = object.get_mut(0) {
                object = only.take();
            }
            let number = |key: &str| {
                object[key]
                    .as_u64()
                    .with_context(|| format!("{name}: {text}"))
            };
            if kind == "link" && name != "defrag" {
                pinned.programs.insert(name.clone(), number("prog_id")?);
            }
            let id = number("id")?;
            objects.insert(name, id);
        }
        Ok(pinned)
    }

    /// Returns everything on the host that `run` may change, as text that can be compared: devices
    /// with their programs, qdiscs, filters, firewall, `/proc/sys/net`, pins and files, and the
    /// offloads of each device of `others` (containers).
    ///
    /// # Errors
    /// One of the tools fails.
    pub fn state(&self, others: &[&Space]) -> Result<BTreeMap<String, String>> {
        let mut state = BTreeMap::new();
        let links = self.ip("-o link show")?;
        state.insert("qdiscs".to_owned(), self.cmd(&["tc", "qdisc", "show"])?);
        for device in devices(&links) {
            for direction in ["ingress", "egress"] {
                // The command fails if there is no clsact qdisc.
                let filters = self.output(&["tc", "filter", "show", "dev", device, direction])?;
                state.insert(format!("filters of {device} {direction}"), filters.stdout);
            }
        }
        // A device's first qdisc sets its queue length permanently, which a noqueue device ignores.
        let links = links
            .replace(" qlen 1000", "")
            .replace("default \\", "default\\");
        state.insert("links".to_owned(), links);
        state.insert("rules".to_owned(), self.cmd(&["nft", "list", "ruleset"])?);
        state.insert(
            "iptables".to_owned(),
            uncommented(&self.cmd(&["iptables-save"])?),
        );
        state.extend(self.enter(sysctls)?);
        for dir in [self.bpffs_dir(), self.state_dir()] {
            let there = if dir.exists() {
                format!("{:?}", files(&dir))
            } else {
                "absent".to_owned()
            };
            state.insert(dir.display().to_string(), there);
        }
        for space in others.iter().copied().chain([&**self as &Space]) {
            for device in devices(&space.ip("-o link show")?) {
                let features = space.cmd(&["ethtool", "-k", device])?;
                state.insert(
                    format!("offloads of {device} in {}", space.name()),
                    features,
                );
            }
        }
        Ok(state)
    }
}

/// Returns what differs between two states, for a message.
#[must_use]
pub fn difference(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> String {
    let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let differing = names
        .into_iter()
        .filter(|name| before.get(*name) != after.get(*name));
    let show = |name| format!("{name}:\n  {:?}\n  {:?}", before.get(name), after.get(name));
    differing.map(show).collect::<Vec<_>>().join("\n")
}

fn devices(links: &str) -> Vec<&str> {
    links
        .lines()
        .filter_map(|line| line.split(": ").nth(1)?.split('@').next())
        .collect()
}

fn uncommented(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.collect::<Vec<_>>().join("\n")
}

fn sysctls() -> BTreeMap<String, String> {
    let readable = files(Path::new("/proc/sys/net"))
        .into_iter()
        .filter_map(|path| {
            let name = path.display().to_string();
            let restless = RESTLESS.iter().any(|part| file_name(&path).contains(part));
            Some((name, fs::read_to_string(path).ok()?)).filter(|_| !restless)
        });
    readable.collect()
}

/// Returns the files in a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    let below = entries.flat_map(|entry| {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files(&path)
        } else {
            vec![path]
        }
    });
    let mut all: Vec<_> = below.collect();
    all.sort();
    all
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
