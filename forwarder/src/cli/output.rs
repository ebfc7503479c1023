// SPDX-License-Identifier: MIT OR Apache-2.0
//! Output of a verb: a table for people or JSON for programs, and nothing else on stdout.

use std::io::{self, ErrorKind, IsTerminal as _, Write};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use clap::ValueEnum;
use comfy_table::{Table, presets};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use crate::plain;

/// How often a list that is watched is asked for.
const LOOK: Duration = Duration::from_secs(1);
/// What empties a terminal's screen and leads to its beginning (ECMA-48, ED and CUP).
const CLEAR: &str = "\x1b[2J\x1b[H";

/// The form of a verb's output.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub(super) enum Format {
    /// Columns
    #[default]
    Table,
    /// JSON and nothing else
    Json,
}

/// The flags of every verb that shows something.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Form of the output
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    pub(super) output: Format,
}

/// The flags of every verb that lists something.
#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    pub(super) output: Args,
    /// Show the list again whenever it changes, until interrupted; as JSON, one line each
    #[arg(short, long)]
    watch: bool,
}

impl ListArgs {
    /// Shows the rows that `list` returns.
    pub(super) fn show<T: Row>(&self, list: impl Fn() -> Result<Vec<T>>) -> Result<()> {
        self.show_as(list, |rows| table(T::COLUMNS, rows.iter().map(Row::cells)))
    }

    /// Shows the rows that `list` returns, laid out by `table`.
    pub(super) fn show_as<T: Serialize>(
        &self,
        list: impl Fn() -> Result<Vec<T>>,
        table: impl Fn(&[T]) -> String,
    ) -> Result<()> {
        let text = || {
            let rows = list()?;
            Ok(match self.output.output {
                Format::Table => plain::lines(&table(&rows)).into_owned(),
                Format::Json if self.watch => json_line(&rows)?,
                Format::Json => as_json(&rows)?,
            })
        };
        if !self.watch {
            return write(&text()?).map(drop);
        }
        again_and_again(text, self.between())
    }

    /// What stands between one list and the next.
    fn between(&self) -> &'static str {
        match self.output.output {
            Format::Json => "",
            Format::Table if io::stdout().is_terminal() => CLEAR,
            Format::Table => "\n",
        }
    }
}

/// Prints what `text` returns whenever it changes, until the reader has gone. While there is none, as
/// between two agents, its error is said once; then it is printed in any case.
fn again_and_again(text: impl Fn() -> Result<String>, between: &str) -> Result<()> {
    let mut shown = text()?;
    let mut is_heard = write(&shown)?;
    let mut failed = String::new();
    while is_heard && somebody_reads() {
        std::thread::sleep(LOOK);
        match text() {
            Ok(now) if now == shown && failed.is_empty() => {}
            Ok(now) => {
                is_heard = write(&format!("{between}{now}"))?;
                shown = now;
                failed.clear();
            }
            Err(error) => {
                let error = format!("forwarder: {}\n", plain::line(&format!("{error:#}")));
                if failed != error {
                    // The terminal may have gone.
                    let _ = io::stderr().write_all(error.as_bytes());
                    failed = error;
                }
            }
        }
    }
    Ok(())
}

/// A value that is a row of a table.
pub(super) trait Row: Serialize {
    /// The column headings.
    const COLUMNS: &'static [&'static str];

    /// Returns the cells of the row, one for each column.
    fn cells(&self) -> Vec<String>;
}

/// Prints rows.
pub(super) fn rows<T: Row>(format: Format, rows: &[T]) -> Result<()> {
    match format {
        Format::Json => json(rows),
        Format::Table => text(&table(T::COLUMNS, rows.iter().map(Row::cells))),
    }
}

/// Returns the time since 1970.
#[expect(clippy::disallowed_methods, reason = "shown to people")]
pub(super) fn wall() -> Duration {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default()
}

/// Lays out columns.
pub(super) fn table(columns: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if !columns.is_empty() {
        table.set_header(columns);
    }
    let plain = |cell: String| plain::line(&cell).into_owned();
    table.add_rows(rows.into_iter().map(|row| row.into_iter().map(plain)));
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines = table.lines().map(|line| format!("{}\n", line.trim_end()));
    lines.collect()
}

/// Prints a value as JSON.
pub(super) fn json<T: Serialize + ?Sized>(value: &T) -> Result<()> {
    write(&as_json(value)?).map(drop)
}

fn as_json<T: Serialize + ?Sized>(value: &T) -> Result<String> {
    let mut line = serde_json::to_string_pretty(value).context("cannot write JSON")?;
    line.push('\n');
    Ok(plain::json(&line).into_owned())
}

/// Formats a value as a line of JSON.
pub(super) fn json_line<T: Serialize + ?Sized>(value: &T) -> Result<String> {
    let line = serde_json::to_string(value).context("cannot write JSON")?;
    Ok(plain::json(&(line + "\n")).into_owned())
}

/// Prints text. Control characters are escaped, so that names cannot control a terminal.
pub(super) fn text(text: &str) -> Result<()> {
    write(&plain::lines(text)).map(drop)
}

/// Prints text as it is, and returns whether anybody reads it: a reader that closes the pipe early is
/// no error.
pub(super) fn write(text: &str) -> Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("cannot write to stdout"),
    }
}

/// Whether the reader of the output is still there.
pub(super) fn somebody_reads() -> bool {
    let out = io::stdout();
    let mut polled = [PollFd::new(&out, PollFlags::empty())];
    let gone = PollFlags::ERR | PollFlags::HUP;
    let now = Timespec::default();
    poll(&mut polled, Some(&now)).is_err() || !polled[0].revents().intersects(gone)
}

/// Formats a cell that may be empty.
pub(super) fn or_dash<T: ToString>(value: Option<&T>) -> String {
    value.map_or_else(|| "-".to_owned(), ToString::to_string)
}

/// Formats a boolean.
pub(super) fn yes(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

/// Formats a duration in its two largest units.
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_have_no_trailing_spaces() {
        let rows = [["a", "b"], ["long", "c"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&["X", "Y"], rows), "X     Y\na     b\nlong  c\n");
    }

    #[test]
    fn cell_has_no_control_characters() {
        let row = ["a\x1b[2J\nb", "c"].map(str::to_owned).to_vec();
        assert_eq!(table(&[], [row]), "a\\u{1b}[2J\\nb  c\n");
    }

    #[test]
    fn spans_have_two_units() {
        for (seconds, text) in [(5, "5s"), (61, "1m1s"), (7_260, "2h1m"), (90_000, "1d1h")] {
            assert_eq!(span(seconds), text);
        }
    }
}
