// SPDX-License-Identifier: MIT OR Apache-2.0
//! Docker's own tests of its bridge, over a real dockerd and on the wire: each case of [`table`] is
//! one test here (or, where said so, beside), and [`control`] shows where stock Docker fails it.

mod ask;
mod cases;
mod control;
mod daemon;
mod direct;
mod gateway;
mod guard;
mod icc;
mod local;
mod networks;
mod policy;
mod ports;
mod probe;
mod published;
mod site;
mod source;
mod stale;
mod swarm;
mod table;

use std::time::Duration;

/// How long a change may take to be seen.
const SOON: Duration = Duration::from_secs(5);
