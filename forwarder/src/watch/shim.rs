// SPDX-License-Identifier: MIT OR Apache-2.0
//! The conversation with one shim (a `forwarder-proxy` that dockerd started for a published port):
//! its requests go to the agent's loop, and the loop's replies go to the shim, for as long as both
//! live.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use forwarder_protocol::line;
use forwarder_state::host_state::ShimId;

use super::claim;
use super::lines::Lines;

pub use forwarder_protocol::shim::{Binding, ShimReply, ShimRequest};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;

/// Whether the caller may make the request: it holds the port, or why it does not.
pub type Proof = Result<(), String>;

/// The loop's channel to a shim. When it is dropped, the conversation ends.
pub type ShimReplies = mpsc::UnboundedSender<ShimReply>;

/// An event of one shim for the agent's loop.
#[derive(Debug)]
pub struct ShimEvent {
    /// The shim.
    pub shim: ShimId,
    /// What happened.
    pub kind: ShimEventKind,
}

/// What can happen to a shim.
#[derive(Debug)]
pub enum ShimEventKind {
    /// The shim has connected, and receives replies here.
    Connected(ShimReplies),
    /// The shim makes a request, and whether it may.
    Request(ShimRequest, Proof),
    /// The shim has gone.
    Disconnected,
}

/// Passes requests and replies until either side ends.
pub(crate) async fn converse(
    first: ShimRequest,
    mut from: Lines,
    mut to: OwnedWriteHalf,
    events: &mpsc::Sender<ShimEvent>,
) -> Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let shim = ShimId(NUMBER.fetch_add(1, Ordering::Relaxed));
    let (replies_in, replies) = mpsc::unbounded_channel();
    events
        .send(ShimEvent {
            shim,
            kind: ShimEventKind::Connected(replies_in),
        })
        .await?;
    let ended = exchange(shim, first, &mut from, &mut to, events, replies).await;
    events
        .send(ShimEvent {
            shim,
            kind: ShimEventKind::Disconnected,
        })
        .await?;
    ended
}

async fn exchange(
    shim: ShimId,
    first: ShimRequest,
    from: &mut Lines,
    to: &mut OwnedWriteHalf,
    events: &mpsc::Sender<ShimEvent>,
    mut replies: mpsc::UnboundedReceiver<ShimReply>,
) -> Result<()> {
    let kind = checked(first, from);
    events.send(ShimEvent { shim, kind }).await?;
    loop {
        tokio::select! {
            line = from.next() => {
                let line = line?;
                if line.is_empty() {
                    return Ok(());
                }
                let request = ShimRequest::parse(&line).context("not a shim's request")?;
                let kind = checked(request, from);
                events.send(ShimEvent { shim, kind }).await?;
            }
            reply = replies.recv() => {
                let Some(reply) = reply else { return Ok(()) };
                to.write_all(&line::encode(&reply)?).await?;
            }
        }
    }
}

/// Returns a request, with whether the caller may make it.
fn checked(request: ShimRequest, from: &mut Lines) -> ShimEventKind {
    let socket = from.take_attached();
    let may = claim::may_claim(from.stream());
    let proof = may.and_then(|()| match &request {
        ShimRequest::Bind(binding) => claim::holds(socket.as_ref(), binding),
        // These need no proof: they concern the caller's own port, an orphan's port that has to be
        // released anyway, or a port that is closed and not opened.
        ShimRequest::Unbind | ShimRequest::Reclaim(_) | ShimRequest::Proxy(_) => Ok(()),
    });
    ShimEventKind::Request(request, proof)
}
