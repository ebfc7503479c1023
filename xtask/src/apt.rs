// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debian packages: finds missing ones, and installs them without removing any of the user's
//! packages, or unpacks their files without installation.
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    step::step,
    workspace::{find_program, is_root},
};

/// A required package, and the program that satisfies the requirement from any source.
pub(crate) struct Need {
    package: &'static str,
    /// `None`: only the package itself satisfies the requirement.
    program: Option<&'static str>,
}

impl Need {
    /// Requires `program`, which `package` provides.
    pub(crate) const fn program(package: &'static str, program: &'static str) -> Self {
        Self {
            package,
            program: Some(program),
        }
    }

    /// Requires `package` itself.
    pub(crate) const fn package(package: &'static str) -> Self {
        Self {
            package,
            program: None,
        }
    }

    fn is_met(&self) -> bool {
        self.program
            .is_some_and(|program| find_program(program).is_some())
    }
}

/// Packages that may be removed if another replaces them: the static busybox is a busybox.
const REPLACEABLE: [&str; 1] = ["busybox"];

/// Installs all of `needs` that are missing.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    let unmet: Vec<_> = needs
        .iter()
        .filter(|need| !need.is_met())
        .map(|need| need.package)
        .collect();
    install(&missing(&unmet))
}

/// Whether this system installs its software with apt.
pub(crate) fn is_there() -> bool {
    find_program("apt-get").is_some() && find_program("dpkg-query").is_some()
}

/// Returns those of `packages` that dpkg does not list as installed.
pub(crate) fn missing<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    if packages.is_empty() {
        return Vec::new();
    }
    // A failing exit status only says that some package is unknown: the others are listed.
    let listing = Command::new("dpkg-query")
        .args(["--show", "--showformat=${Package} ${db:Status-Status}\n"])
        .args(packages)
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    let is_installed = |package: &str| {
        listing
            .lines()
            .any(|line| line.strip_prefix(package) == Some(" installed"))
    };
    packages
        .iter()
        .copied()
        .filter(|package| !is_installed(package))
        .collect()
}

/// Installs packages; refuses if this would remove others.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let names = packages.join(" ");
    if !is_there() {
        bail!("install what this system calls {names}: there is no apt-get here to do it");
    }
    if !is_root() {
        bail!("missing here: run apt-get install --no-install-recommends {names} as root");
    }
    let mut plan = simulate(packages)?;
    if !plan.status.success() {
        update()?;
        plan = simulate(packages)?;
    }
    if !plan.status.success() {
        bail!(
            "apt-get finds no way to install {names}: {}",
            last_line(&plan.stderr)
        );
    }
    let plan = String::from_utf8_lossy(&plan.stdout);
    let lost = removals(&plan);
    if !lost.is_empty() {
        bail!(
            "installing {names} would remove {}: install them by hand if you agree",
            lost.join(" ")
        );
    }

    let what = format!("install {names}");
    if step(&what, apt_get(packages)).is_err() {
        // The package lists can be outdated and name files that the mirror no longer has.
        update()?;
        step(&what, apt_get(packages))?;
    }
    Ok(())
}

/// Unpacks a package and its missing dependencies into `folder`. This system's packages stay as they
/// are.
pub(crate) fn unpack(package: &str, folder: &Path) -> Result<()> {
    unpack_archives(folder, |archives| {
        fs::create_dir_all(archives.join("partial"))
            .with_context(|| format!("cannot make {}", archives.display()))?;
        let download = || {
            let mut command = apt_get(&[package]);
            command
                .arg("--download-only")
                .args(["-o", "APT::Sandbox::User=root", "-o"])
                .arg(format!("Dir::Cache::archives={}", archives.display()));
            command
        };
        let what = format!("download {package}");
        if step(&what, download()).is_err() {
            update()?;
            step(&what, download())?;
        }
        Ok(())
    })
    .with_context(|| format!("cannot unpack {package}"))
}

/// Unpacks all archives that `download` puts into the folder it is given. `folder` exists only once
/// it is complete.
pub(crate) fn unpack_archives(
    folder: &Path,
    download: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let mut draft = folder.as_os_str().to_owned();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    if draft.exists() {
        fs::remove_dir_all(&draft)?;
    }
    let archives = draft.join("archives");
    fs::create_dir_all(&archives).with_context(|| format!("cannot make {}", archives.display()))?;
    download(&archives)?;
    let mut found = false;
    for entry in fs::read_dir(&archives)? {
        let archive = entry?.path();
        if archive
            .extension()
            .is_none_or(|extension| extension != "deb")
        {
            continue;
        }
        found = true;
        let mut extract = Command::new("dpkg-deb");
        extract.arg("--extract").arg(&archive).arg(&draft);
        step(&format!("unpack {}", archive.display()), extract)?;
    }
    ensure!(found, "apt-get left no archive");
    fs::remove_dir_all(&archives)?;
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::rename(&draft, folder).with_context(|| format!("cannot make {}", folder.display()))
}

fn update() -> Result<()> {
    let mut command = Command::new("apt-get");
    command.args(["update", "-q"]);
    step("update the package lists", command)
}

fn simulate(packages: &[&str]) -> Result<Output> {
    apt_get(packages)
        .arg("--simulate")
        .output()
        .context("cannot run apt-get")
}

fn apt_get(packages: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(["install", "-y", "-q", "--no-install-recommends"])
        // A fresh machine often upgrades itself at this moment: wait for its lock.
        .args(["-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C");
    command
}

/// Returns the packages that a simulated run would remove, without those that the run replaces.
fn removals(simulation: &str) -> Vec<&str> {
    simulation
        .lines()
        .filter_map(|line| line.strip_prefix("Remv ")?.split_whitespace().next())
        .filter(|package| !REPLACEABLE.contains(package))
        .collect()
}

fn last_line(output: &[u8]) -> String {
    String::from_utf8_lossy(output)
        .lines()
        .last()
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A removal is noticed unless it is a replacement.
    #[test]
    fn removal_is_noticed_unless_it_is_a_replacement() {
        let simulation = "Inst busybox-static [1.0]\n\
                          Remv busybox [1:1.35.0-4]\n\
                          Remv docker-ce [5:27.0]\n\
                          Conf busybox-static (1:1.35.0-4)\n";
        assert_eq!(removals(simulation), ["docker-ce"]);
    }

    /// A program that is there meets the need for its package.
    #[test]
    fn present_program_satisfies_its_package() {
        assert!(Need::program("no-such-package", "sh").is_met());
        assert!(!Need::program("no-such-package", "no-such-program").is_met());
        assert!(!Need::package("dash").is_met());
    }
}
