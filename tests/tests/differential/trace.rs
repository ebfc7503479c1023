// SPDX-License-Identifier: MIT OR Apache-2.0
//! The trace of one seed: steps, drawn one after the other, and the flows that they go on with.

use std::collections::BTreeSet;

use forwarder_testkit::packet::Segment;
use forwarder_testkit::packet::proto::{ICMP, TCP, UDP};
use forwarder_testkit::rng::Rng;

use crate::flow::{Flow, Stage, Towards};
use crate::place::{At, CONTAINERS, End, FAR, HOST, NEAR, PUBLISHED};
use crate::shot::{Body, Draft, Shot};

/// Flag bytes of TCP.
pub(crate) mod flag {
    pub(crate) const FIN: u8 = 1;
    pub(crate) const SYN: u8 = 2;
    pub(crate) const RST: u8 = 4;
    pub(crate) const PSH: u8 = 8;
    pub(crate) const ACK: u8 = 16;
}

/// Something that is done to the host.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    /// All flows are ended.
    EndFlows,
    /// A container is removed and run anew, with its ports published or not.
    Churn(At, bool),
    /// The uplink's MTU changes.
    Mtu(u16),
}

/// A step: packets that are sent at once, then those that answer them, and so on.
#[derive(Debug)]
pub(crate) struct Step {
    /// What it is about.
    pub(crate) kind: &'static str,
    /// What is done before.
    pub(crate) action: Option<Action>,
    /// The packets.
    pub(crate) volleys: Vec<Vec<Shot>>,
}

/// The state of a trace.
pub(crate) struct Trace {
    /// The choices.
    pub(crate) rng: Rng,
    /// All flows so far.
    pub(crate) flows: Vec<Flow>,
    /// Whether the second container publishes its port.
    pub(crate) two_is_published: bool,
    /// A step that has to come next.
    pub(crate) parting: Option<Step>,
    ports: BTreeSet<u16>,
    tag: u16,
}

impl Trace {
    /// The trace of a seed.
    pub(crate) fn new(seed: u64, two_is_published: bool) -> Self {
        let tag = (seed % 24) * 2500 + 1;
        Self {
            rng: Rng::new(seed),
            flows: Vec::new(),
            two_is_published,
            parting: None,
            // Those of markers and probes.
            ports: (40_000..40_010).collect(),
            tag: tag as u16,
        }
    }

    /// An identification that nothing else has.
    pub(crate) fn tag(&mut self) -> u16 {
        self.tag += 1;
        self.tag
    }

    /// A port that nothing else has, of any class.
    pub(crate) fn port(&mut self) -> u16 {
        loop {
            let port = match self.rng.below(8) {
                0 => 1 + self.rng.below(511),
                1 => 512 + self.rng.below(512),
                _ => 1024 + self.rng.below(64_512),
            };
            if self.take(port as u16) {
                return port as u16;
            }
        }
    }

    /// Takes a port, unless something has it.
    pub(crate) fn take(&mut self, port: u16) -> bool {
        self.ports.insert(port)
    }

    /// A packet of a flow or about one.
    pub(crate) fn shot(
        &mut self,
        label: String,
        at: At,
        flow: Option<usize>,
        draft: Draft,
    ) -> Shot {
        Shot {
            label,
            at,
            tag: self.tag(),
            flow,
            draft,
            eligible: false,
        }
    }

    /// A packet of a flow, as its sender sends it.
    pub(crate) fn packet(&mut self, flow: usize, way: Towards, what: &str, body: Body) -> Shot {
        let own = &self.flows[flow];
        let (at, ends) = (own.sender(way), own.sent(way));
        let back = if way == Towards::Originator {
            " back"
        } else {
            ""
        };
        let label = format!("{}{back} {what}", own.kind());
        self.shot(label, at, Some(flow), Draft::new(ends, body))
    }

    /// The same, decorated at random in ways that hinder nobody.
    pub(crate) fn plain(&mut self, flow: usize, way: Towards, what: &str, body: Body) -> Shot {
        let mut shot = self.packet(flow, way, what, body);
        shot.draft.tos = self.rng.word() as u8;
        shot.draft.df = self.rng.once_in(2);
        shot.draft.ttl = 3 + self.rng.below(253) as u8;
        shot.draft.trailer = self.rng.pick(&[0, 0, 0, 1, 6]);
        shot.eligible = true;
        shot
    }

    /// A step of these volleys.
    pub(crate) fn step(kind: &'static str, volleys: Vec<Vec<Shot>>) -> Step {
        Step {
            kind,
            action: None,
            volleys,
        }
    }

    /// The published ports that there are now.
    pub(crate) fn published(&self) -> Vec<(At, u16, u16)> {
        let rows = PUBLISHED.iter().copied();
        rows.filter(|row| row.0 != At::Two || self.two_is_published)
            .collect()
    }

