// SPDX-License-Identifier: MIT OR Apache-2.0
//! The list of known differences: what may differ from stock, and why.

use std::cell::Cell;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

/// A difference between the arms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    /// The step's kind.
    pub(crate) step: String,
    /// The packet, by what it is to its step.
    pub(crate) packet: String,
    /// The field, or `at` for where it came.
    pub(crate) field: String,
    /// What stock Docker shows.
    pub(crate) stock: String,
    /// What we show.
    pub(crate) ours: String,
}

/// An entry of the list: patterns, in which `*` stands for anything.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    /// What it is called in reports.
    pub(crate) name: String,
    step: String,
    #[serde(default = "anything")]
    packet: String,
    #[serde(default = "anything")]
    field: String,
    #[serde(default = "anything")]
    stock: String,
    #[serde(default = "anything")]
    ours: String,
    /// Ours is a number that is so much less than stock's.
    less: Option<u64>,
    reason: String,
    source: String,
    /// How often it was met, and by which seed first.
    #[serde(skip)]
    met: Cell<(u64, u64)>,
}

fn anything() -> String {
    "*".to_owned()
}

/// The list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Known {
    #[serde(default)]
    known: Vec<Entry>,
}

impl Known {
    /// Reads the list beside this file.
    pub(crate) fn read() -> Result<Self> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/differential/known.toml");
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        Self::parse(&text).with_context(|| file.display().to_string())
    }

    fn parse(text: &str) -> Result<Self> {
        let list: Self = toml::from_str(text)?;
        for entry in &list.known {
            ensure!(
                !entry.reason.is_empty() && !entry.source.is_empty(),
                "{} has neither reason nor source",
                entry.name
            );
        }
        Ok(list)
    }

    /// Whether a difference is in the list, whose first entry that fits counts it.
    pub(crate) fn holds(&self, difference: &Difference, seed: u64) -> bool {
        let entry = self.known.iter().find(|entry| entry.fits(difference));
        if let Some(entry) = entry {
            let (times, first) = entry.met.get();
            entry
                .met
                .set((times + 1, if times == 0 { seed } else { first }));
        }
        entry.is_some()
    }

    /// The entries, how often each was met, and by which seed first.
    pub(crate) fn met(&self) -> impl Iterator<Item = (&str, (u64, u64))> {
        let entries = self.known.iter();
        entries.map(|entry| (entry.name.as_str(), entry.met.get()))
    }
}

impl Entry {
    fn fits(&self, difference: &Difference) -> bool {
        [
            (&self.step, &difference.step),
            (&self.packet, &difference.packet),
            (&self.field, &difference.field),
            (&self.stock, &difference.stock),
            (&self.ours, &difference.ours),
        ]
        .into_iter()
        .all(|(pattern, text)| pattern.split('|').any(|pattern| like(pattern, text)))
            && self.less.is_none_or(|less| {
                let number = |text: &str| text.parse::<u64>().ok();
                let ours = number(&difference.ours).map(|ours| ours + less);
                ours.is_some() && ours == number(&difference.stock)
            })
    }
}

/// Whether a text is like a pattern, in which `*` stands for anything.
fn like(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, rest)) => text.strip_prefix(head).is_some_and(|text| {
            (0..=text.len())
                .filter(|at| text.is_char_boundary(*at))
                .any(|at| like(rest, &text[at..]))
        }),
    }
}

#[test]
fn entry_matches_what_it_names_and_counts_it() {
    let list =
        "[[known]]\nname='a'\nstep='ttl'\nfield='quote *|at'\nours='no*e'\nreason='r'\nsource='s'";
    let list = Known::parse(list).unwrap();
    let difference = |step: &str, field: &str, ours: &str| Difference {
        step: step.into(),
        packet: "p#0".into(),
        field: field.into(),
        stock: "x".into(),
        ours: ours.into(),
    };
    assert!(list.holds(&difference("ttl", "quote ttl", "none"), 7));
    assert!(list.holds(&difference("ttl", "at", "nowhere"), 8));
    assert!(!list.holds(&difference("ttl", "src", "none"), 7));
    assert!(!list.holds(&difference("mtu", "at", "none"), 7));
    assert!(!list.holds(&difference("ttl", "at", "known"), 7));
    assert_eq!(list.met().collect::<Vec<_>>(), [("a", (2, 7))]);
}

#[test]
fn entry_may_ask_for_a_smaller_number() {
    let list = "[[known]]\nname='a'\nstep='*'\nless=1\nreason='r'\nsource='s'";
    let list = Known::parse(list).unwrap();
    let difference = |stock: &str, ours: &str| Difference {
        step: "s".into(),
        packet: "p".into(),
        field: "ttl".into(),
        stock: stock.into(),
        ours: ours.into(),
    };
    assert!(list.holds(&difference("64", "63"), 0));
    for (stock, ours) in [
        ("64", "64"),
        ("63", "64"),
        ("64", "62"),
        ("x", "y"),
        ("64", "y"),
    ] {
        assert!(!list.holds(&difference(stock, ours), 0), "{stock} {ours}");
    }
}

#[test]
fn entry_without_a_reason_is_refused() {
    assert!(Known::parse("[[known]]\nname='a'\nstep='*'\nreason=''\nsource='s'").is_err());
    assert!(Known::parse("[[known]]\nname='a'\nstep='*'\nsource='s'").is_err());
}
