// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debian's kernels: lists them and unpacks one. apt runs with its own lists and state, so that
//! this machine's sources and packages stay as they are.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};

use crate::{apt, step::step};

/// The sources of kernels, oldest suite first: 6.1, 6.12, and the newest of a stable Debian, both
/// under its codename and under that of the next suite.
const SOURCES: &str = "\
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian-security bookworm-security main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm-backports main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie-backports main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian stable-backports main
";

/// The package that depends on a suite's current kernel. The cloud flavour is small and has what a
/// virtual machine needs.
const META: &str = "linux-image-cloud-amd64";

/// How long apt's lists count as current.
const FRESH: Duration = Duration::from_secs(24 * 60 * 60);

/// An unpacked kernel.
pub(crate) struct Kernel {
    /// Its package's version, such as `6.1.192-3`.
    pub(crate) version: String,
    /// The image that boots.
    pub(crate) image: PathBuf,
    /// The folder with the content of its package.
    root: PathBuf,
}

impl Kernel {
    /// Finds the newest kernel of each wanted version (`6.1`, `newest`) and unpacks it in `folder`.
    pub(crate) fn fetch(folder: &Path, wanted: &[String]) -> Result<Vec<Self>> {
        let apt = Apt::open(&folder.join("apt"))?;
        let versions = apt.versions()?;
        wanted
            .iter()
            .map(|wanted| {
                let version = choose(&versions, wanted).with_context(|| {
                    let there = versions.join(", ");
                    format!("Debian has no kernel {wanted}: there are {there}")
                })?;
                Self::unpack(&apt, folder, version)
            })
            .collect()
    }

    fn unpack(apt: &Apt, folder: &Path, version: &str) -> Result<Self> {
        let folder = folder.join(version);
        let kernel = |image| Self {
            version: version.to_owned(),
            image,
            root: folder.clone(),
        };
        if let Some(image) = image(&folder) {
            return Ok(kernel(image));
        }
        // The meta package depends on the kernel's package; from 7.x on that one depends on the
        // image's.
        let mut package = apt.depends(&format!("{META}={version}"), "linux-image-")?;
        if let Ok(binary) = apt.depends(&package, "linux-binary-") {
            package = binary;
        }
        apt.download(&package, &folder)?;
        image(&folder)
            .map(kernel)
            .with_context(|| format!("there is no vmlinuz in Debian's {package}"))
    }
}

impl Kernel {
    /// Returns the modules in some of the kernel's module folders, and veth, with their paths in a
    /// root.
    pub(crate) fn modules(&self, parts: &[&str]) -> Result<Vec<(String, PathBuf)>> {
        let root = self.root.join("lib/modules");
        let version = fs::read_dir(&root)
            .with_context(|| format!("no modules in {}", root.display()))?
            .find_map(|entry| Some(entry.ok()?.path()))
            .with_context(|| format!("no modules in {}", root.display()))?;
        let mut folders: Vec<_> = parts
            .iter()
            .map(|part| version.join("kernel").join(part))
            .collect();
        let mut files: Vec<_> = [
            "modules.order",
            "modules.builtin",
            "modules.builtin.modinfo",
        ]
        .map(|name| version.join(name))
        .into();
        files.push(version.join("kernel/drivers/net/veth.ko"));
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.push(path);
                }
            }
        }
        let place = |path: PathBuf| {
            let place = path.strip_prefix(&self.root).ok()?.to_str()?.to_owned();
            Some((place, path))
        };
        Ok(files.into_iter().filter_map(place).collect())
    }
}

/// Returns an unpacked package's image: in `/boot`, or beside the modules.
fn image(root: &Path) -> Option<PathBuf> {
    let entries = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten();
    let boot = entries(root.join("boot")).map(|entry| entry.path());
    let modules = entries(root.join("usr/lib/modules")).map(|entry| entry.path().join("vmlinuz"));
    boot.chain(modules).find(|path| {
        path.is_file()
            && path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"))
    })
}

