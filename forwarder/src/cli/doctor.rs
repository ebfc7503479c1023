// SPDX-License-Identifier: MIT OR Apache-2.0
//! `forwarder doctor`: reports what this kernel, host and Docker offer, and what is missing.

use std::process::ExitCode;

use anyhow::Result;

use super::output::{self, Format};
use crate::config::Config;
use crate::plain;
use crate::preflight::{self, Finding, Level};

pub(super) fn doctor(config: &Config, format: Format) -> Result<ExitCode> {
    let findings = preflight::examine(config);
    match format {
        Format::Json => output::json(&findings)?,
        Format::Table => output::text(&render(&findings))?,
    }
    let fatal = findings.iter().any(|finding| finding.level == Level::Fatal);
    Ok(if fatal {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Renders one line for each finding and the remedy below it. Commands are not wrapped.
fn render(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { level, what, todo } in findings {
        let mark = match level {
            Level::Ok => "ok   ",
            Level::Note => "note ",
            Level::Warn => "warn ",
            Level::Fatal => "FATAL",
        };
        text += &format!("{mark}  {}\n", plain::line(what));
        if let Some(todo) = todo {
            text += &format!("       {}\n", plain::line(todo));
        }
    }
    text
}
