// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line: words in order, and `--name value` or `--name=value` anywhere.

use std::collections::{BTreeMap, VecDeque};
use std::error::Error;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::Options;

pub(crate) struct Args {
    words: VecDeque<String>,
    named: BTreeMap<String, String>,
}

impl Args {
    pub(crate) fn new(arguments: impl Iterator<Item = String>) -> Result<Self> {
        let (mut words, mut named) = (VecDeque::new(), BTreeMap::new());
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            match argument.strip_prefix("--") {
                None => words.push_back(argument),
                Some("help") => words.push_front("help".to_owned()),
                Some(name) => {
                    let (name, value) = match name.split_once('=') {
                        Some((name, value)) => (name, Some(value.to_owned())),
                        None => (name, arguments.next()),
                    };
                    let value = value.with_context(|| format!("--{name} wants a value"))?;
                    named.insert(name.to_owned(), value);
                }
            }
        }
        Ok(Self { words, named })
    }

    pub(crate) fn next(&mut self, what: &str) -> Result<String> {
        self.words
            .pop_front()
            .with_context(|| format!("{what} is missing"))
    }

    pub(crate) fn parse<T>(&mut self, what: &str) -> Result<T>
    where
        T: FromStr<Err: Error + Send + Sync + 'static>,
    {
        let word = self.next(what)?;
        word.parse()
            .with_context(|| format!("{word:?} is no {what}"))
    }

    /// Returns all remaining words, at least one.
    pub(crate) fn rest<T>(&mut self) -> Result<Vec<T>>
    where
        T: FromStr<Err: Error + Send + Sync + 'static>,
    {
        let mut all = vec![self.parse("argument")?];
        while !self.words.is_empty() {
            all.push(self.parse("argument")?);
        }
        Ok(all)
    }

    pub(crate) fn option<T>(&mut self, name: &str) -> Result<Option<T>>
    where
        T: FromStr<Err: Error + Send + Sync + 'static>,
    {
        let Some(text) = self.named.remove(name) else {
            return Ok(None);
        };
        text.parse()
            .map(Some)
            .with_context(|| format!("--{name} cannot be {text:?}"))
    }

    /// Parses the options of all clients. Any argument that remains is an error.
    pub(crate) fn options(&mut self) -> Result<Options> {
        let bind = self.option("bind")?;
        let timeout = Duration::from_millis(self.option("timeout")?.unwrap_or(3000));
        let ttl = self.option("ttl")?;
        let v6only = self.option("v6only")?.unwrap_or(false);
        ensure!(
            self.words.is_empty(),
            "too many arguments: {:?}",
            self.words
        );
        ensure!(self.named.is_empty(), "unknown options: {:?}", self.named);
        Ok(Options {
            bind,
            timeout,
            ttl,
            v6only,
        })
    }
}
