// SPDX-License-Identifier: MIT OR Apache-2.0
//! Totals of test runners, parsed from the last lines of cargo's test harness.
use std::{
    fmt,
    ops::{Add, AddAssign},
};

/// How many tests passed, failed and were ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
}

impl Totals {
    /// The totals of a runner that failed without a result: it did not compile, crashed, or could
    /// not be prepared.
    pub(crate) const ONE_FAILED: Self = Self {
        passed: 0,
        failed: 1,
        ignored: 0,
    };

    /// Parses `test result: ok. 3 passed; 0 failed; 1 ignored; …`; none for any other line.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let (_, result) = line.split_once("test result: ")?;
        let count = |what: &str| {
            let before = result
                .split(';')
                .find_map(|part| part.trim().strip_suffix(what))?;
            before.split_whitespace().next_back()?.parse().ok()
        };
        Some(Self {
            passed: count("passed")?,
            failed: count("failed")?,
            ignored: count("ignored")?,
        })
    }

    /// Parses the last line of `cargo xtask test`: `3 passed, 0 failed`.
    pub(crate) fn parse_sum(line: &str) -> Option<Self> {
        let (passed, failed) = line.split_once(", ")?;
        Some(Self {
            passed: passed.strip_suffix(" passed")?.parse().ok()?,
            failed: failed.strip_suffix(" failed")?.parse().ok()?,
            ignored: 0,
        })
    }
}

impl Add for Totals {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

/// Formats `3 passed, 0 failed`, as the last line of `cargo xtask test` is parsed.
impl fmt::Display for Totals {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} passed, {} failed", self.passed, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn totals(passed: u64, failed: u64, ignored: u64) -> Totals {
        Totals {
            passed,
            failed,
            ignored,
        }
    }

    #[test]
    fn result_lines_are_read() {
        let ok = "test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 7 filtered out; finished in 0.01s";
        assert_eq!(Totals::parse(ok), Some(totals(12, 0, 3)));
        let failed = "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 4s";
        assert_eq!(Totals::parse(failed), Some(totals(1, 2, 0)));
    }

    #[test]
    fn colours_and_a_prefix_are_ignored() {
        let line =
            "noise test result: \u{1b}[32mok\u{1b}[m. 5 passed; 0 failed; 0 ignored; 0 measured";
        assert_eq!(Totals::parse(line), Some(totals(5, 0, 0)));
    }

    #[test]
    fn other_lines_are_not_read() {
        for line in [
            "",
            "running 3 tests",
            "test a ... ok",
            "test result: ",
            "test result: ok. x passed; 0 failed;",
        ] {
            assert_eq!(Totals::parse(line), None, "{line}");
        }
    }

    #[test]
    fn sums_print_as_they_are_read() {
        let sum = totals(2, 1, 4) + Totals::ONE_FAILED;
        assert_eq!(sum, totals(2, 2, 4));
        assert_eq!(sum.to_string(), "2 passed, 2 failed");
        let read = Totals::parse_sum(&sum.to_string());
        assert_eq!(read, Some(totals(2, 2, 0)));
        for line in [
            "",
            "unit: 2 passed, 2 failed",
            "2 passed, 2 failed, 1 ignored",
        ] {
            assert_eq!(Totals::parse_sum(line), None, "{line}");
        }
    }
}
