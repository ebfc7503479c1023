//! The README tells of every reason, in the words of the source.

use forwarder_common::reason::Reason;

#[test]
fn every_reason_is_a_row() {
    let readme = include_str!("../../README.md");
    for reason in Reason::ALL {
        let row = format!(
            "| `{}` | {} | {} |",
            reason.label(),
            reason.path().label(),
            reason.text()
        );
        assert!(readme.contains(&row), "the README lacks the row\n{row}");
    }
    let paths = ["| fast |", "| kernel |", "| drop |", "| again |"];
    let rows = readme
        .lines()
        .filter(|line| paths.iter().any(|path| line.contains(path)));
    assert_eq!(
        rows.count(),
        Reason::ALL.len(),
        "rows of reasons that are gone"
    );
}
