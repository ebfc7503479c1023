// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where a case is played: one host and its LAN, translated by us or by stock Docker.

use anyhow::{Context as _, Result};
use harness::{Agent, Container, Docker, Host, Lab, Peer, Space, eventually};

use crate::SOON;

/// What routes all that Docker hands out to host number 1.
const DOCKERS: &str = "172.16.0.0/12 via 198.18.1.1";

/// A lab with one host. Dropped in this order.
pub(crate) struct Site {
    /// Ours; none on a stock host.
    pub(crate) agent: Option<Agent>,
    /// Host number 1: 198.18.1.1.
    pub(crate) host: Host,
    /// The lab.
    pub(crate) lab: Lab,
}

impl Site {
    /// A host in replace mode with an agent that is ready.
    pub(crate) fn ours(label: &str) -> Result<Self> {
        Self::configured(label, "")
    }

    /// The same with a configuration file.
    pub(crate) fn configured(label: &str, config: &str) -> Result<Self> {
        Self::with(label, Docker::replace(), config)
    }

    /// The same with more flags of dockerd's.
    pub(crate) fn with(label: &str, docker: Docker, config: &str) -> Result<Self> {
        let lab = Lab::new(label)?;
        let host = lab.host(docker)?;
        let agent = Some(host.agent().config(config)?.start()?);
        Ok(Self { agent, host, lab })
    }

    /// A host with Docker's own rules and without docker-proxy: what the rules do, and only that.
    pub(crate) fn stock(label: &str) -> Result<Self> {
        let lab = Lab::new(label)?;
        let host = lab.host(Docker::stock().arg("--userland-proxy=false"))?;
        Ok(Self {
            agent: None,
            host,
            lab,
        })
    }

    /// The LAN, where 198.18.1.2 is.
    pub(crate) fn lan(&self) -> &Space {
        self.lab.lan()
    }

    /// Lets the LAN send straight to containers.
    pub(crate) fn lan_routes_to_containers(&self) -> Result<()> {
        self.lan().ip(&format!("route add {DOCKERS}")).map(drop)
    }

    /// Runs a container and waits until whoever translates has it.
    pub(crate) fn run(&self, name: &str, options: &[&str], program: &Peer) -> Result<Container> {
        let container = self.host.run(name, options, program)?;
        self.settle(name)?;
        Ok(container)
    }

    /// A server on 80 and 81, of which `-p` publishes 80.
    pub(crate) fn serve(&self, name: &str, options: &[&str]) -> Result<Container> {
        let program = Peer::program(&["/peer", "serve", "80", "81"]);
        let server = self.run(name, options, &program)?;
        for port in ["serving 80", "serving 81"] {
            server.log_line(port)?;
        }
        Ok(server)
    }

    /// Waits until the agent has a container.
    pub(crate) fn settle(&self, container: &str) -> Result<()> {
        match self.agent {
            Some(_) => self.host.settle(container),
            None => Ok(()),
        }
    }

    /// Makes a bridge network, whose rules stand when this returns, and hands back its gateway.
    pub(crate) fn network(&self, name: &str, options: &[&str]) -> Result<String> {
        self.host
            .docker(&[&["network", "create"], options, &[name]].concat())?;
        if self.agent.is_some() {
            eventually(SOON, || {
                let rows = self.host.json("networks")?;
                let mut rows = rows.as_array().context("a list of networks")?.iter();
                let own = rows.find(|row| row["name"] == name && row["programmed"] == true);
                own.with_context(|| format!("{name} is not programmed"))
                    .map(drop)
            })?;
        }
        let gateway = "{{range .IPAM.Config}}{{.Gateway}}{{end}}";
        self.host
            .docker(&["network", "inspect", "--format", gateway, name])
    }

    /// Changes the configuration file under the running agent.
    pub(crate) fn reconfigure(&self, config: &str) -> Result<()> {
        self.host.configure(config).map(drop)
    }
}

/// A container's address on one of its networks.
pub(crate) fn address(container: &Container, network: &str) -> Result<String> {
    container.inspect(&format!(
        "{{{{(index .NetworkSettings.Networks {network:?}).IPAddress}}}}"
    ))
}
