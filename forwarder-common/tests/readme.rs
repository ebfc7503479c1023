//! The README tells of every reason, in the words of the source, and of every row of the NAT, with tests
//! that are there.

use std::fs;
use std::path::Path;

use forwarder_common::reason::Reason;

const README: &str = include_str!("../../README.md");

/// The rows of RFC 4787 (U), 5382 (T), 5508 (I), 6888 (C), of packets (X) and of security (S).
const ROWS: &str = "U1 U1b U2 U3 U3a U4 U5 U6 U7 U8 U9 U10 U11 U12 U13 U13a U14 T1 T2 T3 T4 T5 T9 T10 T11 \
    T12 T13 T13b T14 T15 I1 I2 I3 I4 I5 I6 I7 I8 I10 C4 C6 C8 C11 C15 X1 X2 X3 X4 X5 X6 X7 X8 X9 X10 X11 \
    X12 X13 X14 X15 X16 X17 S1 S8";
/// Rows of what is not there, in which there is nothing to try.
const NOTHING_TO_TRY: &str = "U7 U10 C8 X2 X14";

/// Whether the source has a test of that path.
fn is_a_test(path: &str) -> bool {
    let (file, name) = path.rsplit_once("::").expect("a file and a test");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let file = match file.strip_prefix("common::") {
        Some(file) => root.join("forwarder-common/tests").join(file),
        None => root.join("tests/tests").join(file.replace("::", "/")),
    };
    let source = fs::read_to_string(file.with_extension("rs")).unwrap_or_default();
    source.contains(&format!("fn {name}("))
}

#[test]
fn every_row_of_the_nat_has_its_tests() {
    let table = README.split("<!-- nat -->\n").nth(1).expect("a table");
    let table = table.split("<!-- /nat -->").next().expect("its end");
    let mut rows = Vec::new();
    for line in table.lines().skip(2) {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let &[_, row, _, _, ours, tests, _] = &cells[..] else {
            panic!("five cells: {line}");
        };
        rows.push(row);
        for path in tests.split('`').filter(|path| path.contains("::")) {
            assert!(is_a_test(path), "{row}: there is no test {path}");
        }
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
        assert!(README.contains(&row), "the README lacks the row\n{row}");
    }
    let paths = ["| fast |", "| kernel |", "| drop |", "| again |"];
    let rows = README
        .lines()
        .filter(|line| paths.iter().any(|path| line.contains(path)));
    assert_eq!(
        rows.count(),
        Reason::ALL.len(),
        "rows of reasons that are gone"
    );
}
