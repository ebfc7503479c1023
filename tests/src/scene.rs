// SPDX-License-Identifier: MIT OR Apache-2.0
//! The setup of most tests: one host in replace mode whose agent is ready, and the LAN beside it.

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::agent::Agent;
use crate::container::{Container, Peer};
use crate::dockerd::Docker;
use crate::host::Host;
use crate::lab::Lab;
use crate::netns::Space;
use crate::process::Process;

/// How long a server may take to become ready.
const SOON: Duration = Duration::from_secs(5);

/// A lab with one host and its agent, dropped in this order: agent, host, lab.
pub struct Scene {
    /// The agent, which is ready.
    pub agent: Agent,
    /// Host number 1: 198.18.1.1.
    pub host: Host,
    /// The lab.
    pub lab: Lab,
}

impl Scene {
    /// Sets up all of it.
    ///
    /// # Errors
    /// Any part of it cannot be created.
    pub fn new(label: &str) -> Result<Self> {
        Self::with(label, &[])
    }

    /// Sets up all of it, with further arguments for the agent.
    ///
    /// # Errors
    /// Any part of it cannot be created.
    pub fn with(label: &str, arguments: &[&str]) -> Result<Self> {
        let lab = Lab::new(label)?;
        let host = lab.host(Docker::replace())?;
        let agent = arguments
            .iter()
            .fold(host.agent(), |agent, &argument| agent.arg(argument));
        let agent = agent.start()?;
        Ok(Self { agent, host, lab })
    }

    /// Returns the LAN, where 198.18.1.2 is.
    #[must_use]
    pub fn lan(&self) -> &Space {
        self.lab.lan()
    }

    /// Runs a container and waits until the agent has its ports and its veth.
    ///
    /// # Errors
    /// docker refuses, or the agent does not notice.
    pub fn run(&self, name: &str, options: &[&str], program: &Peer) -> Result<Container> {
        let container = self.host.run(name, options, program)?;
        self.settle(name)?;
        Ok(container)
    }

    /// Waits until the agent has a container's veths; it had the container's ports before.
    ///
    /// # Errors
    /// It does not notice.
    pub fn settle(&self, container: &str) -> Result<()> {
        self.host.settle(container)
    }

    /// Returns the number of packets with a reason.
    ///
    /// # Errors
    /// The forwarder does not say.
    pub fn count(&self, reason: &str) -> Result<u64> {
        let status = self.host.json("status")?;
        let reasons = status["reasons"].as_object().context("no reasons")?;
        Ok(reasons.get(reason).and_then(|n| n.as_u64()).unwrap_or(0))
    }
}

/// Starts the peer's server in a namespace and waits until it serves.
///
/// # Errors
/// The port is taken.
pub fn serve(space: &Space, port: u16) -> Result<Process> {
    let mut server = space.spawn_peer(&["serve", &port.to_string()])?;
    server.line("serving", SOON)?;
    Ok(server)
}
