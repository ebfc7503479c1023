// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connections that the kernel has let through and that go on, as connection tracking tells of them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use forwarder_common::abi::Tuple;
use forwarder_common::family::V4;
use forwarder_state::connections::Connection;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use tokio::sync::mpsc::Sender;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::sys::conntrack::{Conntrack, Tracked, subscribe, tracked};

/// How long a connection must have gone on since it was assured: most end before.
const AGE: Duration = Duration::from_millis(500);
/// The interval at which what the kernel tells is read: it comes in bursts.
const PACE: Duration = Duration::from_millis(100);
/// The interval at which all connections are listed: those whose flow has ended before they did are
/// found again.
const LIST: Duration = Duration::from_secs(60);
/// The least time until the next list, if there was more to tell than there was room for.
const LIST_SOON: Duration = Duration::from_secs(10);
/// How many connections are sent at once: other events come in between.
const BATCH: usize = 256;
/// How much of what the kernel tells is read at once.
const DATAGRAMS: usize = 16_384;
/// How many connections may wait for their age. Of more, the list tells.
const YOUNG: usize = 65_536;

/// Sends connections that go on until the receiver is closed.
///
/// # Errors
/// The kernel does not tell of connections.
pub(crate) async fn watch(settled: &Sender<Vec<Connection<V4>>>) -> Result<()> {
    let socket = subscribe().context("cannot hear of the kernel's connections")?;
    let mut young = BTreeMap::<Tuple<V4>, (Connection<V4>, Instant)>::new();
    let mut list_at = Instant::now();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let mut ready = Vec::new();
        if Instant::now() >= list_at {
            match spawn_blocking(|| Conntrack::open()?.list()).await? {
                Ok(all) => {
                    let all = all.iter().filter(|one| one.is_settled);
                    ready.extend(all.map(|one| one.connection));
                }
                Err(error) => tracing::warn!("{error:#}"),
            }
            list_at = Instant::now() + LIST;
        }
        young.retain(|_, (connection, since)| {
            let is_due = since.elapsed() >= AGE;
            if is_due {
                ready.push(*connection);
            }
            !is_due
        });
        for part in ready.chunks(BATCH) {
            if settled.send(part.to_vec()).await.is_err() {
                return Ok(());
            }
        }
        tokio::select! {
            () = sleep(PACE) => {}
            () = settled.closed() => return Ok(()),
        }
        for _ in 0..DATAGRAMS {
            match recv(&socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((length, _)) => hear(&mut young, &tracked(&buffer[..length])),
                // The kernel has told more than there was room for.
                Err(Errno::NOBUFS) => list_at = list_at.min(Instant::now() + LIST_SOON),
                Err(_) => break,
            }
        }
    }
}

/// Notes what has become of connections.
fn hear(young: &mut BTreeMap<Tuple<V4>, (Connection<V4>, Instant)>, told: &[Tracked]) {
    for Tracked {
        connection,
        is_settled,
    } in told
    {
        if !is_settled {
            young.remove(&connection.original);
        } else if young.len() < YOUNG {
            let since = Instant::now();
            young
                .entry(connection.original)
                .or_insert((*connection, since));
        }
    }
}
