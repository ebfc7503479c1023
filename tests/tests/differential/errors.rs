// SPDX-License-Identifier: MIT OR Apache-2.0
//! Steps of ICMP errors about flows, from either end and from routers between.

use std::net::Ipv4Addr;

use forwarder_testkit::packet::Segment;
use forwarder_testkit::packet::proto::{ICMP, UDP};

use crate::flow::{Name, Stage, Towards};
use crate::place::{At, NEAR, STRANGER};
use crate::shot::{Body, Damage, Draft, Quote, Shot};
use crate::trace::{Step, Trace};

/// Types and codes, and the word that stands behind the checksum.
const KINDS: [([u8; 2], u32, &str); 9] = [
    ([3, 0], 0, "unreachable"),
    ([3, 1], 0, "unreachable"),
    ([3, 3], 0, "unreachable"),
    ([3, 4], 1200, "frag-needed"),
    ([3, 13], 0, "prohibited"),
    ([4, 0], 0, "quench"),
    ([11, 0], 0, "time-exceeded"),
    ([11, 1], 0, "time-exceeded"),
    ([12, 0], 0x0400_0000, "parameter"),
];

/// A redirect of the host to another gateway.
const REDIRECT: ([u8; 2], u32, &str) = ([5, 1], 0xc612_0133, "redirect");

impl Trace {
    /// An error about a packet that came, by the one who got it or by somebody before.
    pub(crate) fn error(&mut self) -> Option<Step> {
        let flow = self.live(|_| true)?;
        let way = match self.flows[flow].answered {
            true => self.rng.pick(&[Towards::Server, Towards::Originator]),
            false => Towards::Server,
        };
        let kind = match self.rng.below(10) {
            0 => REDIRECT,
            _ => self.rng.pick(&KINDS),
        };
        let mut shot = self.about(flow, way, kind);
        shot.eligible = kind.2 != "redirect";
        // Nothing of the flow has changed.
        let body = self.data(flow, Towards::Server, 100);
        let after = self.plain(flow, Towards::Server, "after an error", body);
        let volleys = if self.flows[flow].stage == Stage::Closed {
            vec![vec![shot]]
        } else {
            vec![vec![shot], vec![after]]
        };
        Some(Self::step("error", volleys))
    }

    /// An error whose checksum is wrong.
    pub(crate) fn damaged_error(&mut self) -> Option<Step> {
        let flow = self.live(|_| true)?;
        let kind = self.rng.pick(&KINDS);
        let mut shot = self.about(flow, Towards::Server, kind);
        shot.draft.damage = Damage::Transport;
        Some(Self::step("error-checksum", vec![vec![shot]]))
    }

    /// An error about nothing that was ever sent.
    pub(crate) fn stray_error(&mut self) -> Step {
        let at = self.rng.pick(&[At::Lan, At::One, At::Two, At::Other]);
        let port = self.port();
        let quoted = match at {
            At::Lan => (Name::Fixed(crate::place::HOST, port), Name::Fixed(NEAR, 53)),
            _ => (Name::Fixed(NEAR, 53), Name::Fixed(at.address(), port)),
        };
        let body = Body::Udp(self.payload(200), true);
        let kind = self.rng.pick(&KINDS);
        let shot = self.quoting(at, at.address(), None, Draft::new(quoted, body), kind);
        Self::step("error-stray", vec![vec![shot]])
    }

    /// An error about a flow that is for somebody else than the quoted packet's sender.
    pub(crate) fn misdirected_error(&mut self) -> Option<Step> {
        let flow = self.live(|flow| flow.kind() == "out" || flow.kind() == "in")?;
        let way = match self.flows[flow].answered {
            true => self.rng.pick(&[Towards::Server, Towards::Originator]),
            false => Towards::Server,
        };
        let kind = self.rng.pick(&KINDS);
        let mut shot = self.about(flow, way, kind);
        let other = match shot.at {
            // An address that the host has, too.
            At::Lan => Ipv4Addr::new(172, 28, 1, 1),
            _ => STRANGER,
        };
        shot.draft.ends.1 = Name::Fixed(other, 0);
        Some(Self::step("error-misdirected", vec![vec![shot]]))
    }

    /// An error about a packet of a flow that goes this way, as its receiver sees it.
    fn about(&mut self, flow: usize, way: Towards, kind: ([u8; 2], u32, &str)) -> Shot {
        let own = self.flows[flow].clone();
        let at = own.receiver(way);
        let receiver = match way {
            Towards::Server => own.server.0,
            Towards::Originator => own.originator.0,
        };
        let body = match own.proto {
            UDP => Body::Udp(self.payload(300), true),
            ICMP => Body::Echo(way == Towards::Originator, 1, self.payload(300)),
            _ => Body::Tcp(Segment {
                flags: 0x10,
                seq: own.next[usize::from(way == Towards::Originator)],
                ack: own.next[usize::from(way == Towards::Server)],
                payload: self.payload(300),
                ..Segment::default()
            }),
        };
        let mut quoted = Draft::new(own.received(way), body);
        quoted.ttl = 1 + self.rng.below(200) as u8;
        quoted.tos = self.rng.word() as u8;
        let router = at == At::Lan && self.rng.once_in(2);
        let from = if router { STRANGER } else { receiver };
        let mut shot = self.quoting(at, from, Some(flow), quoted, kind);
        let (back, by) = (
            if way == Towards::Originator {
                " back"
            } else {
                ""
            },
            if router { " by a router" } else { "" },
        );
        shot.label = format!("{}{back} {}{by}", own.kind(), kind.2);
        shot
    }

    /// An error from somewhere that quotes a packet.
    pub(crate) fn quoting(
        &mut self,
        at: At,
        from: Ipv4Addr,
        flow: Option<usize>,
        packet: Draft,
        kind: ([u8; 2], u32, &str),
    ) -> Shot {
        let extended = kind.0[0] != 4 && kind.0[0] != 5 && kind.0[0] != 12 && self.rng.once_in(3);
        let echo_or_datagram = !matches!(packet.body, Body::Tcp(_));
        let length = match self.rng.below(3) {
            0 => 8,
            // Cut inside of a header that has its checksum at its end.
            1 if !echo_or_datagram => 18,
            _ if extended => 108,
            _ => 520,
        };
        let to = packet.ends.0;
        let quote = Quote {
            kind: kind.0,
            word: kind.1,
            packet,
            length,
            extended,
        };
        let ends = (Name::Fixed(from, 0), to);
        let mut draft = Draft::new(ends, Body::Error(Box::new(quote)));
        draft.tos = self.rng.pick(&[0, 0xc0]);
        draft.df = self.rng.once_in(2);
        self.shot(kind.2.to_owned(), at, flow, draft)
    }
}
