// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel and the fast path translate to ports of the same addresses.

use anyhow::Result;
use harness::Peer;

use crate::{OUTSIDE, SOON, Stock};

/// A container on the fast path and one that is left to the kernel have the same source port towards
/// the same server, whoever comes first: each gets its own answers.
#[test]
fn ports_of_kernel_and_flows_are_apart() -> Result<()> {
    let stock = Stock::new("ports")?;
    let host = &stock.host;
    let own = host.run("own", &["--network=app"], &Peer::idle())?;
    let left = host.run("left", &["--network=db"], &Peer::idle())?;
    let _agent = host
        .agent()
        .config("[network.db]\nmode = \"off\"\n")?
        .start()?;
    host.settle("own")?;
    let mut held = Vec::new();
    for (port, order) in [(5000, [&own, &left]), (5001, [&left, &own])] {
        for container in order {
            let bind = format!("--bind=0.0.0.0:{port}");
            let mut process = container
                .space()?
                .spawn_peer(&["hold", "1", OUTSIDE, &bind])?;
            process.line("open 1", SOON)?;
            held.push(process);
        }
    }
    for process in &mut held {
        process.tell("")?;
        process.line("alive 1", SOON)?;
    }
    Ok(())
}
