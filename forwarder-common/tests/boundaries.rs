//! The table of boundaries names for each promise the attack, how stock Docker and how we fare, and
//! tests that are there.

use std::fs;
use std::path::Path;

const PAGE: &str = include_str!("../../docs/boundaries.md");

/// Whether the source has a test of that path, which is not left out.
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
    source.contains(&format!("#[test]\nfn {name}()"))
}

#[test]
fn boundary_rows_name_tests_that_exist() {
    let begun = PAGE.split("<!-- boundaries -->\n").nth(1);
    let table = begun.and_then(|rest| rest.split("<!-- /boundaries -->").next());
    let mut rows = 0;
    for line in table.expect("a table between its marks").lines().skip(2) {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let &["", promise, attack, stock, ours, tests, ""] = &cells[..] else {
            panic!("five cells: {line}");
        };
        let filled = [promise, attack, stock, ours].iter().all(|c| !c.is_empty());
        assert!(filled, "an empty cell: {line}");
        let stock_words = ["holds", "fails", "?"];
        assert!(
            stock_words.iter().any(|word| stock.starts_with(word)),
            "stock is one of {stock_words:?}, perhaps with more words: {line}"
        );
        let paths: Vec<_> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!paths.is_empty(), "no test: {line}");
        for path in paths {
            assert!(is_a_test(path), "there is no test {path}: {line}");
        }
        rows += 1;
    }
    assert!(rows > 0, "no rows");
}
