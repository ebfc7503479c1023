//! A packet's story, aside: ICMP errors about our flows, from either side and from the host itself.

use super::{Passage, Side, Steps, Way, mark};
use crate::abi::Tuple;
use crate::family::Family;
use crate::flow;
use crate::icmp::{self, Outer};
use crate::reason::Reason;

/// ICMP errors: about our flows from either side, and the host's own.
impl<F: Family, T: Steps<F>> Passage<'_, F, T> {
    /// Carries an ICMP error to the one who sent the packet that it quotes: `None` if no flow did.
    #[inline(always)]
    pub fn carry_error(&mut self) -> Option<Reason> {
        let quote = icmp::quote(&self.frame, self.packet)?;
        let hit = flow::find(self.tables, &quote.tuple.reversed())?;
        let now = self.tables.now();
        if !flow::is_current(self.tables, hit.flow, now) {
            return None;
        }
        let answers = hit.flow.tuples[hit.dir & 1].get();
        let sent = hit.flow.tuples[(hit.dir ^ 1) & 1].get();
        let from = self.packet.tuple.src;
        let fits = self.packet.tuple.dst == quote.tuple.src
            && self.comes_from(&hit)
            && (self.side == Side::Outside || from == answers.src)
            && !icmp::is_redirect(&self.frame, self.packet);
        if !fits {
            return Some(Reason::IcmpStray);
        }
        let src = if from == answers.src { sent.dst } else { from };
        let way = self.steer(&hit, now);
        let hop = match way {
            Way::Peer(_) | Way::Neighbour(..) => true,
            // With a source of its own it can go by the kernel: only the destination changes.
            Way::HandOn(_) if src == from => false,
            Way::HandOn(_) | Way::Refuse(_) => return Some(Reason::IcmpStray),
        };
        let outer = Outer {
            src,
            dst: sent.src,
            hop,
        };
        icmp::restore(&mut self.frame, self.packet, &quote, &sent, &outer);
        match way {
            Way::Peer(endpoint) => {
                let _ = self.frame.write(0, endpoint.macs);
                self.tables.to_peer(endpoint.ifindex);
                Some(Reason::IcmpError)
            }
            Way::Neighbour(ifindex, next_hop) => {
                self.tables.to_neighbour(ifindex, next_hop);
                Some(Reason::IcmpError)
            }
            Way::HandOn(reason) => {
                self.tables.mark(mark::flow(hit.index, hit.dir, false));
                Some(reason)
            }
            Way::Refuse(_) => None,
        }
    }

    /// The host's own error about a packet that it was handed: its quote shows a translated one.
    #[inline(always)]
    pub fn restore_own_error(&mut self) -> Option<Reason> {
        let quote = icmp::quote(&self.frame, self.packet);
        let hit = quote.and_then(|quote| flow::find(self.tables, &quote.tuple.reversed()));
        let (Some(quote), Some(hit)) = (quote, hit) else {
            // Its flow has ended, or had another port: it must not show a container's address.
            let quoted = F::header(&self.frame, icmp::quoted_at(self.packet)).ok()?;
            return self
                .tables
                .subnet(quoted.dst)
                .is_some()
                .then_some(Reason::IcmpStray);
        };
        let sent = hit.flow.tuples[(hit.dir ^ 1) & 1].get();
        let Tuple { src, dst, .. } = self.packet.tuple;
        let outer = Outer {
            src,
            dst,
            hop: false,
        };
        icmp::restore(&mut self.frame, self.packet, &quote, &sent, &outer)
            .then_some(Reason::HostError)
    }
}
