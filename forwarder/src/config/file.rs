// SPDX-License-Identifier: MIT OR Apache-2.0
//! The configuration file: how it is read, and which values it may have.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use forwarder_common::abi::PortRange;
use serde::{Deserialize, Deserializer, Serializer, de};

use super::{FILE, Settings, port_range};
use crate::trusted;

pub(super) fn read(file: Option<&Path>) -> Result<Settings> {
    let path = file.unwrap_or(Path::new(FILE));
    match trusted::read(path)? {
        Some(text) => parse(&text).with_context(|| path.display().to_string()),
        None if file.is_none() => Ok(Settings::default()),
        None => bail!("cannot read {}: there is no such file", path.display()),
    }
}

/// Parses a file's text. The error is one line that names the line and the key.
pub(super) fn parse(text: &str) -> Result<Settings> {
    toml::from_str(text).map_err(|error| {
        let message = error.message().replace('\n', " ");
        let Some(before) = error.span().and_then(|span| text.get(..span.start)) else {
            return anyhow!(message);
        };
        let number = before.lines().count().max(1) + usize::from(before.ends_with('\n'));
        match key(text, number) {
            Some(key) => anyhow!("line {number}: {key}: {message}"),
            None => anyhow!("line {number}: {message}"),
        }
    })
}

/// Returns the key on the line with this number (from 1): the line's own key, or that of the list
/// that the line continues.
fn key(text: &str, number: usize) -> Option<&str> {
    let lines = text.lines().take(number).collect::<Vec<_>>();
    let mut keys = lines.iter().rev().filter_map(|line| line.split_once('='));
    keys.next().map(|(key, _)| key.trim())
}

/// Deserializes a number of the file and checks its bounds.
pub(super) fn within<'de, const MIN: u32, const MAX: u32, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<u32>, D::Error> {
    let number = u32::deserialize(from)?;
    if (MIN..=MAX).contains(&number) {
        return Ok(Some(number));
    }
    let bounds = format!("{number} is not in {MIN}..={MAX}");
    Err(de::Error::custom(bounds))
}

/// Writes a range of ports as [`reserved`] reads it.
pub(super) fn as_text<S: Serializer>(ports: &Option<PortRange>, to: S) -> Result<S::Ok, S::Error> {
    match ports {
        None => to.serialize_none(),
        Some(PortRange { first: 0, .. }) => to.serialize_str("off"),
        Some(PortRange { first, last }) => to.serialize_str(&format!("{first}-{last}")),
    }
}

pub(super) fn reserved<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PortRange>, D::Error> {
    let text = String::deserialize(from)?;
    port_range(&text).map(Some).map_err(de::Error::custom)
}