    fn add(&mut self, proto: u8, from: (At, End), asked: End, to: (At, End)) -> usize {
        let stage = if proto == TCP {
            Stage::Opening
        } else {
            Stage::Plain
        };
        let number = self.flows.len();
        let next = [self.rng.word(), self.rng.word()];
        self.flows.push(Flow {
            number,
            proto,
            originator_at: from.0,
            originator: from.1,
            asked,
            server_at: to.0,
            server: to.1,
            stage,
            next,
            answered: false,
            over: false,
        });
        number
    }

    /// A flow out of a container, from a port of its own or a given one.
    pub(crate) fn outward(&mut self, proto: u8, at: At, port: u16, remote: End) -> usize {
        let remote = (remote.0, if proto == ICMP { 0 } else { remote.1 });
        self.add(proto, (at, (at.address(), port)), remote, (At::Lan, remote))
    }

    /// A remote and a port.
    pub(crate) fn remote(&mut self) -> End {
        let port = self.rng.pick(&[53, 80, 443, 9999, 33_000]);
        (self.rng.pick(&[NEAR, FAR]), port)
    }

    /// A flow to a published port.
    pub(crate) fn inward(&mut self, proto: u8) -> usize {
        let published = self.published();
        let (at, port, inside) = self.rng.pick(&published);
        let from = (self.rng.pick(&[NEAR, FAR]), self.port());
        let to = (at, (at.address(), inside));
        self.add(proto, (At::Lan, from), (HOST, port), to)
    }

    /// A flow from a container to a published port.
    pub(crate) fn hairpin(&mut self, proto: u8) -> usize {
        let published = self.published();
        let (at, port, inside) = self.rng.pick(&published);
        let client = self.rng.pick(&CONTAINERS);
        let from = (client.address(), self.port());
        let to = (at, (at.address(), inside));
        self.add(proto, (client, from), (HOST, port), to)
    }

    /// A flow of any kind.
    pub(crate) fn any(&mut self, proto: u8) -> usize {
        match self.rng.below(10) {
            0..=2 if proto != ICMP => self.inward(proto),
            3..=4 if proto != ICMP => self.hairpin(proto),
            _ => self.any_outward(proto),
        }
    }

    /// A flow out of any container.
    pub(crate) fn any_outward(&mut self, proto: u8) -> usize {
        let (at, port, remote) = (self.rng.pick(&CONTAINERS), self.port(), self.remote());
        self.outward(proto, at, port, remote)
    }

    /// A live flow that fits.
    pub(crate) fn live(&mut self, fits: impl Fn(&Flow) -> bool) -> Option<usize> {
        let live = self.flows.iter().filter(|flow| !flow.over && fits(flow));
        let live: Vec<_> = live.map(|flow| flow.number).collect();
        (!live.is_empty()).then(|| self.rng.pick(&live))
    }

    /// The next packet of a flow in that way: its kind of data, in sequence. Sent or not, it counts.
    pub(crate) fn data(&mut self, flow: usize, way: Towards, most: usize) -> Body {
        let payload = self.payload(most);
        if way == Towards::Originator {
            self.flows[flow].answered = true;
        }
        match self.flows[flow].proto {
            UDP => Body::Udp(payload, !self.rng.once_in(4)),
            ICMP => Body::Echo(way == Towards::Originator, self.rng.word() as u16, payload),
            _ => self.segment(flow, way, flag::PSH | flag::ACK, payload),
        }
    }

    /// The next segment of a connection.
    pub(crate) fn segment(
        &mut self,
        flow: usize,
        way: Towards,
        flags: u8,
        payload: Vec<u8>,
    ) -> Body {
        let own = &mut self.flows[flow];
        let side = usize::from(way == Towards::Originator);
        let (seq, ack) = (own.next[side], own.next[side ^ 1]);
        let counted = u32::from(flags & flag::SYN != 0) + u32::from(flags & flag::FIN != 0);
        own.next[side] = seq.wrapping_add(payload.len() as u32 + counted);
        let ack = if flags & flag::ACK == 0 { 0 } else { ack };
        let mut options = Vec::new();
        if flags & flag::SYN != 0 {
            options = self
                .rng
                .pick(&[&[][..], &[2, 4, 5, 0xb4], &[2, 4, 5, 0xb4, 1, 3, 3, 2]])
                .to_vec();
        }
        Body::Tcp(Segment {
            options,
            payload,
            ..Segment::new(flags, (seq, ack), b"")
        })
    }

    /// Up to that many bytes, often few.
    pub(crate) fn payload(&mut self, most: usize) -> Vec<u8> {
        let most = self.rng.pick(&[0, 1, 20, most]);
        let count = self.rng.below(most + 1);
        self.rng.bytes(count)
    }
}
