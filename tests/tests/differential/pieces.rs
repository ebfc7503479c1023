// SPDX-License-Identifier: MIT OR Apache-2.0
//! Steps of fragments: cut, shuffled, doubled, overlapping, and without their head.

use forwarder_testkit::packet::proto::{ICMP, UDP};

use crate::flow::{Stage, Towards};
use crate::shot::Pieces;
use crate::trace::{Step, Trace};

impl Trace {
    /// A datagram in pieces, of a new flow or of a live one, in either way.
    pub(crate) fn in_pieces(&mut self) -> Step {
        let live = self.live(|flow| flow.stage == Stage::Plain);
        let (flow, way) = match live.filter(|_| !self.rng.once_in(3)) {
            Some(flow) if self.flows[flow].answered => {
                (flow, self.rng.pick(&[Towards::Server, Towards::Originator]))
            }
            Some(flow) => (flow, Towards::Server),
            None => {
                let proto = self.rng.pick(&[UDP, UDP, ICMP]);
                (self.any(proto), Towards::Server)
            }
        };
        let mut body = self.data(flow, way, 0);
        let bytes = self.rng.bytes(900 + 8);
        match &mut body {
            crate::shot::Body::Udp(payload, _) | crate::shot::Body::Echo(_, _, payload) => {
                *payload = bytes;
            }
            _ => {}
        }
        let mut ends: Vec<usize> = (0..=self.rng.below(3))
            .map(|_| 8 * (2 + self.rng.below(110)))
            .collect();
        ends.sort_unstable();
        ends.dedup();
        let mut order: Vec<usize> = (0..=ends.len()).collect();
        let (pieces, what) = match self.rng.below(6) {
            0 => (Pieces::Cut(ends, order), "in order"),
            1 => {
                order.reverse();
                (Pieces::Cut(ends, order), "reversed")
            }
            2 => {
                self.rng.shuffle(&mut order);
                (Pieces::Cut(ends, order), "shuffled")
            }
            3 => {
                let twice = order[self.rng.below(order.len() - 1)];
                order.insert(order.len() - 1, twice);
                (Pieces::Cut(ends, order), "doubled")
            }
            4 => {
                order.remove(0);
                (Pieces::Cut(ends, order), "headless")
            }
            _ => (Pieces::Overlap(ends[0]), "overlapping"),
        };
        let mut shot = self.packet(flow, way, what, body);
        shot.draft.df = false;
        shot.draft.pieces = pieces;
        if matches!(what, "headless" | "overlapping") {
            self.flows[flow].over |= !self.flows[flow].answered;
        }
        Self::step("fragment", vec![vec![shot]])
    }
}
