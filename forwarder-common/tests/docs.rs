//! The documents tell of every reason, in the words of the source, and of every row of the NAT, with
//! tests that are there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use forwarder_common::reason::Reason;

const PACKET_PATH: &str = include_str!("../../docs/packet-path.md");
const NAT: &str = include_str!("../../docs/nat.md");
const FAULTS: &str = include_str!("../../docs/faults.md");

/// The rows of RFC 4787 (U), 5382 (T), 5508 (I), 6888 (C), of packets (X) and of security (S).
const ROWS: &str = "U1 U1b U2 U3 U3a U4 U5 U6 U7 U8 U9 U10 U11 U12 U13 U13a U14 T1 T2 T3 T4 T5 T9 T10 T11 \
    T12 T13 T13b T14 T15 I1 I2 I3 I4 I5 I6 I7 I8 I10 C4 C6 C8 C11 C15 X1 X2 X3 X4 X5 X6 X7 X8 X9 X10 X11 \
    X12 X13 X14 X15 X16 X17 S1 S8";
/// Rows of what is not there, in which there is nothing to try.
const NOTHING_TO_TRY: &str = "U7 U10 C8 X2 X14";

/// Whether the source has a test of that path.
fn is_a_test(path: &str) -> bool {
    let Some((file, name)) = path.rsplit_once("::") else {
        return false;
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let file = match file.strip_prefix("common::") {
        Some(file) => root.join("forwarder-common/tests").join(file),
        None => root.join("tests/tests").join(file.replace("::", "/")),
    };
    let source = fs::read_to_string(file.with_extension("rs")).unwrap_or_default();
    source.contains(&format!("fn {name}("))
}

/// Checks that the tests that a row's cell names are there.
fn names_tests(row: &str, cell: &str) {
    for path in cell.split('`').filter(|path| path.contains("::")) {
        assert!(is_a_test(path), "{row}: there is no test {path}");
    }
}

/// The lines of a page's table between marks of this name, without its head.
fn table(page: &'static str, name: &str) -> impl Iterator<Item = &'static str> {
    let begun = page.split(&format!("<!-- {name} -->\n")).nth(1);
    let table = begun.and_then(|rest| rest.split(&format!("<!-- /{name} -->")).next());
    table.expect("a table").lines().skip(2)
}

#[test]
fn what_is_better_is_shown_to_fail_on_stock() {
    let known = include_str!("../../tests/tests/differential/known.toml");
    let mut rows = BTreeSet::new();
    for line in table(NAT, "better") {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let &[_, row, _, shown, _] = &cells[..] else {
            panic!("three cells: {line}");
        };
        rows.insert(row);
        assert!(shown.contains('`'), "{row} is not shown");
        for by in shown.split('`').skip(1).step_by(2) {
            let is_known = known.contains(&format!("\nname = \"{by}\"\n"));
            assert!(is_known || is_a_test(by), "{row}: there is no {by}");
        }
    }
    assert!(rows.len() >= 8, "{rows:?}");
}

#[test]
fn every_fault_has_its_tests() {
    let mut faults = 0;
    for line in table(FAULTS, "faults") {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let &[_, fault, holds, tests, _] = &cells[..] else {
            panic!("three cells: {line}");
        };
        assert!(!fault.is_empty() && !holds.is_empty(), "{line}");
        names_tests(fault, tests);
        let by_lint = holds.contains("clippy.toml");
        assert!(by_lint || tests.contains("::"), "{fault} has no test");
        faults += 1;
    }
    assert!(faults >= 15, "{faults} faults");
}

#[test]
fn every_row_of_the_nat_has_its_tests() {
    let mut rows = Vec::new();
    for line in table(NAT, "nat") {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let &[_, row, _, _, ours, tests, _] = &cells[..] else {
            panic!("five cells: {line}");
        };
        rows.push(row);
        names_tests(row, tests);
        let is_missing = ours.starts_with("no: ");
        let is_tried = !tests.is_empty();
        let nothing = NOTHING_TO_TRY.split_whitespace().any(|none| none == row);
        assert!(is_missing || nothing || is_tried, "{row} has no test");
    }
    let expected: Vec<_> = ROWS.split_whitespace().collect();
    assert_eq!(rows, expected);
}

#[test]
fn every_reason_is_a_row() {
    for reason in Reason::ALL {
        let row = format!(
            "| `{}` | {} | {} |",
            reason.label(),
            reason.path().label(),
            reason.text()
        );
        assert!(PACKET_PATH.contains(&row), "the page lacks the row\n{row}");
    }
    let paths = ["| fast |", "| kernel |", "| drop |", "| again |"];
    let rows = PACKET_PATH
        .lines()
        .filter(|line| paths.iter().any(|path| line.contains(path)));
    assert_eq!(
        rows.count(),
        Reason::ALL.len(),
        "rows of reasons that are gone"
    );
}
