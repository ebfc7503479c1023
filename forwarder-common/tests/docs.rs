// SPDX-License-Identifier: MIT OR Apache-2.0
//! The documents hold: their tables name every reason, NAT row, fault and boundary, with tests that
//! exist; their links and the paths that they name lead somewhere; the README stays short.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use forwarder_common::reason::Reason;

/// How long the README may be.
const README_LINES: usize = 150;
/// The command that CI runs, which the README names.
const TEST_COMMAND: &str = "cargo xtask test";

/// The rows of RFC 4787 (U), 5382 (T), 5508 (I), 6888 (C), of packets (X) and of security (S).
const ROWS: &str = "U1 U1b U2 U3 U3a U4 U5 U6 U7 U8 U9 U10 U11 U12 U13 U13a U14 T1 T2 T3 T4 T5 T9 T10 T11 \
    T12 T13 T13b T14 T15 I1 I2 I3 I4 I5 I6 I7 I8 I10 C4 C6 C8 C11 C15 X1 X2 X3 X4 X5 X6 X7 X8 X9 X10 X11 \
    X12 X13 X14 X15 X16 X17 S1 S8";
/// Rows of what does not exist, in which there is nothing to try.
const NOTHING_TO_TRY: &str = "U7 U10 C8 X2 X14";

