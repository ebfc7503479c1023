// SPDX-License-Identifier: MIT OR Apache-2.0
//! Steps of ordinary traffic: flows are opened, used, closed and reset.

use forwarder_testkit::packet::Segment;
use forwarder_testkit::packet::proto::{ICMP, TCP, UDP};

use crate::flow::{Stage, Towards};
use crate::place::{At, CONTAINERS, GATEWAY, STRANGER};
use crate::shot::{Body, Draft};
use crate::trace::{Action, Step, Trace, flag};

/// Payload that fits everywhere.
const MOST: usize = 1200;

impl Trace {
    /// A flow of UDP or echo: some packets, some of them answered.
    pub(crate) fn open_plain(&mut self) -> Step {
        let proto = self.rng.pick(&[UDP, UDP, ICMP]);
        let flow = self.any(proto);
        let mut volleys = Vec::new();
        for way in [Towards::Server, Towards::Originator, Towards::Server] {
            let body = self.data(flow, way, MOST);
            volleys.push(vec![self.plain(flow, way, "datagram", body)]);
            if self.rng.once_in(3) {
                break;
            }
        }
        Self::step("open", volleys)
    }

    /// The handshake's segments, of which the first `count` are sent.
    pub(crate) fn handshake(&mut self, flow: usize, count: usize) -> Vec<Vec<crate::shot::Shot>> {
        let all = [
            (Towards::Server, flag::SYN, "SYN"),
            (Towards::Originator, flag::SYN | flag::ACK, "SYN-ACK"),
            (Towards::Server, flag::ACK, "ACK"),
        ];
        let mut volleys = Vec::new();
        for (way, flags, what) in all.into_iter().take(count) {
            let body = self.segment(flow, way, flags, Vec::new());
            volleys.push(vec![self.plain(flow, way, what, body)]);
        }
        volleys
    }

    /// A TCP connection.
    pub(crate) fn open_tcp(&mut self) -> Step {
        let flow = self.any(TCP);
        let volleys = self.handshake(flow, 3);
        self.flows[flow].stage = Stage::Open;
        self.flows[flow].answered = true;
        Self::step("tcp-open", volleys)
    }

    /// A connection that stays half open, or whose SYN comes twice.
    pub(crate) fn half_open(&mut self) -> Step {
        let flow = self.any(TCP);
        let count = 1 + self.rng.below(2);
        let mut volleys = self.handshake(flow, count);
        if self.rng.once_in(2) {
            let mut again = volleys[0][0].clone();
            again.tag = self.tag();
            again.label += " again";
            volleys.push(vec![again]);
        }
        self.flows[flow].over = true;
        Self::step("tcp-half-open", volleys)
    }

    /// Both sides open at once (RFC 9293 figure 8).
    pub(crate) fn simultaneous(&mut self) -> Step {
        let flow = self.any_outward(TCP);
        let mut volleys = Vec::new();
        let starts = self.flows[flow].next;
        for way in [Towards::Server, Towards::Originator] {
            let body = self.segment(flow, way, flag::SYN, Vec::new());
            volleys.push(vec![self.plain(flow, way, "SYN", body)]);
        }
        let after = self.flows[flow].next;
        for (side, way) in [Towards::Server, Towards::Originator]
            .into_iter()
            .enumerate()
        {
            self.flows[flow].next[side] = starts[side];
            let body = self.segment(flow, way, flag::SYN | flag::ACK, Vec::new());
            volleys.push(vec![self.plain(flow, way, "SYN-ACK", body)]);
        }
        self.flows[flow].next = after;
        self.flows[flow].stage = Stage::Open;
        self.flows[flow].answered = true;
        Self::step("tcp-simultaneous", volleys)
    }

    /// More packets of a live flow, in either way, some at once.
    pub(crate) fn go_on(&mut self) -> Option<Step> {
        let flow = self.live(|flow| matches!(flow.stage, Stage::Plain | Stage::Open))?;
        let mut volleys = Vec::new();
        for _ in 0..=self.rng.below(3) {
            let way = self.rng.pick(&[Towards::Server, Towards::Originator]);
            let mut volley = Vec::new();
            for _ in 0..=self.rng.below(4) {
                let body = self.data(flow, way, MOST);
                volley.push(self.plain(flow, way, "data", body));
            }
            volleys.push(volley);
        }
        Some(Self::step("data", volleys))
    }

    /// A connection is closed by one side, then by the other.
    pub(crate) fn close(&mut self) -> Option<Step> {
        let flow = self.live(|flow| flow.stage == Stage::Open)?;
        let first = self.rng.pick(&[Towards::Server, Towards::Originator]);
        let mut volleys = Vec::new();
        for (way, flags, what) in [
            (first, flag::FIN | flag::ACK, "FIN"),
            (first.back(), flag::ACK, "ACK"),
            (first.back(), flag::FIN | flag::ACK, "FIN"),
            (first, flag::ACK, "ACK"),
        ] {
            let body = self.segment(flow, way, flags, Vec::new());
            volleys.push(vec![self.plain(flow, way, what, body)]);
        }
        self.flows[flow].stage = Stage::Closed;
        Some(Self::step("tcp-close", volleys))
    }

    /// One side resets, with the sequence number that is expected.
    pub(crate) fn reset(&mut self) -> Option<Step> {
        let flow = self.live(|flow| flow.stage == Stage::Open)?;
        let way = self.rng.pick(&[Towards::Server, Towards::Originator]);
        let flags = self.rng.pick(&[flag::RST, flag::RST | flag::ACK]);
        let body = self.segment(flow, way, flags, Vec::new());
        let reset = self.plain(flow, way, "RST", body);
        self.flows[flow].stage = Stage::Closed;
        Some(Self::step("tcp-reset", vec![vec![reset]]))
    }

