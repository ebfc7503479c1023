// SPDX-License-Identifier: MIT OR Apache-2.0
//! The messages between a shim (a `forwarder-proxy` that dockerd started for a published port) and
//! the agent. The shim makes requests; the agent replies, and may speak first to get a port back.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{HostPort, Proto};

/// A request of a shim.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
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
    pub fn parse(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }
}

/// A reply of the agent to a shim.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShimReply {
    /// The request is done.
    Ok(()),
    /// The request is refused, and why.
    Error(String),
    /// The shim must release the port and end: another shim needs it, or its container has gone.
    Release(()),
}

impl ShimReply {
    /// Parses a line of the agent. What this version does not know is a refusal that says so.
    #[must_use]
    pub fn parse(line: &[u8]) -> Self {
        serde_json::from_slice(line).unwrap_or_else(|_| {
            let line = String::from_utf8_lossy(line);
            Self::Error(format!("unknown reply of the agent: {}", line.trim_end()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BIND: &str = "{\"verb\":\"bind\",\"proto\":\"udp\",\"host_ip\":\"0.0.0.0\",\
                        \"host_port\":53,\"container_ip\":\"172.17.0.2\",\"container_port\":5353,\
                        \"orphan\":false}";

    /// The form is what shims of earlier versions send and agents of earlier versions expect.
    #[test]
    fn requests_have_their_form() {
        let Some(ShimRequest::Bind(binding)) = ShimRequest::parse(BIND.as_bytes()) else {
            panic!("{:?}", ShimRequest::parse(BIND.as_bytes()))
        };
        assert_eq!(binding.host().to_string(), "0.0.0.0:53/udp");
        assert_eq!(binding.container_port, 5353);
        let text = |request: ShimRequest| serde_json::to_string(&request).unwrap();
        assert_eq!(text(ShimRequest::Bind(binding)), BIND);
        assert_eq!(text(ShimRequest::Unbind), "{\"verb\":\"unbind\"}");
        for (request, verb) in [
            (ShimRequest::Reclaim(binding), "reclaim"),
            (ShimRequest::Proxy(binding), "proxy"),
            (ShimRequest::Unbind, "unbind"),
        ] {
            assert!(text(request).starts_with(&format!("{{\"verb\":\"{verb}\"")));
            assert_eq!(ShimRequest::parse(text(request).as_bytes()), Some(request));
        }
        assert_eq!(ShimRequest::parse(b"{\"verb\":\"status\"}"), None);
    }

    #[test]
    fn replies_have_their_form() {
        for (reply, line) in [
            (ShimReply::Ok(()), "{\"ok\":null}"),
            (ShimReply::Release(()), "{\"release\":null}"),
            (
                ShimReply::Error("\"web\" has it".into()),
                "{\"error\":\"\\\"web\\\" has it\"}",
            ),
        ] {
            assert_eq!(serde_json::to_string(&reply).unwrap(), line);
            assert_eq!(ShimReply::parse(format!("{line}\n").as_bytes()), reply);
        }
        let unknown = ShimReply::Error("unknown reply of the agent: x".into());
        assert_eq!(ShimReply::parse(b"x\n"), unknown);
    }
}
