// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel and the fast path translate to ports of the same addresses.

use anyhow::{Result, ensure};
use harness::{Peer, eventually};

use crate::{OUTSIDE, SOON, Stock};

/// The source port of both.
const BIND: &str = "--bind=0.0.0.0:5000";

/// A container on the fast path gets another port than one that is left to the kernel has already.
#[test]
fn kernels_ports_stay_the_kernels() -> Result<()> {
    let stock = Stock::new("ports")?;
    let host = &stock.host;
    let own = host.run("own", &["--network=app"], &Peer::idle())?;
    let left = host.run("left", &["--network=db"], &Peer::idle())?;
    let _agent = host
        .agent()
        .config("[network.db]\nmode = \"off\"\n")?
        .start()?;
    let mut first = left.space()?.spawn_peer(&["hold", "1", OUTSIDE, BIND])?;
    first.line("open 1", SOON)?;
    // The agent looks at the kernel's connections when a network changes hands.
    host.configure("[network.db]\nmode = \"off\"\n[network.bridge]\nmode = \"off\"\n")?;
    eventually(SOON, || {
        let networks = host.json("networks")?.to_string();
        let off = networks.matches("its mode is off").count();
        ensure!(off == 2, "{networks}");
        Ok(())
    })?;
    let mut second = own.space()?.spawn_peer(&["hold", "1", OUTSIDE, BIND])?;
    second.line("open 1", SOON)?;
    for process in [&mut first, &mut second] {
        process.tell("")?;
        process.line("alive 1", SOON)?;
    }
    Ok(())
}
