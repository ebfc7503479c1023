// SPDX-License-Identifier: MIT OR Apache-2.0
//! The log on standard error: lines for people, lines with priorities for the journal, or JSON for
//! programs. Each event is one entry, whatever names it contains.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, anyhow};
use rustix::fs::{fstat, ftruncate};
use serde_json::{Value, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use crate::config::LogFormat;
use crate::plain;

static IS_JSON: AtomicBool = AtomicBool::new(false);

/// The target of events about what was applied: their message says all that their fields say.
pub(crate) const NOTICES: &str = "forwarder::notices";

/// The maximum length of a log event, in bytes: names may have any length.
const EVENT: usize = 16 << 10;
/// The maximum length of a value in a JSON event that is too long, in characters.
const VALUE: usize = 1 << 10;
/// The size beyond which a log file begins anew.
pub(crate) const FILE: u64 = 1 << 20;

/// Starts the log on standard error. If that is `file`, the file's size is bounded.
///
/// # Errors
/// `filter` is neither a level nor directives.
pub(crate) fn start(filter: &str, format: LogFormat, file: Option<PathBuf>) -> Result<()> {
    let filter = EnvFilter::try_new(directives(filter))
        .with_context(|| format!("--log {filter} is neither a level nor a filter"))?;
    let form = match format {
        LogFormat::Json => Form::Json,
        LogFormat::Text if is_journal() => Form::Journal,
        LogFormat::Text => Form::Text,
    };
    let file = file.map(Arc::from);
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Log { form, file })
        // Colours are control characters, which the log must not contain.
        .with_ansi(false)
        .with_target(false);
    let started = if form == Form::Json {
        let log = log.json().flatten_event(true);
        log.with_current_span(false)
            .with_span_list(false)
            .try_init()
    } else {
        log.event_format(Lines(form)).try_init()
    };
    started.map_err(|error| anyhow!("cannot start the log: {error}"))?;
    IS_JSON.store(form == Form::Json, Ordering::Relaxed);
    Ok(())
}

/// Returns the event by which an agent ends, if its log has been started and is JSON. The log's
/// filter does not apply: as text, too, nothing hides why the agent has ended.
pub(crate) fn last_event(error: &str) -> Option<String> {
    if !IS_JSON.load(Ordering::Relaxed) {
        return None;
    }
    let mut timestamp = String::new();
    // Writing to a string cannot fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut timestamp));
    let event = json!({ "timestamp": timestamp, "level": "ERROR", "message": error });
    Some(object(event.to_string().as_bytes()))
}

/// Returns the filter's directives: a bare level applies to the forwarder; libraries log warnings
/// only.
fn directives(filter: &str) -> String {
    match filter.parse::<LevelFilter>() {
        Ok(level) => format!("{},forwarder={level}", level.min(LevelFilter::WARN)),
        Err(_) => filter.to_owned(),
    }
}

/// Whether standard error is the journal's stream, as systemd says in `JOURNAL_STREAM`.
pub(crate) fn is_journal() -> bool {
    let named = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    fstat(io::stderr()).is_ok_and(|data| is_stream(&named, data.st_dev, data.st_ino))
}

fn is_stream(named: &str, device: u64, inode: u64) -> bool {
    named == format!("{device}:{inode}")
}

/// The form of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    /// A time, a level, a message.
    Text,
    /// The journal has a time of its own, and reads the priority from `<N>` (sd-daemon(3)).
    Journal,
    /// An object.
    Json,
}

/// Formats events as lines.
struct Lines(Form);

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut line: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = *event.metadata().level();
        if self.0 == Form::Journal {
            write!(line, "<{}>{level} ", priority(level))?;
        } else {
            SystemTime.format_time(&mut line)?;
            write!(line, " {level:>5} ")?;
        }
        if event.metadata().target() == NOTICES {
            let mut message = Message(Ok(()), line.by_ref());
            event.record(&mut message);
            message.0?;
        } else {
            context.format_fields(line.by_ref(), event)?;
        }
        writeln!(line)
    }
}

/// Writes an event's message without its fields.
struct Message<'a>(fmt::Result, Writer<'a>);

impl Visit for Message<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = write!(self.1, "{value:?}");
        }
    }
}

