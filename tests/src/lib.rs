// SPDX-License-Identifier: MIT OR Apache-2.0
//! The harness: Docker hosts in network namespaces, a LAN beside them, and what tests do with both.
//!
//! A *host* is a network namespace with a dockerd of its own, so each test has real Docker, real
//! containers and a real kernel path, and touches nothing of the machine's. A test starts a
//! [`Lab`], puts hosts and clients into it, and asks what arrived where.
//!
//! ```no_run
//! use harness::{Docker, Lab, Peer};
//!
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::new("published")?;
//! let host = lab.host(Docker::replace())?;
//! let agent = host.agent().arg("--xdp=off").start()?;
//! let web = host.run("web", &["-p", "8080:80"], &Peer::serve(80))?;
//! let seen = lab.lan().peer(&["get", "198.18.1.1:8080"])?;
//! assert!(seen.starts_with("198.18.1.2:"));
//! # Ok(())
//! # }
//! ```
//!
//! A [`Host`] takes about half a second to start, so each test has a [`Lab`] of its own and any
//! number of them run side by side. Dropping a handle takes down what it stands for, also while a
//! test panics; what a killed test leaves behind is swept by the next [`Lab::new`].
//!
//! # Who is who
//!
//! - [`Lab`] is the LAN and the folder for everything that is written; [`Lan`] is its client.
//! - [`Host`] is a Docker host, [`Docker`] how its dockerd is set up, [`Agent`] the forwarder on
//!   it, [`Container`] a container on it. [`Scene`] is what most tests need of these, ready made.
//! - [`Peer`] is the server and client that runs in containers and namespaces alike.
//! - [`Packet`] and [`Craft`] make packets by hand; [`PacketSocket`], [`Capture`] and [`Flood`]
//!   send and see them. [`attack`] has what a hostile container, neighbour or user would try.
//! - [`Pinned`] is what the kernel holds of the forwarder's; [`eventually`] and [`holds`] wait for
//!   a state instead of sleeping.
//!
//! The tests themselves are in `tests/tests`, one binary per subject.

mod agent;
pub mod attack;
mod capture;
mod check;
mod container;
mod craft;
mod dockerd;
mod flood;
mod host;
mod image;
mod kernel;
mod lab;
mod netns;
mod packet;
mod process;
mod running;
mod scene;
mod teardown;
pub mod wire;

pub use agent::{Agent, AgentBuilder, forwarder_bin};
pub use capture::{Capture, Frame};
pub use check::{eventually, holds, require_root, soaked};
pub use container::{Container, Peer};
pub use craft::Craft;
pub use dockerd::{Docker, DockerCli, forwarder_proxy_bin};
pub use flood::Flood;
pub use host::Host;
pub use image::{IMAGE, peer_bin};
pub use kernel::{Pinned, difference};
pub use lab::{Far, Lab, Lan};
pub use netns::{Netns, Space, veth};
pub use packet::PacketSocket;
pub use process::{Finished, Process, finish};
pub use running::Running;
pub use scene::{Scene, serve};
pub use teardown::sweep;
pub use wire::Packet;
