// SPDX-License-Identifier: MIT OR Apache-2.0
//! Escaping text for a terminal or a log, so that names chosen by others cannot control either.
//!
//! Names of networks, labels, versions and errors are arbitrary text that somebody gave to Docker.
//! A terminal executes control characters in them, and line ends and bidirectional marks mislead a
//! reader.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a character controls the display instead of being shown.
fn steers(letter: char) -> bool {
    let invisible = matches!(
        letter,
        '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
    );
    letter.is_control() || invisible
}

fn escape(text: &str, steers: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&steers) {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        if steers(letter) {
            plain.extend(letter.escape_default());
        } else {
            plain.push(letter);
        }
    }
    Cow::Owned(plain)
}

/// Escapes control characters as Rust does (`\u{1b}`, `\n`), so that every character is visible.
#[must_use]
pub fn line(text: &str) -> Cow<'_, str> {
    escape(text, steers)
}

/// Escapes control characters except line ends.
#[must_use]
pub fn lines(text: &str) -> Cow<'_, str> {
    escape(text, |letter| steers(letter) && letter != '\n')
}

/// Escapes control characters in JSON that is shown to a person, without changing its meaning: they
/// can only be in strings.
#[must_use]
pub fn json(text: &str) -> Cow<'_, str> {
    if !text.contains(|letter| steers(letter) && letter != '\n') {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        if steers(letter) && letter != '\n' {
            for unit in letter.encode_utf16(&mut [0; 2]) {
                // Writing to a string cannot fail.
                let _ = write!(plain, "\\u{unit:04x}");
            }
        } else {
            plain.push(letter);
        }
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_stays() {
        for text in ["", "web", "größer → 10 µs", "日本", "a\"b\\c"] {
            assert!(matches!(line(text), Cow::Borrowed(same) if same == text));
        }
        assert_eq!(lines("a\nb\n"), "a\nb\n");
        assert_eq!(json("{\n  \"a\": \"ö\"\n}"), "{\n  \"a\": \"ö\"\n}");
    }

    #[test]
    fn control_characters_are_shown() {
        assert_eq!(line("a\x1b[2Jb\r\n\t\x7f"), "a\\u{1b}[2Jb\\r\\n\\t\\u{7f}");
        assert_eq!(
            line("\u{9b}31m\u{202e}x\u{200b}"),
            "\\u{9b}31m\\u{202e}x\\u{200b}"
        );
        assert_eq!(lines("a\nb\x07"), "a\nb\\u{7}");
    }

    /// Every character, alone and among others: no control character is left, and JSON keeps its
    /// meaning.
    #[test]
    fn no_control_character_gets_through() {
        for letter in '\0'..=char::MAX {
            let text = format!("a{letter}b");
            for plain in [line(&text), Cow::Owned(lines(&text).replace('\n', ""))] {
                assert!(!plain.contains(steers), "{letter:?}");
            }
            let written = serde_json::to_string_pretty(&[&text]).unwrap();
            let plain = json(&written);
            assert!(!plain.replace('\n', "").contains(steers), "{letter:?}");
            let [read]: [String; 1] = serde_json::from_str(&plain).unwrap();
            assert_eq!(read, text, "{letter:?}");
        }
    }
}
