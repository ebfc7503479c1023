// SPDX-License-Identifier: MIT OR Apache-2.0
//! Steps of packets that are not as they should be, or not where they should be.

use std::net::Ipv4Addr;

use forwarder_testkit::packet::Segment;
use forwarder_testkit::packet::proto::{ICMP, TCP, UDP};

use crate::flow::{Flow, Stage, Towards, fixed};
use crate::place::{At, CONTAINERS, End, GATEWAY, HOST, NARROW, NEAR};
use crate::shot::{Body, Damage, Draft, Shot};
use crate::trace::{Action, Step, Trace, flag};

/// IP options that hinder nobody, and some that routers fill in: no operation, router alert, record
/// route, time stamp.
const OPTIONS: [&[u8]; 4] = [
    &[1, 1, 1, 0],
    &[148, 4, 0, 0],
    &[7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    &[1, 1, 1, 1],
];

/// Flag bytes that open no connection by the book.
const STRAYS: [(u8, &str); 6] = [
    (flag::SYN | flag::ACK, "SYN-ACK"),
    (flag::FIN | flag::ACK, "FIN"),
    (flag::RST, "RST"),
    (flag::ACK, "ACK"),
    (flag::SYN | flag::FIN, "SYN-FIN"),
    (0, "nothing"),
];

impl Trace {
    /// A packet of a live flow or of a new one, in any way that has been opened.
    fn some_packet(&mut self, what: &str) -> (usize, Shot) {
        let plain = |flow: &Flow| matches!(flow.stage, Stage::Plain | Stage::Open);
        if let Some(flow) = self.live(plain).filter(|_| !self.rng.once_in(3)) {
            let way = match self.flows[flow].answered {
                true => self.rng.pick(&[Towards::Server, Towards::Originator]),
                false => Towards::Server,
            };
            let body = self.data(flow, way, 600);
            return (flow, self.packet(flow, way, what, body));
        }
        let flow = self.any(UDP);
        let body = self.opening(flow);
        (flow, self.packet(flow, Towards::Server, what, body))
    }

    /// A packet at the end of its way.
    pub(crate) fn hops(&mut self) -> Step {
        let ttl = self.rng.pick(&[0, 1, 1, 2]);
        let (_, mut shot) = self.some_packet(["TTL 0", "TTL 1", "TTL 2"][usize::from(ttl)]);
        shot.draft.ttl = ttl;
        Self::step("ttl", vec![vec![shot]])
    }

    /// A packet with IP options.
    pub(crate) fn with_options(&mut self) -> Step {
        let (_, mut shot) = self.some_packet("options");
        shot.draft.options = self.rng.pick(&OPTIONS).to_vec();
        Self::step("options", vec![vec![shot]])
    }

    /// A packet with a wrong checksum. Nothing more is sent of its flow.
    pub(crate) fn damaged(&mut self) -> Step {
        let header = self.rng.once_in(4);
        let what = if header { "header" } else { "transport" };
        let (flow, mut shot) = self.some_packet(what);
        shot.draft.damage = if header {
            Damage::Header
        } else {
            Damage::Transport
        };
        if let Body::Udp(_, checked) = &mut shot.draft.body {
            *checked = true;
        }
        self.flows[flow].over = true;
        Self::step("checksum", vec![vec![shot]])
    }

    /// A segment of no connection.
    pub(crate) fn stray_segment(&mut self) -> Step {
        let flow = self.any(TCP);
        self.flows[flow].over = true;
        let (flags, what) = self.rng.pick(&STRAYS);
        let segment = Segment {
            flags,
            seq: self.rng.word(),
            ack: if flags & flag::ACK == 0 {
                0
            } else {
                self.rng.word()
            },
            ..Segment::default()
        };
        let shot = self.packet(flow, Towards::Server, what, Body::Tcp(segment));
        Self::step("tcp-stray", vec![vec![shot]])
    }

    /// A segment outside of its connection's window. Nothing more is sent of it.
    pub(crate) fn outside_window(&mut self) -> Option<Step> {
        let flow = self.live(|flow| flow.stage == Stage::Open)?;
        let way = self.rng.pick(&[Towards::Server, Towards::Originator]);
        let (off, what) = self
            .rng
            .pick(&[(0xf000_0000_u32, "below"), (0x1000_0000, "above")]);
        let flags = self.rng.pick(&[flag::RST, flag::PSH | flag::ACK]);
        let side = usize::from(way == Towards::Originator);
        let own = &self.flows[flow];
        let segment = Segment {
            flags,
            seq: own.next[side].wrapping_add(off),
            ack: if flags == flag::RST {
                0
            } else {
                own.next[side ^ 1]
            },
            payload: if flags == flag::RST {
                vec![]
            } else {
                vec![7; 10]
            },
            ..Segment::default()
        };
        self.flows[flow].over = true;
        let kind = if flags == flag::RST { "RST" } else { "data" };
        let shot = self.packet(flow, way, &format!("{kind} {what}"), Body::Tcp(segment));
        Some(Self::step("tcp-window", vec![vec![shot]]))
    }

    /// One packet that belongs to no flow of the trace.
    fn lone(&mut self, label: &str, at: At, from: End, to: End, body: Body) -> Shot {
        let draft = Draft::new((fixed(from), fixed(to)), body);
        self.shot(label.to_owned(), at, None, draft)
    }

    /// A datagram, a SYN or an echo request.
    fn question(&mut self) -> (Body, &'static str) {
        let seq = self.rng.word();
        match self.rng.below(3) {
            0 => (Body::Udp(self.payload(300), true), "UDP"),
            1 => {
                let flags = flag::SYN;
                (
                    Body::Tcp(Segment {
                        flags,
                        seq,
                        ..Segment::default()
                    }),
                    "SYN",
                )
            }
            _ => (Body::Echo(false, seq as u16, self.payload(300)), "echo"),
        }
    }

    /// To the host itself, where nobody listens.
    pub(crate) fn ask_host(&mut self) -> Step {
        let (at, from) = (self.rng.pick(&[At::Lan, At::One, At::Other]), self.port());
        let gateway = match at {
            At::Lan => HOST,
            At::Other => Ipv4Addr::new(172, 28, 2, 1),
            _ => Ipv4Addr::new(172, 28, 1, 1),
        };
        let to = (
            self.rng.pick(&[HOST, gateway]),
            20_000 + self.rng.below(100) as u16,
        );
        let (body, what) = self.question();
        let shot = self.lone(what, at, (at.address(), from), to, body);
        Self::step("to-host", vec![vec![shot]])
    }

    /// From outside straight to a container.
    pub(crate) fn direct(&mut self) -> Step {
        let (to, from) = (self.rng.pick(&CONTAINERS), self.port());
        let published = self.published().into_iter().find(|row| row.0 == to);
        let (port, which) = match published {
            Some((_, _, port)) if self.rng.once_in(2) => (port, "published"),
            _ => (5555, "unpublished"),
        };
        let (body, what) = self.question();
        let label = format!("{which} {what}");
        let shot = self.lone(&label, At::Lan, (NEAR, from), (to.address(), port), body);
        Self::step("direct", vec![vec![shot]])
    }

    /// From a container to another one: of its network, or of another.
    pub(crate) fn among_containers(&mut self) -> Step {
        let (from, to) = self.rng.pick(&[
            (At::One, At::Two),
            (At::One, At::Other),
            (At::Other, At::Two),
        ]);
        let (port, body) = (self.port(), Body::Udp(self.payload(300), true));
        let same = from.net().map(|net| net.name) == to.net().map(|net| net.name);
        let station = Some(to).filter(|_| same && !self.rng.once_in(4));
        let (kind, what) = match (same, station) {
            (true, Some(_)) => ("bridged", "to its station"),
            (true, None) => ("bridged", "by the gateway"),
            (false, _) => ("isolated", "by the gateway"),
        };
        let mut shot = self.lone(
            what,
            from,
            (from.address(), port),
            (to.address(), 5555),
            body,
        );
        shot.draft.station = station;
        shot.draft.ttl = 9;
        Self::step(kind, vec![vec![shot]])
    }

    /// From a container with an address that is not its own.
    pub(crate) fn spoofed(&mut self) -> Step {
        let at = self.rng.pick(&CONTAINERS);
        let (from, what) = self.rng.pick(&[
            (Ipv4Addr::new(172, 28, 1, 77), "free address"),
            (Ipv4Addr::new(203, 0, 113, 5), "foreign address"),
            (Ipv4Addr::new(127, 0, 0, 1), "loopback"),
        ]);
        let port = self.port();
        let body = Body::Udp(self.payload(100), true);
        let shot = self.lone(what, at, (from, port), (NEAR, 53), body);
        Self::step("spoofed", vec![vec![shot]])
    }

    /// To addresses that nobody has.
    pub(crate) fn nowhere(&mut self) -> Step {
        let at = self.rng.pick(&CONTAINERS);
        let (to, what) = self.rng.pick(&[
            (Ipv4Addr::new(224, 0, 0, 5), "multicast"),
            (Ipv4Addr::BROADCAST, "broadcast"),
            (Ipv4Addr::new(240, 0, 0, 1), "reserved"),
            (Ipv4Addr::new(127, 0, 0, 1), "loopback"),
        ]);
        let port = self.port();
        let body = Body::Udp(self.payload(100), true);
        let shot = self.lone(what, at, (at.address(), port), (to, 53), body);
        Self::step("nowhere", vec![vec![shot]])
    }

    /// A protocol without ports that we know.
    pub(crate) fn other_protocol(&mut self) -> Step {
        let (at, from) = (self.rng.pick(&CONTAINERS), self.port());
        let (proto, what, bytes) = self.rng.pick(&[
            (47_u8, "GRE", &[0, 0, 8, 0, 0x45, 0, 0, 0][..]),
            (50, "ESP", &[1, 2, 3, 4, 0, 0, 0, 1, 9, 9, 9, 9]),
            (253, "253", &[1, 2, 3]),
        ]);
        let body = Body::Raw(proto, bytes.to_vec());
        let shot = self.lone(what, at, (at.address(), from), (NEAR, 0), body);
        Self::step("protocol", vec![vec![shot]])
    }

    /// Another question than echo, of ICMP, its answer, and an answer that nobody asked for.
    pub(crate) fn other_query(&mut self) -> Step {
        let at = self.rng.pick(&CONTAINERS);
        let (asks, what) = self
            .rng
            .pick(&[(13, "timestamp"), (15, "information"), (17, "mask")]);
        let id = self.rng.word().to_be_bytes();
        let body = |kind, id: [u8; 4]| {
            Body::Raw(
                ICMP,
                [&[kind, 0, 0, 0, id[0], id[1], 0, 1][..], &[0; 12]].concat(),
            )
        };
        let asked = self.lone(what, at, (at.address(), 0), (NEAR, 0), body(asks, id));
        let mut answer = |kind, what: &str| {
            let label = format!("{what} reply");
            self.lone(&label, At::Lan, (NEAR, 0), (HOST, 0), body(kind, id))
        };
        let answered = answer(asks + 1, what);
        let stray = answer(if asks == 17 { 14 } else { asks + 3 }, "stray");
        Self::step("icmp-query", vec![vec![asked], vec![answered, stray]])
    }

    /// Larger than the next link: by the route's MTU outwards, by the network's inwards.
    pub(crate) fn large(&mut self) -> Step {
        let (flow, size, what) = if self.rng.once_in(2) {
            let (at, port) = (self.rng.pick(&[At::One, At::Two]), self.port());
            (
                self.outward(UDP, at, port, (NARROW, 53)),
                1400,
                "out over the route's MTU",
            )
        } else {
            let flow = self.inward(UDP);
            (flow, 1450, "in over the network's MTU")
        };
        let body = Body::Udp(self.rng.bytes(size), true);
        let mut shot = self.packet(flow, Towards::Server, what, body);
        shot.draft.df = self.rng.once_in(2);
        self.flows[flow].over = true;
        Self::step("large", vec![vec![shot]])
    }

    /// The uplink's MTU is smaller for a while.
    pub(crate) fn narrow_uplink(&mut self) -> Step {
        let mut volley = Vec::new();
        for df in [true, false] {
            let (at, port) = (self.rng.pick(&[At::One, At::Two]), self.port());
            let flow = self.outward(UDP, at, port, (GATEWAY, 53));
            let body = Body::Udp(self.rng.bytes(1400), true);
            let mut shot = self.packet(flow, Towards::Server, "over the uplink's MTU", body);
            shot.draft.df = df;
            self.flows[flow].over = true;
            volley.push(shot);
        }
        self.parting = Some(Step {
            kind: "mtu-restored",
            action: Some(Action::Mtu(1500)),
            volleys: Vec::new(),
        });
        Step {
            kind: "mtu",
            action: Some(Action::Mtu(1300)),
            volleys: vec![volley],
        }
    }

    /// A container goes and comes again, with its port published or not.
    pub(crate) fn churn(&mut self) -> Step {
        let at = At::Two;
        for flow in self.flows.iter_mut().filter(|flow| flow.touches(at)) {
            flow.over = true;
        }
        self.two_is_published = !self.two_is_published;
        let (port, from) = (self.port(), self.port());
        let out = self.outward(UDP, at, port, (NEAR, 53));
        let body = Body::Udp(vec![1, 2, 3], true);
        let out = self.plain(out, Towards::Server, "from a new container", body.clone());
        let asked = self.lone("to its port", At::Lan, (NEAR, from), (HOST, 8082), body);
        Step {
            kind: "churn",
            action: Some(Action::Churn(at, self.two_is_published)),
            volleys: vec![vec![out], vec![asked]],
        }
    }
}
