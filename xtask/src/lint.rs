// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask lint`: format, clippy and documentation, each without a warning, a licence in the
//! first line of each source file, short names of tests, [`layers`], and [`dependencies`] that
//! `deny.toml` allows.
use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::{dependencies, layers, step::step, workspace::Workspace};

/// A check that passes or fails as a whole.
pub(crate) struct Check {
    pub(crate) name: &'static str,
    arguments: &'static [&'static str],
}

/// rustfmt changes no file.
pub(crate) const FORMAT: Check = Check {
    name: "fmt",
    arguments: &["fmt", "--all", "--check"],
};

/// Clippy has no warning for any target.
pub(crate) const CLIPPY: Check = Check {
    name: "clippy",
    arguments: &[
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ],
};

/// The documentation builds, and every link resolves.
pub(crate) const DOC: Check = Check {
    name: "doc",
    arguments: &["doc", "--workspace", "--no-deps"],
};

/// The first line of a source file: of the BPF programs, some of whose helpers require a
/// GPL-compatible licence, and of all other files.
const PROGRAMS: &str = "// SPDX-License-Identifier: MIT OR GPL-2.0-only";
const OTHERS: &str = "// SPDX-License-Identifier: MIT OR Apache-2.0";
/// The crates of BPF programs, relative to the root.
const PROGRAM_CRATES: [&str; 2] = ["forwarder-ebpf", "tests/ebpf"];

/// Fails if a source file does not begin with its licence; names every such file.
pub(crate) fn licences(root: &Path) -> Result<()> {
    let mut missing = Vec::new();
    for file in sources(root)? {
        let name = file.strip_prefix(root)?;
        let expected = licence(name);
        let mut first = String::new();
        let opened =
            File::open(&file).with_context(|| format!("cannot read {}", name.display()))?;
        BufReader::new(opened).read_line(&mut first)?;
        if first.trim_end() != expected {
            missing.push(format!("{}: line 1 is not `{expected}`", name.display()));
        }
    }
    if !missing.is_empty() {
        missing.sort();
        bail!("licences: {}", missing.join("; "));
    }
    Ok(())
}

/// Returns the licence line of a file, by its path relative to the root.
fn licence(name: &Path) -> &'static str {
    if PROGRAM_CRATES.iter().any(|folder| name.starts_with(folder)) {
        PROGRAMS
    } else {
        OTHERS
    }
}

/// How many characters the name of a test may have: a sentence goes into the doc comment.
const TEST_NAME: usize = 45;

/// Fails if a test's name is longer than [`TEST_NAME`] characters; names every such test.
pub(crate) fn test_names(root: &Path) -> Result<()> {
    let mut long = Vec::new();
    for file in sources(root)? {
        let name = file.strip_prefix(root)?.display().to_string();
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {name}"))?;
        for test in test_functions(&text) {
            let length = test.chars().count();
            if length > TEST_NAME {
                long.push(format!("{name}: {test} has {length}"));
            }
        }
    }
    if !long.is_empty() {
        long.sort();
        bail!(
            "names of tests over {TEST_NAME} characters: {}",
            long.join("; ")
        );
    }
    Ok(())
}

/// The names of the functions with the attribute `#[test]`, whatever other attributes follow.
fn test_functions(source: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut is_test = false;
    for line in source.lines().map(str::trim_start) {
        is_test |= line == "#[test]";
        let name = line
            .split_once("fn ")
            .and_then(|(_, rest)| rest.split(['(', '<']).next());
        if let Some(name) = name.filter(|_| is_test) {
            names.push(name);
            is_test = false;
        }
    }
    names
}

/// All Rust files below a folder, but for build folders and hidden ones.
pub(crate) fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if entry.file_type()?.is_dir() {
            if name != "target" && !name.starts_with('.') {
                files.extend(sources(&path)?);
            }
        } else if name.ends_with(".rs") {
            files.push(path);
        }
    }
    Ok(files)
}

impl Check {
    /// Runs the check as a step; an error if it finds anything.
    pub(crate) fn run(&self, workspace: &Workspace) -> Result<()> {
        let mut cargo = workspace.cargo();
        cargo
            .args(self.arguments)
            .env("RUSTDOCFLAGS", "-D warnings");
        step(self.name, cargo)
    }
}

/// Runs every check, up to the first that fails.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    licences(&workspace.root)?;
    test_names(&workspace.root)?;
    layers::check(&workspace.root)?;
    dependencies::check(workspace)?;
    [FORMAT, CLIPPY, DOC]
        .iter()
        .try_for_each(|check| check.run(workspace))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_files_begin_with_their_licence() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        // The message is shown as it is, without a backtrace.
        if let Err(error) = licences(&root) {
            panic!("{error:#}");
        }
    }

    #[test]
    fn file_without_its_licence_is_named() {
        let root = std::env::temp_dir().join(format!("xtask-licences-{}", std::process::id()));
        let of = |file: &str, first: &str| {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{first}\n//! A file.\n")).unwrap();
            licences(&root).map_err(|error| error.to_string())
        };
        let right = of("xtask/a.rs", OTHERS).and(of("tests/ebpf/b.rs", PROGRAMS));
        let unread = of("target/c.rs", "")
            .and(of(".git/d.rs", ""))
            .and(of("e.md", ""));
        let missing = of("forwarder/f.rs", "//! No licence.");
        let wrong = of("forwarder-ebpf/g.rs", OTHERS);
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(right.and(unread), Ok(()));
        assert_eq!(
            missing,
            Err(format!(
                "licences: forwarder/f.rs: line 1 is not `{OTHERS}`"
            ))
        );
        let wrong = wrong.unwrap_err();
        assert!(wrong.contains(&format!("forwarder-ebpf/g.rs: line 1 is not `{PROGRAMS}`")));
    }

    #[test]
    fn tests_have_short_names() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        if let Err(error) = test_names(&root) {
            panic!("{error:#}");
        }
    }

    #[test]
    fn test_with_a_long_name_is_named() {
        let root = std::env::temp_dir().join(format!("xtask-names-{}", std::process::id()));
        let (most, long, helper) = ("a".repeat(45), "b".repeat(46), "c".repeat(46));
        let function =
            |name: &str| format!("    /// Says it.\n    #[test]\n    fn {name}() {{}}\n");
        fs::create_dir_all(&root).unwrap();
        fs::write(
            root.join("a.rs"),
            function(&most) + &format!("fn {helper}() {{}}\n"),
        )
        .unwrap();
        let short = test_names(&root).map_err(|error| error.to_string());
        let ignored = function(&long).replace("#[test]\n", "#[test]\n    #[ignore]\n");
        fs::write(root.join("b.rs"), function(&most) + &ignored).unwrap();
        let found = test_names(&root).map_err(|error| error.to_string());
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(short, Ok(()));
        let expected = format!("names of tests over 45 characters: b.rs: {long} has 46");
        assert_eq!(found, Err(expected));
    }
}
