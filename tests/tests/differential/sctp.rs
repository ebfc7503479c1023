// SPDX-License-Identifier: MIT OR Apache-2.0
//! Steps of SCTP: an association from its first chunk on, by a port that another container may use, too.

use forwarder_testkit::packet::Chunk;
use forwarder_testkit::packet::proto::SCTP;

use crate::flow::Towards;
use crate::place::At;
use crate::shot::{Body, Draft, Shot};
use crate::trace::{Step, Trace};

/// Who sends a chunk, of which type, and what it is called.
const CHUNKS: [(Towards, u8, &str); 6] = [
    (Towards::Server, 1, "INIT"),
    (Towards::Originator, 2, "INIT-ACK"),
    (Towards::Server, 10, "COOKIE-ECHO"),
    (Towards::Originator, 11, "COOKIE-ACK"),
    (Towards::Server, 0, "DATA"),
    (Towards::Originator, 0, "DATA"),
];

impl Trace {
    /// One container's association, or two containers' by one port to one remote; with an error about
    /// the first chunk.
    pub(crate) fn association(&mut self) -> Step {
        let (port, remote) = (self.port(), self.remote());
        let mut containers = vec![At::One, At::Two];
        if self.rng.once_in(2) {
            containers.pop();
        }
        let mut volleys = Vec::new();
        for at in containers {
            let flow = self.outward(SCTP, at, port, remote);
            self.flows[flow].over = true;
            let tags = self.flows[flow].next;
            let count = 1 + self.rng.below(CHUNKS.len());
            for (way, kind, what) in CHUNKS.into_iter().take(count) {
                let chunk = self.chunk(tags, way, kind);
                volleys.push(vec![self.plain(flow, way, what, Body::Sctp(chunk))]);
            }
            let error = self.about_chunk(flow, tags);
            volleys.push(vec![error]);
        }
        Self::step("sctp", volleys)
    }

    /// A chunk of an association, whose sides want these tags.
    fn chunk(&mut self, tags: [u32; 2], way: Towards, kind: u8) -> Chunk {
        let [own, other] = match way {
            Towards::Server => tags,
            Towards::Originator => [tags[1], tags[0]],
        };
        let count = 4 * self.rng.below(100);
        let mut content = match kind {
            11 => Vec::new(),
            _ => self.rng.bytes(16 + count),
        };
        if matches!(kind, 1 | 2) {
            content[..4].copy_from_slice(&own.to_be_bytes());
            content.truncate(16);
        }
        Chunk {
            tag: if kind == 1 { 0 } else { other },
            kind,
            content,
        }
    }

    /// A router's error about the first chunk.
    fn about_chunk(&mut self, flow: usize, tags: [u32; 2]) -> Shot {
        let chunk = self.chunk(tags, Towards::Server, 1);
        let seen = self.flows[flow].received(Towards::Server);
        let quoted = Draft::new(seen, Body::Sctp(chunk));
        let kind = ([3, 1], 0, "unreachable");
        let mut shot = self.quoting(At::Lan, crate::place::STRANGER, Some(flow), quoted, kind);
        shot.label = "out unreachable".to_owned();
        shot.eligible = true;
        shot
    }
}