/// Returns the first of the versions, newest first, that belongs to the wanted line.
fn choose<'a>(versions: &'a [String], wanted: &str) -> Option<&'a String> {
    versions.iter().find(|version| {
        wanted == "newest"
            || version
                .strip_prefix(wanted)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '-', '~']))
    })
}

/// apt with its sources, lists and cache in one folder.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    /// Downloads the lists, unless they are less than a day old.
    fn open(folder: &Path) -> Result<Self> {
        let (sources, lists) = (folder.join("sources.list"), folder.join("lists"));
        fs::create_dir_all(lists.join("partial"))
            .and_then(|()| fs::create_dir_all(folder.join("archives/partial")))
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let stamp = folder.join("updated");
        let apt = Self {
            options: [
                format!("Dir::Etc::SourceList={}", sources.display()),
                "Dir::Etc::SourceParts=/dev/null".to_owned(),
                format!("Dir::State::Lists={}", lists.display()),
                format!("Dir::Cache={}", folder.display()),
                "Dir::State::Status=/dev/null".to_owned(),
                "APT::Architecture=amd64".to_owned(),
                "APT::Sandbox::User=root".to_owned(),
                "Acquire::Languages=none".to_owned(),
                "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
                "Acquire::AllowReleaseInfoChange=true".to_owned(),
            ]
            .into_iter()
            .flat_map(|option| ["-o".to_owned(), option])
            .collect(),
        };
        let is_fresh = fs::read_to_string(&sources).is_ok_and(|text| text == SOURCES)
            && stamp
                .metadata()
                .and_then(|stamp| stamp.modified())
                .is_ok_and(|time| {
                    SystemTime::now()
                        .duration_since(time)
                        .is_ok_and(|age| age < FRESH)
                });
        if !is_fresh {
            fs::write(&sources, SOURCES)?;
            let mut update = apt.command("apt-get");
            update.args(["update", "-q"]);
            step("update the lists of Debian's kernels", update)?;
            fs::write(stamp, "")?;
        }
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options).env("LC_ALL", "C");
        command
    }

    fn ask(&self, words: &[&str]) -> Result<String> {
        let output = self
            .command("apt-cache")
            .args(words)
            .output()
            .context("cannot run apt-cache")?;
        ensure!(
            output.status.success(),
            "apt-cache {}: {}",
            words.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Returns the versions of the kernels of all suites, newest first.
    fn versions(&self) -> Result<Vec<String>> {
        let mut versions: Vec<_> = self
            .ask(&["madison", META])?
            .lines()
            .filter_map(|line| Some(line.split('|').nth(1)?.trim().to_owned()))
            .collect();
        versions.dedup();
        Ok(versions)
    }

    /// Returns the dependency of a package whose name begins with the prefix.
    fn depends(&self, package: &str, prefix: &str) -> Result<String> {
        self.ask(&["depends", package])?
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|name| name.starts_with(prefix))
            .map(str::to_owned)
            .with_context(|| format!("{package} depends on no {prefix}…"))
    }

    /// Downloads a package and unpacks it into `folder`.
    fn download(&self, package: &str, folder: &Path) -> Result<()> {
        apt::unpack_archives(folder, |archives| {
            let mut download = self.command("apt-get");
            download
                .args(["download", "-q", package])
                .current_dir(archives);
            step(&format!("download {package}"), download)
        })
        .with_context(|| format!("cannot unpack {package}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wanted_version_is_whole_components() {
        let versions = ["7.3.4-1~bpo13+1", "6.12.117-1", "6.1.192-3", "6.1.176-1"];
        let versions = versions.map(str::to_owned);
        let chosen = |wanted| choose(&versions, wanted).map(String::as_str);
        assert_eq!(chosen("newest"), Some("7.3.4-1~bpo13+1"));
        assert_eq!(chosen("6.1"), Some("6.1.192-3"));
        assert_eq!(chosen("6.12"), Some("6.12.117-1"));
        assert_eq!(chosen("6.1.176-1"), Some("6.1.176-1"));
        assert_eq!(chosen("6"), Some("6.12.117-1"));
        assert_eq!(chosen("5.10"), None);
    }
}
