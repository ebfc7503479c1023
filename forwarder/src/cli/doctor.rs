// SPDX-License-Identifier: MIT OR Apache-2.0
//! `forwarder doctor`: reports what this kernel, host and Docker offer, and what is missing.

use std::process::ExitCode;

use anyhow::Result;

use super::output::{self, Format};
use crate::config::Config;
use crate::plain;
use crate::preflight::{self, Finding, Group, Level};

/// The exit status of warnings without anything fatal.
const COULD_BE_BETTER: u8 = 2;

pub(super) fn doctor(config: &Config, format: Format) -> Result<ExitCode> {
    let findings = preflight::examine(config);
    match format {
        Format::Json => output::json(&findings)?,
        Format::Table => output::text(&render(&findings))?,
    }
    Ok(
        match (
            count(&findings, Level::Fatal),
            count(&findings, Level::Warn),
        ) {
            (0, 0) => ExitCode::SUCCESS,
            (0, _) => ExitCode::from(COULD_BE_BETTER),
            _ => ExitCode::FAILURE,
        },
    )
}

fn count(findings: &[Finding], level: Level) -> usize {
    let all = findings.iter();
    all.filter(|finding| finding.level == level).count()
}

/// Returns the verdict in one line.
fn verdict(findings: &[Finding]) -> String {
    let (fatal, warnings) = (count(findings, Level::Fatal), count(findings, Level::Warn));
    let stops = match fatal {
        1 => "1 thing stops it".to_owned(),
        number => format!("{number} things stop it"),
    };
    match (fatal, warnings) {
        (0, 0) => "ready".to_owned(),
        (0, warnings) => format!("ready: {warnings} could be better"),
        (_, 0) => format!("not ready: {stops}"),
        (_, warnings) => format!("not ready: {stops}, {warnings} could be better"),
    }
}

/// Renders the verdict, then each group with a line for each finding and the remedy below it.
/// Commands are not wrapped.
fn render(findings: &[Finding]) -> String {
    let mut text = verdict(findings) + "\n";
    for group in Group::ALL {
        let mut of_group = findings.iter().filter(|finding| finding.group == group);
        if let Some(first) = of_group.next() {
            text += &format!("\n{}\n", group.title());
            for finding in std::iter::once(first).chain(of_group) {
                add(&mut text, finding);
            }
        }
    }
    text
}

fn add(text: &mut String, finding: &Finding) {
    let mark = match finding.level {
        Level::Ok => '✓',
        Level::Note => '·',
        Level::Warn => '!',
        Level::Fatal => '✗',
    };
    *text += &format!("  {mark} {}\n", plain::line(&finding.what));
    if let Some(todo) = &finding.todo {
        *text += &format!("    {}\n", plain::line(todo));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(group: Group, level: Level, what: &str) -> Finding {
        Finding {
            group,
            level,
            what: what.into(),
            todo: (level != Level::Ok).then(|| "do it".into()),
        }
    }

    #[test]
    fn doctor_begins_with_a_verdict() {
        let ok = finding(Group::Kernel, Level::Ok, "it is new");
        let warn = finding(Group::Firewall, Level::Warn, "it is slow");
        let fatal = finding(Group::Docker, Level::Fatal, "it is\nold");
        let of = |all: &[&Finding]| verdict(&all.iter().copied().cloned().collect::<Vec<_>>());
        assert_eq!(of(&[&ok]), "ready");
        assert_eq!(of(&[&ok, &warn]), "ready: 1 could be better");
        assert_eq!(of(&[&fatal]), "not ready: 1 thing stops it");
        let all = [&fatal, &fatal, &warn];
        assert_eq!(of(&all), "not ready: 2 things stop it, 1 could be better");

        let expected = "not ready: 1 thing stops it, 1 could be better\n\n\
                        kernel and host\n  ✓ it is new\n\n\
                        Docker\n  ✗ it is\\nold\n    do it\n\n\
                        firewall and other software\n  ! it is slow\n    do it\n";
        assert_eq!(render(&[warn, ok, fatal]), expected);
    }
}