/// The workspace's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The text of a file, by its path below the root.
fn page(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Markdown files that belong to the documents, by their paths below the root.
fn pages() -> Vec<String> {
    let mut pages = Vec::new();
    for folder in ["", "docs/"] {
        for file in fs::read_dir(root().join(folder)).expect("a folder") {
            let name = file.expect("a file").file_name();
            let name = name.to_str().expect("a name in UTF-8");
            if name.ends_with(".md") {
                pages.push(format!("{folder}{name}"));
            }
        }
    }
    pages
}

/// The rows of the table that a document has between the marks `<!-- name -->` and
/// `<!-- /name -->`, without its head, each as `COLUMNS` cells.
fn table<const COLUMNS: usize>(path: &str, name: &str) -> Vec<[String; COLUMNS]> {
    let page = page(path);
    let begun = page.split(&format!("<!-- {name} -->\n")).nth(1);
    let table = begun.and_then(|rest| rest.split(&format!("<!-- /{name} -->")).next());
    let lines = table.expect("a table between its marks").trim().lines();
    let row = |line: &str| {
        let inner = line.strip_prefix('|').and_then(|l| l.strip_suffix('|'));
        let cells = inner.unwrap_or_default().split('|');
        let cells: Vec<_> = cells.map(|cell| cell.trim().to_owned()).collect();
        cells.try_into().unwrap_or_else(|cells: Vec<_>| {
            panic!("{path}: {} cells, not {COLUMNS}: {line}", cells.len())
        })
    };
    let rows: Vec<_> = lines.skip(2).map(row).collect();
    assert!(!rows.is_empty(), "{path}: {name} has no rows");
    rows
}

/// What a text has in backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Whether the source has a test of that path which is not left out: below `tests/tests`, or behind
/// `common::` below `forwarder-common/tests`.
fn is_a_test(path: &str) -> bool {
    let Some((file, name)) = path.rsplit_once("::") else {
        return false;
    };
    let file = match file.strip_prefix("common::") {
        Some(file) => root().join("forwarder-common/tests").join(file),
        None => root().join("tests/tests").join(file.replace("::", "/")),
    };
    let source = fs::read_to_string(file.with_extension("rs")).unwrap_or_default();
    let function = format!("fn {name}(");
    let mut before = "";
    for line in source.lines() {
        let line = line.trim();
        // In `proptest!` the function has arguments; the attribute stands above it all the same.
        if line.starts_with(&function) {
            return before == "#[test]";
        }
        before = line;
    }
    false
}

/// Checks that the tests that a row's cell names exist; how many it names.
fn tests_of(row: &str, cell: &str) -> usize {
    let paths = quoted(cell).filter(|path| path.contains("::"));
    paths
        .map(|path| assert!(is_a_test(path), "{row}: there is no test {path}"))
        .count()
}

#[test]
fn reasons_are_rows_of_the_packet_path() {
    let rows = table::<3>("docs/packet-path.md", "reasons");
    let of = |reason: Reason| {
        let label = format!("`{}`", reason.label());
        let path = reason.path().label().to_owned();
        [label, path, reason.text().to_owned()]
    };
    for row in Reason::ALL.map(of) {
        assert!(rows.contains(&row), "there is no row {row:?}");
    }
    assert_eq!(
        rows.len(),
        Reason::ALL.len(),
        "rows of reasons that are gone"
    );
}

#[test]
fn nat_rows_name_tests_that_exist() {
    let rows = table::<5>("docs/nat.md", "nat");
    for [row, _, _, ours, tests] in &rows {
        let is_tried = tests_of(row, tests) > 0;
        let is_missing = ours.starts_with("no: ");
        let nothing = NOTHING_TO_TRY.split_whitespace().any(|none| none == row);
        assert!(is_missing || nothing || is_tried, "{row} has no test");
    }
    let expected: Vec<_> = ROWS.split_whitespace().collect();
    let rows: Vec<_> = rows.iter().map(|[row, ..]| row.as_str()).collect();
    assert_eq!(rows, expected);
}

#[test]
fn better_rows_are_shown_on_stock() {
    let known = page("tests/tests/differential/known.toml");
    let mut rows = BTreeSet::new();
    for [row, _, shown] in table("docs/nat.md", "better") {
        assert!(shown.contains('`'), "{row} is not shown");
        for by in quoted(&shown) {
            let is_known = known.contains(&format!("\nname = \"{by}\"\n"));
            assert!(is_known || is_a_test(by), "{row}: there is no {by}");
        }
        rows.insert(row);
    }
    assert!(rows.len() >= 8, "{rows:?}");
}

#[test]
fn faults_name_tests_that_exist() {
    let rows = table("docs/faults.md", "faults");
    for [fault, holds, tests] in &rows {
        assert!(
            !fault.is_empty() && !holds.is_empty(),
            "an empty cell: {fault}"
        );
        let by_lint = holds.contains("clippy.toml");
        assert!(tests_of(fault, tests) > 0 || by_lint, "{fault} has no test");
    }
    assert!(rows.len() >= 15, "{} faults", rows.len());
}

#[test]
fn boundary_rows_name_tests_that_exist() {
    for row in table::<5>("docs/boundaries.md", "boundaries") {
        let [promise, attack, stock, ours, tests] = &row;
        let filled = [promise, attack, stock, ours].iter().all(|c| !c.is_empty());
        assert!(filled, "an empty cell: {row:?}");
        let stock_words = ["holds", "fails", "none", "?"];
        assert!(
            stock_words.iter().any(|word| stock.starts_with(word)),
            "stock is one of {stock_words:?}, perhaps with more words: {row:?}"
        );
        assert!(quoted(tests).count() > 0, "no test: {row:?}");
        for path in quoted(tests) {
            assert!(is_a_test(path), "there is no test {path}: {row:?}");
        }
    }
}

#[test]
fn readme_is_short_and_names_the_tests() {
    let readme = page("README.md");
    let lines = readme.lines().count();
    assert!(lines <= README_LINES, "the README has {lines} lines");
    assert!(
        readme.contains(TEST_COMMAND),
        "the README names {TEST_COMMAND}"
    );
    assert!(
        page(".ci/run").contains(TEST_COMMAND),
        "CI runs {TEST_COMMAND}"
    );
}

/// A page's text without its blocks of code.
fn prose(page: &str) -> String {
    let parts = page.split("```").step_by(2);
    parts.collect::<Vec<_>>().join("\n")
}

/// The anchor that GitHub gives a heading: lower case, without punctuation, hyphens for spaces.
fn anchor(heading: &str) -> String {
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn links_lead_to_files_and_headings() {
    let anchors = |page: &str| -> Vec<String> {
        let text = prose(page);
        let headings = text.lines().filter(|line| line.starts_with('#'));
        headings
            .map(|line| anchor(line.trim_start_matches('#').trim()))
            .collect()
    };
    let mut links = 0;
    for path in pages() {
        let text = page(&path);
        for rest in prose(&text).split("](").skip(1) {
            let target = rest.split(')').next().unwrap_or_default();
            if target.contains("://") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let folder = Path::new(&path).parent().expect("a folder");
            let file = match file {
                "" => path.clone(),
                file => folder.join(file).to_str().expect("UTF-8").to_owned(),
            };
            assert!(root().join(&file).exists(), "{path}: no file {target}");
            assert!(
                heading.is_empty() || anchors(&page(&file)).iter().any(|a| a == heading),
                "{path}: no heading {target}"
            );
            links += 1;
        }
    }
    assert!(links > 10, "{links} links");
}

#[test]
fn anchors_are_those_of_github() {
    assert_eq!(
        anchor("The host's own processes"),
        "the-hosts-own-processes"
    );
    assert_eq!(
        anchor("A CLI verb: `forwarder x`"),
        "a-cli-verb-forwarder-x"
    );
}

/// The settings of `forwarder/src/config.rs`, each by the variable that it has in the environment.
#[test]
fn settings_are_rows_of_operations() {
    let operations = page("docs/operations.md");
    let config = page("forwarder/src/config.rs");
    let names = config.split("env = \"FORWARDER_").skip(1);
    let mut settings = 0;
    for name in names.filter_map(|rest| rest.split('"').next()) {
        let row = format!("| `{}` |", name.to_lowercase().replace('_', "-"));
        assert!(operations.contains(&row), "there is no row {row}");
        settings += 1;
    }
    assert!(settings >= 13, "{settings} settings");
}

/// Paths that these two pages name in backticks: whatever has a slash or the ending of a source
/// file, but for what a build leaves. They stand below the root.
#[test]
fn named_paths_exist() {
    let endings = [".rs", ".toml", ".md", ".sh"];
    for path in ["docs/architecture.md", "CONTRIBUTING.md"] {
        let text = prose(&page(path));
        let mut named = 0;
        for name in quoted(&text) {
            let is_plain = !name.contains([' ', '<', '*', '$', ':', '=', '"']);
            let is_path = name.contains('/') || endings.iter().any(|end| name.ends_with(end));
            if !is_plain || !is_path || name.starts_with(['/', '~']) || name.starts_with("target/")
            {
                continue;
            }
            assert!(root().join(name).exists(), "{path}: there is no {name}");
            named += 1;
        }
        assert!(named > 10, "{path} names {named} paths");
    }
}
