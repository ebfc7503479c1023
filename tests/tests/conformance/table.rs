// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table of cases: Docker's tests, ours, and why where there is none. `docs/conformance.md`
//! has it too.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context as _, Result, ensure};

use crate::cases::{ADDITIONS, CASES, CONTROL, Case};

/// Between these two lines of `docs/conformance.md` stands the table.
const MARKS: [&str; 2] = ["<!-- conformance -->\n", "<!-- /conformance -->\n"];

fn all() -> impl Iterator<Item = (String, &'static Case)> {
    let numbered = CASES.iter().zip(1..).map(|(case, n)| (n.to_string(), case));
    let more = ADDITIONS.iter().map(|case| ("+".to_owned(), case));
    let control = CONTROL.iter().map(|case| ("stock".to_owned(), case));
    numbered.chain(more).chain(control)
}

/// The table in Markdown.
fn table() -> String {
    let mut text =
        "| case | Docker's test, or what it is about | ours | note |\n|---|---|---|---|\n"
            .to_owned();
    for (number, Case { docker, ours, note }) in all() {
        let ours: Vec<_> = ours.iter().map(|path| format!("`{path}`")).collect();
        let _ = writeln!(
            text,
            "| {number} | {docker} | {} | {note} |",
            ours.join("<br>")
        );
    }
    text
}

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// Whether the source has a test of that path, which is not left out.
fn is_a_test(path: &str) -> Result<bool> {
    let (file, name) = path.rsplit_once("::").context("a path without a file")?;
    let file = tests().join(file.replace("::", "/")).with_extension("rs");
    let source = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    Ok(source.contains(&format!("#[test]\nfn {name}()")))
}

#[test]
fn every_case_has_a_test_or_a_reason() -> Result<()> {
    print!("{}", table());
    for (number, case) in all() {
        ensure!(
            !case.ours.is_empty()
                || case.note.starts_with("Kernel: ")
                || case.note.starts_with("Docker: "),
            "case {number} has neither a test nor a reason"
        );
        for path in case.ours {
            ensure!(is_a_test(path)?, "case {number}: there is no test {path}");
        }
    }
    Ok(())
}

#[test]
fn every_test_of_the_suite_is_in_the_table() -> Result<()> {
    let folder = tests().join("conformance");
    let named: Vec<_> = all().flat_map(|(_, case)| case.ours).collect();
    for file in fs::read_dir(folder)? {
        let file = file?.path();
        let module = file.file_stem().context("no name")?.to_string_lossy();
        let source = fs::read_to_string(&file)?;
        let names = source.split("#[test]\nfn ").skip(1);
        for name in names.filter_map(|rest| rest.split('(').next()) {
            let path = format!("conformance::{module}::{name}");
            ensure!(
                module == "table" || named.iter().any(|named| **named == path),
                "{path} is in no row"
            );
        }
    }
    Ok(())
}

/// With `CONFORMANCE=accept` the document is made to tell it.
#[test]
fn document_has_the_table() -> Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/conformance.md");
    let text = fs::read_to_string(&file)?;
    let marks = MARKS.map(|mark| text.find(mark).map(|at| (at, at + mark.len())));
    let [Some((_, begin)), Some((end, _))] = marks else {
        anyhow::bail!("docs/conformance.md lacks {MARKS:?}");
    };
    let table = format!("\n{}\n", table());
    if env::var("CONFORMANCE").is_ok_and(|word| word == "accept") {
        fs::write(&file, [&text[..begin], &table, &text[end..]].concat())?;
        return Ok(());
    }
    ensure!(
        text[begin..end] == table,
        "docs/conformance.md has another table: \
         CONFORMANCE=accept cargo test -p forwarder-tests --test conformance table"
    );
    Ok(())
}
