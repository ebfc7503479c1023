// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an examination of the host finds.

use serde::{Deserialize, Serialize};

/// The severity of a finding.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Not as it should be, but `run` corrects it.
    Note,
    /// It works, but could be better.
    Warn,
    /// `run` refuses to start.
    Fatal,
}

/// What a finding is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// The kernel, this process's rights, mounts and devices.
    #[default]
    Kernel,
    /// The daemon and its configuration.
    Docker,
    /// Rules and configuration of other software.
    Firewall,
}

impl Group {
    /// Every group, in the order in which they are shown.
    pub const ALL: [Self; 3] = [Self::Kernel, Self::Docker, Self::Firewall];

    /// The heading of the group.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Kernel => "kernel and host",
            Self::Docker => "Docker",
            Self::Firewall => "firewall and other software",
        }
    }
}

/// A finding about the host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// What it is about.
    pub group: Group,
    /// Its severity.
    pub level: Level,
    /// What was found, in plain words.
    pub what: String,
    /// What to do about it.
    pub todo: Option<String>,
}

impl Finding {
    pub(super) fn ok(what: impl Into<String>) -> Self {
        Self {
            group: Group::default(),
            level: Level::Ok,
            what: what.into(),
            todo: None,
        }
    }

    pub(super) fn note(what: impl Into<String>, todo: impl Into<String>) -> Self {
        Self {
            group: Group::default(),
            level: Level::Note,
            what: what.into(),
            todo: Some(todo.into()),
        }
    }

    pub(super) fn warn(what: impl Into<String>, todo: impl Into<String>) -> Self {
        Self {
            group: Group::default(),
            level: Level::Warn,
            what: what.into(),
            todo: Some(todo.into()),
        }
    }

    pub(super) fn fatal(what: impl Into<String>, todo: impl Into<String>) -> Self {
        Self {
            group: Group::default(),
            level: Level::Fatal,
            what: what.into(),
            todo: Some(todo.into()),
        }
    }

    pub(super) fn about(self, group: Group) -> Self {
        Self { group, ..self }
    }

    /// Formats the finding in one line.
    #[must_use]
    pub fn line(&self) -> String {
        match &self.todo {
            Some(todo) => format!("{}: {todo}", self.what),
            None => self.what.clone(),
        }
    }
}
