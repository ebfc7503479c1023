// SPDX-License-Identifier: MIT OR Apache-2.0
//! The conversation with one shim (a `forwarder-proxy` that dockerd started for a published port):
//! its requests go to the agent's loop, and the loop's replies go to the shim, for as long as both
//! live.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use forwarder_state::host_state::{HostPort, Proto, ShimId};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;

use super::claim;
use crate::control::Lines;

/// A request of a shim.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(tag = "verb", rename_all = "lowercase", deny_unknown_fields)]
pub enum ShimRequest {
    /// The shim holds this port, which leads to this container. Sent at the start, to a new agent,
    /// and when dockerd dies. The socket that holds the port is attached. The reply comes when the
    /// kernel holds the mapping.
    Bind(Binding),
    /// The shim becomes a docker-proxy, which serves this port. The reply comes when the kernel
    /// holds the port's access list.
    Proxy(Binding),
    /// The port is free again. The reply comes when the mapping has gone; then the conversation
    /// ends.
    Unbind,
    /// The shim cannot bind this port, because an orphan may hold it. The reply comes when all such
    /// orphans have ended.
    Reclaim(Binding),
}

/// A published port, as dockerd passes it to docker-proxy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Binding {
    /// Protocol.
    pub proto: Proto,
    /// The host's address; unspecified means any local address of its family.
    pub host_ip: IpAddr,
    /// The host's port.
    pub host_port: u16,
    /// The container's address.
    pub container_ip: IpAddr,
    /// The container's port.
    pub container_port: u16,
    /// Whether the dockerd that started the shim has gone.
    pub orphan: bool,
}

impl Binding {
    /// Returns the host's side of the binding.
    #[must_use]
    pub fn host(&self) -> HostPort {
        HostPort {
            proto: self.proto,
            ip: self.host_ip,
            port: self.host_port,
        }
    }
}

impl ShimRequest {
    /// Parses a line; none if it is not a shim's.
    #[must_use]
    pub fn read(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok()
    }
}

/// A reply of the agent to a shim, one line of JSON each.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ShimReply {
    /// The request is done.
    Ok(()),
    /// The request is refused, and why.
    Error(String),
    /// The shim must release the port and end: another shim needs it, or its container has gone.
    Release(()),
}

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
                let request = ShimRequest::read(&line).context("not a shim's request")?;
                let kind = checked(request, from);
                events.send(ShimEvent { shim, kind }).await?;
            }
            reply = replies.recv() => {
                let Some(reply) = reply else { return Ok(()) };
                let mut line = serde_json::to_vec(&reply)?;
                line.push(b'\n');
                to.write_all(&line).await?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shim_requests_are_parsed() {
        let bind = "{\"verb\":\"bind\",\"proto\":\"udp\",\"host_ip\":\"0.0.0.0\",\"host_port\":53,\
                    \"container_ip\":\"172.17.0.2\",\"container_port\":5353,\"orphan\":false}\n";
        let Some(ShimRequest::Bind(binding)) = ShimRequest::read(bind) else {
            panic!("{:?}", ShimRequest::read(bind))
        };
        assert_eq!(binding.host().to_string(), "0.0.0.0:53/udp");
        assert_eq!(binding.container_port, 5353);
        assert_eq!(
            ShimRequest::read("{\"verb\":\"unbind\"}\n"),
            Some(ShimRequest::Unbind)
        );
        let reclaim = bind.replace("bind", "reclaim");
        assert!(matches!(
            ShimRequest::read(&reclaim),
            Some(ShimRequest::Reclaim(_))
        ));
        assert_eq!(ShimRequest::read("{\"verb\":\"status\"}\n"), None);
    }

    #[test]
    fn replies_are_what_shims_compare_with() {
        let line = |word: ShimReply| serde_json::to_string(&word).unwrap();
        assert_eq!(line(ShimReply::Ok(())), "{\"ok\":null}");
        assert_eq!(line(ShimReply::Release(())), "{\"release\":null}");
        assert_eq!(line(ShimReply::Error("so".into())), "{\"error\":\"so\"}");
    }
}