/// Returns the priority of syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// The writer to standard error. As text each event is one line, and further lines of it are
/// indented, so that a name cannot look like another event.
#[derive(Clone, Debug)]
struct Log {
    form: Form,
    /// The file that standard error is.
    file: Option<Arc<Path>>,
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for Log {
    /// The subscriber writes each event in one call. A terminal that has gone must not end the
    /// agent, so nobody is told of an error.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let entry = match self.form {
            Form::Json => object(event),
            Form::Text | Form::Journal => entry(event),
        };
        let mut stderr = io::stderr().lock();
        let _ = stderr.write_all(entry.as_bytes());
        if let Some(file) = &self.file {
            let _ = bound(&stderr, file, FILE);
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn entry(event: &[u8]) -> String {
    let cut = event.len() > EVENT;
    let text = String::from_utf8_lossy(&event[..event.len().min(EVENT)]);
    // The journal takes each line for an entry, so further lines have the priority of the first.
    let priority = text.get(..3).filter(|first| first.starts_with('<'));
    let next = format!("\n{}    ", priority.unwrap_or_default());
    let text = plain::lines(text.trim_end_matches('\n')).replace('\n', &next);
    let more = if cut { " …" } else { "" };
    format!("{text}{more}\n")
}

/// Returns an event of JSON on one line, without control characters. The values of one that is too
/// long are cut.
fn object(event: &[u8]) -> String {
    let text = String::from_utf8_lossy(event);
    let text = text.trim_end_matches('\n');
    if text.len() <= EVENT {
        return format!("{}\n", plain::json(text));
    }
    let mut value: Value = serde_json::from_str(text).unwrap_or_default();
    for value in value.as_object_mut().into_iter().flatten() {
        if let (_, Value::String(text)) = value
            && let Some((end, _)) = text.char_indices().nth(VALUE)
        {
            text.truncate(end);
            text.push_str(" …");
        }
    }
    format!("{}\n", plain::json(&value.to_string()))
}

/// Returns the file that holds what was in a log file before.
pub(crate) fn earlier(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// Begins a log file anew if it is longer than `limit`; [`earlier`] gets what it held. The file
/// stays the same one, since others write to it too.
fn bound(log: impl std::os::fd::AsFd, file: &Path, limit: u64) -> io::Result<()> {
    let data = fstat(&log)?;
    if data.st_size.cast_unsigned() <= limit {
        return Ok(());
    }
    let named = fs::metadata(file)?;
    if (named.dev(), named.ino()) != (data.st_dev, data.st_ino) {
        return Ok(());
    }
    // Where there is no room for a copy, the log needs a bound all the more.
    let _ = fs::copy(file, earlier(file));
    Ok(ftruncate(log, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log level without a target is for the forwarder alone.
    #[test]
    fn plain_log_level_is_for_forwarder_only() {
        assert_eq!(directives("debug"), "warn,forwarder=debug");
        assert_eq!(directives("error"), "error,forwarder=error");
        assert_eq!(directives("off"), "off,forwarder=off");
        assert_eq!(
            directives("forwarder=trace,bollard=debug"),
            "forwarder=trace,bollard=debug"
        );
    }

    /// An event of the log stays one event, whatever lines its text forges.
    #[test]
    fn log_event_stays_one_event() {
        let forged = "WARN a\n2026-01-01 ERROR all is lost\x1b[1m\n";
        let shown = "WARN a\n    2026-01-01 ERROR all is lost\\u{1b}[1m\n";
        assert_eq!(entry(forged.as_bytes()), shown);
        let long = entry("x".repeat(2 * EVENT).as_bytes());
        assert!(long.len() <= EVENT + 8 && long.ends_with(" …\n"));
        assert_eq!(
            entry(b"<4>WARN a\nb\n"),
            "<4>WARN a\n<4>    b\n",
            "the journal takes each line for an entry"
        );
    }

    /// An event of JSON stays JSON, on one line, whatever its length and its names.
    #[test]
    fn json_event_stays_json() {
        for name in ["web", "a\nb\x1b[1m\u{202e}", &"ü\n".repeat(EVENT)] {
            let event = json!({ "level": "INFO", "message": name, "port": 80 });
            let line = object(format!("{event}\n").as_bytes());
            assert_eq!(line.matches(char::is_control).count(), 1, "{line:?}");
            assert!(line.len() <= EVENT && !line.contains('\u{202e}'), "{line}");
            let read: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(
                (&read["level"], &read["port"]),
                (&"INFO".into(), &80.into())
            );
            let cut: String = name.chars().take(VALUE).collect();
            assert!(read["message"].as_str().unwrap().starts_with(&cut));
        }
    }

    #[test]
    fn journal_is_known_by_its_stream() {
        assert!(is_stream("8:1234", 8, 1234));
        for other in ["", "8:1235", "9:1234", "8:12345"] {
            assert!(!is_stream(other, 8, 1234), "{other}");
        }
    }

    /// A log file begins anew at its bound, and the writer goes on in the same file.
    #[test]
    fn log_file_is_bounded() {
        let name = format!("forwarder-bound-{}", std::process::id());
        let file = std::env::temp_dir().join(name);
        let mut log = fs::File::options();
        let mut log = log.create(true).append(true).open(&file).unwrap();
        let mut write = |text: &str| {
            log.write_all(text.as_bytes()).unwrap();
            bound(&log, &file, 8).unwrap();
        };
        write("12345678");
        assert!(!earlier(&file).exists());
        write("9");
        assert_eq!(fs::read_to_string(earlier(&file)).unwrap(), "123456789");
        write("abc");
        assert_eq!(fs::read_to_string(&file).unwrap(), "abc");
        // Standard error may be another file than the one that is named.
        let other = fs::File::open(earlier(&file)).unwrap();
        bound(&other, &file, 8).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "abc");
        fs::remove_file(earlier(&file)).unwrap();
        fs::remove_file(&file).unwrap();
    }
}
