// SPDX-License-Identifier: MIT OR Apache-2.0
//! The test harness: Docker hosts in network namespaces, a LAN beside them, and what tests do with
//! both.
//!
//! A *host* is a network namespace with its own dockerd, so each test has real Docker, real
//! containers and a real kernel path, and does not touch the machine's own. A test starts a
//! [`Lab`], puts hosts and clients into it, and checks what arrived where.
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
//! A [`Host`] takes about half a second to start, so each test has its own [`Lab`], and any number
//! of them run in parallel. Dropping a handle removes what it stands for, also when a test panics.
//! The next [`Lab::new`] removes what a killed test leaves behind.
//!
//! # Overview
//!
//! - [`Lab`] is the LAN and the folder for all files; [`Lan`] is its client.
//! - [`Host`] is a Docker host, [`Docker`] the options of its dockerd, [`Agent`] the forwarder on
//!   it, [`Container`] a container on it. [`Scene`] sets up what most tests need of these.
//! - [`Peer`] is the server and client that runs in containers and namespaces alike.
//! - [`Packet`] and [`Packet6`] build packets by hand; [`PacketSocket`], [`Capture`] and [`Flood`]
//!   send and capture them. [`attack`] has what a hostile container, neighbour or user would try.
//! - [`Pinned`] is the forwarder's state in the kernel; [`eventually`] and [`holds`] wait for a
//!   state instead of sleeping.
//!
//! The tests themselves are in `tests/tests`, one binary per subject.

mod agent;
pub mod attack;
mod capture;
mod check;
mod container;
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
mod wire;

pub use agent::{Agent, AgentBuilder, forwarder_bin};
pub use capture::{Capture, Frame};
pub use check::{eventually, holds, require_root, soaked};
pub use container::{Container, Peer};
pub use dockerd::{Docker, DockerCli, forwarder_proxy_bin};
pub use flood::Flood;
pub use forwarder_testkit::packet::{Packet, Segment};
pub use forwarder_testkit::packet6::Packet6;
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
pub use wire::is_private;
