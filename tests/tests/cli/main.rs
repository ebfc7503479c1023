// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line on good and bad hosts.

mod adopt;
mod lists;
mod log;
mod refusals;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::{Finished, Host, Lab, Netns, finish, forwarder_bin};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

const SOON: Duration = Duration::from_secs(10);

/// A namespace without Docker, with folders and a bpffs for an agent that will refuse.
struct Bare {
    netns: Netns,
    folder: PathBuf,
    _lab: Lab,
}

impl Bare {
    fn new(label: &str) -> Result<Self> {
        let lab = Lab::new(label)?;
        let netns = lab.netns("bare")?;
        let folder = std::env::temp_dir().join(format!("{}-folder", netns.name()));
        fs::create_dir_all(folder.join("bpf"))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("bpf", folder.join("bpf"), "bpf", flags, None)?;
        Ok(Self {
            netns,
            folder,
            _lab: lab,
        })
    }

    fn below(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A file in the folder.
    fn file(&self, name: &str, text: &str) -> Result<String> {
        let path = self.below(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    fn flags(&self) -> [String; 3] {
        [
            format!("--docker=unix://{}", self.below("docker.sock").display()),
            format!("--state-dir={}", self.below("run").display()),
            format!("--bpffs-dir={}", self.below("bpf/forwarder").display()),
        ]
    }

    /// `setpriv OPTIONS forwarder VERB ARGUMENTS`, to its end.
    fn setpriv(&self, options: &[&str], verb: &str, arguments: &[&str]) -> Result<Finished> {
        let mut command = self.netns.command("setpriv");
        command.args(options).arg(forwarder_bin()?).arg(verb);
        finish(command.args(self.flags()).args(arguments))
    }

    /// What `forwarder run ARGUMENTS` says when it refuses.
    fn refused(&self, arguments: &[&str]) -> Result<String> {
        self.refusal(&self.setpriv(&[], "run", arguments)?)
    }

    /// The one line of a refusal that left nothing behind.
    fn refusal(&self, done: &Finished) -> Result<String> {
        let line = one_line(done)?;
        for dir in ["run", "bpf/forwarder"] {
            ensure!(!self.below(dir).exists(), "{dir} is left");
        }
        Ok(line)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        for point in ["bpf", "empty"] {
            // It is not mounted when a test did not come so far.
            let _ = unmount(self.below(point), UnmountFlags::DETACH);
        }
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("cannot remove {}: {error}", self.folder.display());
        }
    }
}

/// The single line on standard error of a forwarder that ended with 1 and printed nothing.
fn one_line(done: &Finished) -> Result<String> {
    ensure!(
        done.status.code() == Some(1) && done.stdout.is_empty(),
        "not refused: {done:?}"
    );
    let text = done.stderr.strip_suffix('\n').unwrap_or_default();
    let line = text.strip_prefix("forwarder: ");
    let line = line.with_context(|| format!("not a line of ours: {done:?}"))?;
    ensure!(!line.contains('\n'), "more than one line: {line}");
    Ok(line.to_owned())
}

#[track_caller]
fn assert_has(line: &str, parts: &[&str]) {
    for part in parts {
        assert!(line.contains(part), "{part:?} is not in {line:?}");
    }
}

/// The state directory and the pins' directory of a host's agent.
fn folders(host: &Host) -> Result<[PathBuf; 2]> {
    let line = host.forwarder_line(&[])?;
    let words = line.split(' ').collect::<Vec<_>>();
    let after = |flag: &str| {
        let place = words.iter().position(|word| *word == flag);
        let value = place.and_then(|place| words.get(place + 1));
        value
            .map(PathBuf::from)
            .with_context(|| format!("no {flag} in {line}"))
    };
    Ok([after("--state-dir")?, after("--bpffs-dir")?])
}
