// SPDX-License-Identifier: MIT OR Apache-2.0
//! Following that the administrator asks for, by file or by label.

use anyhow::{Context as _, Result};
use harness::{Peer, eventually};

use super::scenario::stream;
use super::{goes_on, is_fast, is_in_mode};
use crate::{SOON, Stock};

/// The silence in milliseconds that a lost segment would not end.
const UNBROKEN: u64 = 900;

/// Networks change from mode to mode, and nothing breaks.
#[test]
fn follow_by_file_changes_hands() -> Result<()> {
    let stock = Stock::new("byfile")?;
    let host = &stock.host;
    let text = |mode: &str| {
        let network = |name| format!("[network.{name}]\nmode = \"{mode}\"\n");
        ["app", "bridge"].map(network).concat()
    };
    let _agent = host.agent().config(&text("follow"))?.start()?;
    let traffic = stock.traffic()?;
    let modes = ["own", "follow", "off", "follow", "own", "off", "follow"];
    eventually(SOON, || is_fast(host)).context("at first")?;
    for mode in modes {
        host.configure(&text(mode))?;
        for network in ["app", "bridge"] {
            eventually(SOON, || is_in_mode(host, network, mode))?;
        }
        if mode != "off" {
            eventually(SOON, || is_fast(host)).with_context(|| mode.to_owned())?;
        }
    }
    traffic.check_after(modes.len() as u64, UNBROKEN)
}

/// A network follows by its label, without any rule.
#[test]
fn follow_by_label_is_fast() -> Result<()> {
    let stock = Stock::new("bylabel")?;
    let host = &stock.host;
    let label = "--label=forwarder.mode=follow";
    host.docker(&["network", "create", label, "labelled"])?;
    let ports = ["--network=labelled", "-p=8090:80"];
    host.run("late", &ports, &Peer::serve(80))?;
    let _agent = host.agent().start()?;
    is_in_mode(host, "labelled", "follow")?;
    is_in_mode(host, "app", "own")?;
    let mut inward = stream(stock.lab.lan(), "198.18.1.1:8090")?;
    eventually(SOON, || is_fast(host))?;
    goes_on(&mut inward)
}