    /// A connection is opened again between the same ends.
    pub(crate) fn reopen(&mut self) -> Option<Step> {
        let flow = self.live(|flow| flow.stage == Stage::Closed)?;
        for next in &mut self.flows[flow].next {
            *next = next.wrapping_add(0x0010_0000);
        }
        let volleys = self.handshake(flow, 3);
        self.flows[flow].stage = Stage::Open;
        Some(Self::step("tcp-reopen", volleys))
    }

    /// Containers from the same port to the same remote, and the answers that each gets.
    pub(crate) fn clash(&mut self) -> Step {
        let (proto, port, remote) = (self.rng.pick(&[UDP, TCP, ICMP]), self.port(), self.remote());
        let mut flows = Vec::new();
        let mut opening = Vec::new();
        for at in CONTAINERS.into_iter().take(2 + self.rng.below(2)) {
            let flow = self.outward(proto, at, port, remote);
            let body = self.opening(flow);
            opening.push(vec![self.plain(flow, Towards::Server, "clash", body)]);
            flows.push(flow);
        }
        // The port that was drawn for one remote is for the next one, too.
        if proto != ICMP && self.rng.once_in(2) {
            let (at, last) = (self.flows[flows[1]].originator_at, (GATEWAY, remote.1));
            let flow = self.outward(proto, at, port, last);
            let body = self.opening(flow);
            opening.push(vec![self.plain(
                flow,
                Towards::Server,
                "clash elsewhere",
                body,
            )]);
            flows.push(flow);
        }
        self.rng.shuffle(&mut flows);
        for flow in flows {
            let flags = flag::SYN | flag::ACK;
            let body = match proto {
                TCP => self.segment(flow, Towards::Originator, flags, Vec::new()),
                _ => self.data(flow, Towards::Originator, MOST),
            };
            opening.push(vec![self.plain(flow, Towards::Originator, "clash", body)]);
            self.flows[flow].over |= proto == TCP;
        }
        Self::step("clash", opening)
    }

    /// What opens a flow.
    pub(crate) fn opening(&mut self, flow: usize) -> Body {
        match self.flows[flow].proto {
            TCP => self.segment(flow, Towards::Server, flag::SYN, Vec::new()),
            _ => self.data(flow, Towards::Server, MOST),
        }
    }

    /// The flows of a clash are ended: who had to take another port has its own again.
    pub(crate) fn after_clash(&mut self) -> Step {
        let (proto, port, remote) = (self.rng.pick(&[UDP, TCP]), self.port(), self.remote());
        let first = self.outward(proto, At::One, port, remote);
        let second = self.outward(proto, At::Two, port, remote);
        let third = self.outward(proto, At::Two, port, remote);
        let mut shots = Vec::new();
        for (flow, what) in [(first, "first"), (second, "second"), (third, "alone")] {
            let body = self.opening(flow);
            shots.push(self.plain(flow, Towards::Server, what, body));
            self.flows[flow].over = true;
        }
        let alone = shots.remove(2);
        self.parting = Some(Step {
            kind: "after-clash",
            action: Some(Action::EndFlows),
            volleys: vec![vec![alone]],
        });
        Self::step(
            "before-after-clash",
            vec![vec![shots.remove(0)], vec![shots.remove(0)]],
        )
    }

    /// A container uses the number of a published port as its own.
    pub(crate) fn published_source(&mut self) -> Option<Step> {
        let published = self.published();
        let (_, port, _) = self.rng.pick(&published);
        if !self.take(port) {
            return None;
        }
        let (at, remote) = (self.rng.pick(&CONTAINERS), self.remote());
        let proto = self.rng.pick(&[UDP, TCP]);
        let flow = self.outward(proto, at, port, remote);
        let body = self.opening(flow);
        let shot = self.plain(flow, Towards::Server, "from a published port", body);
        Some(Self::step("open", vec![vec![shot]]))
    }

    /// Many flows at once, beside one that is established.
    pub(crate) fn pressure(&mut self) -> Option<Step> {
        let established = self.live(|flow| flow.answered && flow.stage != Stage::Closed)?;
        let (at, remote) = (self.rng.pick(&CONTAINERS), self.remote());
        let mut many = Vec::new();
        for _ in 0..250 {
            let port = self.port();
            let flow = self.outward(UDP, at, port, remote);
            let body = Body::Udp(vec![1], true);
            many.push(self.plain(flow, Towards::Server, "one of many", body));
            self.flows[flow].over = true;
        }
        let mut after = Vec::new();
        for way in [Towards::Server, Towards::Originator] {
            let body = self.data(established, way, MOST);
            after.push(self.plain(established, way, "beside many", body));
        }
        Some(Self::step("pressure", vec![many, after]))
    }

    /// Others than the one that was asked answer.
    pub(crate) fn strangers(&mut self) -> Option<Step> {
        let flow = self.live(|flow| flow.kind() == "out" && flow.proto != ICMP)?;
        let remote = self.flows[flow].server;
        let mut volley = Vec::new();
        for (other, what) in [
            ((STRANGER, remote.1), "address"),
            ((remote.0, remote.1 + 1), "port"),
        ] {
            let body = match self.flows[flow].proto {
                UDP => Body::Udp(self.payload(MOST), true),
                _ => Body::Tcp(Segment {
                    flags: flag::SYN,
                    seq: self.rng.word(),
                    ..Default::default()
                }),
            };
            let ends = (crate::flow::fixed(other), crate::flow::Name::Seen(flow));
            let label = format!("from another {what}");
            volley.push(self.shot(label, At::Lan, Some(flow), Draft::new(ends, body)));
        }
        Some(Self::step("strangers", vec![volley]))
    }
}
