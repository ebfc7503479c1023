// SPDX-License-Identifier: MIT OR Apache-2.0
//! The dependencies' licences and sources, by `deny.toml`: `cargo deny check` if it is installed, and
//! otherwise what `cargo metadata` says in a second. Advisories need cargo-deny.
use std::{fs, process::Command};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::{step::step, workspace::Workspace};

/// How cargo names the one registry that `deny.toml` knows, whatever mirror serves it.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// What is read of `deny.toml`.
#[derive(Deserialize)]
struct Policy {
    licenses: Licences,
}

#[derive(Deserialize)]
struct Licences {
    allow: Vec<String>,
}

/// What `cargo metadata` says of all packages.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    /// An SPDX expression.
    license: Option<String>,
    /// `None` for a path.
    source: Option<String>,
}

/// Fails if a dependency has a licence or a source that `deny.toml` does not allow.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let installed = Command::new("cargo-deny").arg("--version").output();
    if installed.is_ok_and(|output| output.status.success()) {
        let mut cargo = workspace.cargo();
        cargo.args(["deny", "check"]);
        return step("cargo deny", cargo);
    }
    let policy = fs::read_to_string(workspace.root.join("deny.toml"));
    let policy: Policy = toml::from_str(&policy.context("cannot read deny.toml")?)?;
    let output = workspace
        .cargo()
        .args(["metadata", "--locked", "--format-version=1"])
        .output()
        .context("cannot start cargo")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo metadata: {}", error.trim());
    let metadata: Metadata = serde_json::from_slice(&output.stdout)?;
    judge(&policy.licenses.allow, &metadata.packages)
}

/// Names every package that is not allowed.
fn judge(allowed: &[String], packages: &[Package]) -> Result<()> {
    let mut refused = Vec::new();
    for package in packages {
        let name = format!("{} {}", package.name, package.version);
        if let Some(source) = package.source.as_ref().filter(|source| *source != REGISTRY) {
            refused.push(format!("{name} comes from {source}"));
        }
        match &package.license {
            Some(licence) if is_allowed(licence, allowed) => {}
            Some(licence) => refused.push(format!("{name} is under {licence}")),
            None => refused.push(format!("{name} names no licence")),
        }
    }
    if !refused.is_empty() {
        bail!("not allowed by deny.toml: {}", refused.join("; "));
    }
    Ok(())
}

/// Whether an SPDX expression can be satisfied by these licences. OR binds weaker than AND, and a
/// slash is an old way to write OR.
fn is_allowed(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    any(&mut words, allowed) && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any(words: &mut Words<'_>, allowed: &[String]) -> bool {
    let mut is_allowed = all(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        is_allowed |= all(words, allowed);
    }
    is_allowed
}

fn all(words: &mut Words<'_>, allowed: &[String]) -> bool {
    let mut is_allowed = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        is_allowed &= one(words, allowed);
    }
    is_allowed
}

/// A licence, maybe with an exception, or an expression in parentheses.
fn one(words: &mut Words<'_>, allowed: &[String]) -> bool {
    if words.next_if_eq(&"(").is_some() {
        let inner = any(words, allowed);
        return words.next_if_eq(&")").is_some() && inner;
    }
    let mut licence = words.next().unwrap_or_default().to_owned();
    if words.next_if_eq(&"WITH").is_some() {
        licence = format!("{licence} WITH {}", words.next().unwrap_or_default());
    }
    allowed.contains(&licence)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed() -> Vec<String> {
        ["MIT", "Apache-2.0", "NCSA"].map(str::to_owned).to_vec()
    }

    #[test]
    fn licence_expression_needs_one_allowed_choice() {
        for (expression, expected) in [
            ("MIT", true),
            ("GPL-2.0-only", false),
            ("GPL-2.0-only OR MIT", true),
            ("Unlicense/MIT", true),
            ("(MIT OR GPL-2.0-only) AND NCSA", true),
            ("MIT AND GPL-2.0-only", false),
            ("GPL-2.0-only OR MIT AND NCSA", true),
            ("MIT AND (GPL-2.0-only OR BSD-2-Clause)", false),
            ("Apache-2.0 WITH LLVM-exception", false),
            ("Apache-2.0 WITH LLVM-exception OR MIT", true),
            ("MIT )", false),
            ("(MIT", false),
            ("", false),
        ] {
            assert_eq!(is_allowed(expression, &allowed()), expected, "{expression}");
        }
    }

    #[test]
    fn refused_dependency_is_named() {
        let package = |name: &str, license: Option<&str>, source: Option<&str>| Package {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            license: license.map(str::to_owned),
            source: source.map(str::to_owned),
        };
        let git = "git+https://example.org/it";
        let packages = [
            package("own", Some("MIT"), None),
            package("good", Some("MIT"), Some(REGISTRY)),
            package("copyleft", Some("GPL-3.0-only"), Some(REGISTRY)),
            package("elsewhere", Some("MIT"), Some(git)),
            package("silent", None, Some(REGISTRY)),
        ];
        assert!(judge(&allowed(), &packages[..2]).is_ok());
        assert_eq!(
            judge(&allowed(), &packages).unwrap_err().to_string(),
            format!(
                "not allowed by deny.toml: copyleft 1.0.0 is under GPL-3.0-only; elsewhere 1.0.0 \
                 comes from {git}; silent 1.0.0 names no licence"
            )
        );
    }
}
