// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random traffic that finds its way deep into a world: new flows, answers, packets handed on, ICMP
//! errors about flows, the host's own.

use std::cell::RefCell;
use std::collections::VecDeque;

use forwarder_common::abi::{self, OUTSIDE, Tuple};
use forwarder_common::family::{Be32, Be128, V4};
use forwarder_common::parse::proto;
use forwarder_common::pipeline::mark;

use super::damage::damage;
use super::model::frames::{ACK, FIN, PSH, RST, SYN, Spec, TIME_EXCEEDED, UNREACHABLE, cut, ip};
use super::model::host::{
    APP, APP_VETH, BARE, BRIDGE, CLIENT, FAR, FAR_VETH, GATEWAY, HOST, OTHER_BRIDGE, REMOTE,
    SECOND, UPLINK, WEB, WEB_VETH, far_mac, mac,
};
use super::model::ipv6::{
    APP6, CLIENT6, FAR6, GATEWAY6, HOST6, WEB6, frame as ipv6_frame, neighbour,
};
use super::model::{Arrival, Dice, Hook, Host, Outcome};

/// One packet of a sequence.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) hook: Hook,
    pub(crate) arrival: Arrival,
    pub(crate) frame: Vec<u8>,
}

/// A flow's tuple, its other one, and the hook, device and address where its packets arrive.
type Spot = (Tuple<V4>, Tuple<V4>, Hook, u32, [u8; 6]);

/// A source of packets.
pub(crate) struct Traffic {
    dice: RefCell<Dice>,
    /// Packets that the kernel's stack would carry on, as they left a hook.
    under_way: Vec<(Outcome, Vec<u8>, u32)>,
    /// What comes before anything else does: a datagram's pieces.
    pieces: VecDeque<Case>,
}

impl Traffic {
    pub(crate) fn new(seed: u64) -> Self {
        // Whatever went before, both sides expect the same next piece from here on.
        let first = Spec::udp((CLIENT, 1), (HOST, 1))
            .payload(8)
            .fragment(0x2000);
        let first = Case {
            hook: Hook::OutsideIn,
            arrival: Arrival {
                ifindex: UPLINK,
                mark: mark::BACK,
                ..Arrival::default()
            },
            frame: first.between(mac(UPLINK), far_mac(UPLINK)).build(),
        };
        Self {
            dice: RefCell::new(Dice::new(seed)),
            under_way: Vec::new(),
            pieces: VecDeque::from([first]),
        }
    }

    /// Tells what became of a packet.
    pub(crate) fn learn(&mut self, case: &Case, outcome: &Outcome, after: &[u8]) {
        if outcome.passes() && after.len() > 34 && mark::kind(outcome.mark) != mark::NONE {
            let room = self.under_way.len() < 64;
            let at = self.dice.get_mut().below(64);
            let came_by = match case.arrival.ifindex {
                // It is to go back there.
                _ if mark::kind(outcome.mark) == mark::BACK => case.arrival.came_by,
                // Behind the veth comes the bridge.
                WEB_VETH | APP_VETH => BRIDGE,
                FAR_VETH => OTHER_BRIDGE,
                ifindex => ifindex,
            };
            let entry = (*outcome, after.to_vec(), came_by);
            if room {
                self.under_way.push(entry);
            } else {
                self.under_way[at] = entry;
            }
        }
    }

    /// The next packet.
    pub(crate) fn next(&mut self, host: &Host) -> Case {
        if let Some(piece) = self.pieces.pop_front() {
            return piece;
        }
        let kind = self.dice.get_mut().below(22);
        let case = match kind {
            21 => return self.by_ipv6(),
            0..4 => self.by_veth(),
            4..7 => self.by_uplink(),
            7 => self.of_the_hosts(host).unwrap_or_else(|| self.by_uplink()),
            8..14 => self.along_a_flow(host).unwrap_or_else(|| self.by_veth()),
            14..16 => self.error(host).unwrap_or_else(|| self.by_uplink()),
            16..19 => self.carried_on().unwrap_or_else(|| self.by_veth()),
            19 => self.in_pieces(host),
            _ => self.garbage(),
        };
        damage(self.dice.get_mut(), case)
    }

    /// An IPv6 packet at any hook: in right names and in wrong ones.
    fn by_ipv6(&self) -> Case {
        let mut dice = self.dice();
        let (hook, ifindex, came_by) = dice.pick(&[
            (Hook::ContainerIn, WEB_VETH, 0),
            (Hook::ContainerIn, APP_VETH, 0),
            (Hook::ContainerIn, FAR_VETH, 0),
            (Hook::ContainerOut, WEB_VETH, APP_VETH),
            (Hook::ContainerOut, WEB_VETH, 0),
            (Hook::BridgeIn, BRIDGE, 0),
            (Hook::BridgeOut, BRIDGE, 0),
            (Hook::BridgeOut, BRIDGE, UPLINK),
            (Hook::OutsideIn, UPLINK, 0),
            (Hook::OutsideOut, UPLINK, 0),
            (Hook::OutsideOut, UPLINK, BRIDGE),
        ]);
        let own = [WEB_VETH, APP_VETH, FAR_VETH].map(|veth| Be128::link_local(far_mac(veth)));
        let all = Be128::from_octets([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        let names = [
            WEB6,
            APP6,
            FAR6,
            GATEWAY6,
            HOST6,
            CLIENT6,
            Be128::ANY,
            own[0],
            own[1],
        ];
        let (src, dst) = (
            dice.pick(&names),
            dice.pick(&[
                names[0], names[1], names[2], names[3], names[4], names[5], all, own[2],
            ]),
        );
        let kind = dice.pick(&[128, 133, 134, 135, 136, 136, 137, 143]);
        let option = dice.pick(&[1, 2, 14]);
        let says = dice.pick(&[far_mac(WEB_VETH), far_mac(APP_VETH), far_mac(FAR_VETH)]);
        let (mut next, mut body) = match dice.below(4) {
            0 => (
                dice.pick(&[17, 17, 6]),
                // DHCP's port, a published one and others.
                vec![
                    0x30,
                    0x39,
                    dice.pick(&[0, 2]),
                    dice.pick(&[34, 80]),
                    0,
                    9,
                    0,
                    0,
                    1,
                ],
            ),
            _ => (58, neighbour(kind, dice.pick(&names), option, says)),
        };
        for _ in 0..dice.pick(&[0, 0, 0, 1, 2, 9]) {
            let header = dice.pick(&[0, 43, 44, 51, 60]);
            let more = dice.pick(&[0, 0, 1, 64]);
            let word = if header == 44 {
                [next, 0, 0, more]
            } else {
                [next, 0, 1, 4]
            };
            body = [&word[..], &[0; 4], &body].concat();
            next = header;
        }
        let to = dice.pick(&[
            mac(ifindex),
            mac(ifindex),
            far_mac(1),
            [0x33, 0x33, 0, 0, 0, 1],
        ]);
        let mut frame = ipv6_frame((to, far_mac(ifindex)), (src, dst), next, &body);
        if dice.once_in(10) {
            let at = 14 + dice.below(frame.len() - 14);
            frame[at] ^= 1 << dice.below(8);
        }
        if dice.once_in(10) {
            let length = 14 + dice.below(frame.len() - 14);
            // A shorter one the kernel does not simulate.
            frame.truncate(length.max(54));
        }
        let arrival = Arrival {
            ifindex,
            came_by,
            ..Arrival::default()
        };
        Case {
            hook,
            arrival,
            frame,
        }
    }

    fn dice(&self) -> std::cell::RefMut<'_, Dice> {
        self.dice.borrow_mut()
    }

    fn flags(&self) -> u8 {
        self.dice().pick(&[
            SYN,
            SYN,
            SYN | ACK,
            ACK,
            ACK,
            ACK | PSH,
            FIN | ACK,
            RST,
            RST | ACK,
            0,
        ])
    }

    /// A chunk's type, of SCTP.
    fn chunk(&self) -> u8 {
        self.dice()
            .pick(&[0, 0, 1, 1, 1, 2, 4, 5, 6, 7, 8, 10, 11, 11, 14, 200])
    }

    fn port(&self) -> u16 {
        self.dice()
            .pick(&[80, 443, 600, 1000, 5000, 5001, 5353, 8080, 8081, 40_000, 53])
    }

    fn spec(&self, src: Be32, dst: Be32) -> Spec {
        let (sport, dport) = (self.port(), self.port());
        let kind = self.dice().below(14);
        match kind {
            0..5 => {
                let opening = self.dice().once_in(4);
                let flags = if opening { self.flags() } else { SYN };
                Spec::tcp((src, sport), (dst, dport), flags)
            }
            5..9 => Spec::udp((src, sport), (dst, dport)),
            9 => Spec::ping(src, dst, sport),
            10 => Spec::pong(src, dst, dport),
            11 | 12 => {
                let (chunk, octets) = (self.chunk(), self.dice().below(1500));
                let mut spec = Spec::sctp((src, sport), (dst, dport), chunk).payload(octets);
                spec.unsummed = self.dice().once_in(4);
                spec
            }
            _ => {
                let protocol = u32::from(self.dice().pick(&[2_u8, 47, 50, 136]));
                let spec = Spec::udp((src, 0), (dst, 0));
                Spec {
                    tuple: Tuple {
                        proto: protocol,
                        ..spec.tuple
                    },
                    ..spec
                }
            }
        }
    }

    fn place(&self, addr: Be32) -> (Hook, u32, [u8; 6]) {
        let (veth, bridge) = match addr {
            WEB => (WEB_VETH, BRIDGE),
            FAR => (FAR_VETH, OTHER_BRIDGE),
            BARE => (0, BRIDGE),
            _ => (APP_VETH, BRIDGE),
        };
        if veth == 0 || self.dice().once_in(12) {
            return (Hook::BridgeIn, bridge, mac(bridge));
        }
        (Hook::ContainerIn, veth, mac(bridge))
    }

    fn by_veth(&self) -> Case {
        let remote = ip(198, 19, self.dice().below(8) as u8, 2);
        let stranger = self
            .dice()
            .pick(&[WEB, FAR, ip(10, 0, 0, 1), ip(127, 0, 0, 1)]);
        let who = self.dice().pick(&[WEB, APP, FAR, BARE]);
        let src = if self.dice().once_in(15) {
            stranger
        } else {
            who
        };
        let dst = self.dice().pick(&[
            remote,
            remote,
            remote,
            REMOTE,
            CLIENT,
            HOST,
            HOST,
            ip(198, 18, 2, 1),
            GATEWAY,
            WEB,
            FAR,
            ip(198, 18, 1, 255),
            ip(224, 0, 0, 1),
            ip(255, 255, 255, 255),
            ip(127, 0, 0, 1),
            ip(172, 17, 0, 99),
            ip(198, 18, 2, 77),
        ]);
        let (hook, ifindex, mac) = self.place(who);
        let spec = if self.dice().once_in(60) {
            // What a DHCP server answers.
            Spec::udp((src, 67), (dst, 68))
        } else {
            self.spec(src, dst)
        };
        let spec = spec.between(mac, far_mac(ifindex));
        let mut arrival = Arrival {
            ifindex,
            ..Arrival::default()
        };
        if hook == Hook::BridgeIn && self.dice().once_in(3) {
            arrival.mark = mark::HOST;
        }
        // By the kernel's own doing, on the way out.
        if self.dice().once_in(20) {
            let arrival = Arrival {
                ifindex: UPLINK,
                came_by: ifindex,
                ..Arrival::default()
            };
            return Case {
                hook: Hook::OutsideOut,
                arrival,
                frame: spec.build(),
            };
        }
        Case {
            hook,
            arrival,
            frame: spec.build(),
        }
    }

    fn by_uplink(&self) -> Case {
        let src = self
            .dice()
            .pick(&[CLIENT, REMOTE, ip(198, 19, 2, 2), ip(192, 168, 3, 3)]);
        let dst = self
            .dice()
            .pick(&[HOST, HOST, HOST, ip(198, 18, 2, 1), WEB, FAR, REMOTE]);
        let ifindex = self.dice().pick(&[UPLINK, UPLINK, UPLINK, SECOND]);
        let spec = self.spec(src, dst).between(mac(ifindex), far_mac(ifindex));
        let mut arrival = Arrival {
            ifindex,
            ..Arrival::default()
        };
        let mut hook = Hook::OutsideIn;
        match self.dice().below(16) {
            0 => (hook, arrival.ifindex, arrival.came_by) = (Hook::BridgeOut, BRIDGE, UPLINK),
            1 => (hook, arrival.ifindex) = (Hook::BridgeOut, BRIDGE),
            2 => hook = Hook::OutsideOut,
            3 => (hook, arrival.came_by) = (Hook::OutsideOut, 77),
            4 => {
                (hook, arrival.ifindex, arrival.came_by) = (Hook::ContainerOut, APP_VETH, WEB_VETH);
            }
            5 if ifindex == UPLINK => hook = Hook::Uplink,
            _ => {}
        }
        Case {
            hook,
            arrival,
            frame: spec.build(),
        }
    }

    /// A tuple of some flow, and the place where its packets arrive.
    fn some_flow(&self, host: &Host) -> Option<Spot> {
        let mut tuples: Vec<_> = host.index.borrow().iter().map(|(&t, &r)| (t, r)).collect();
        if tuples.is_empty() {
            return None;
        }
        tuples.sort_unstable_by_key(|&(tuple, _)| tuple);
        let (tuple, reference) = tuples[self.dice().below(tuples.len())];
        let flow = &host.flows[reference.index as usize];
        let dir = usize::from(flow.tuples[0].get() != tuple);
        let slot = flow.legs[dir ^ 1].slot();
        let other = flow.tuples[dir ^ 1].get();
        if slot == abi::HOST {
            return Some((tuple, other, Hook::OutsideOut, UPLINK, mac(UPLINK)));
        }
        if slot == OUTSIDE {
            let xdp = self.dice().once_in(3);
            let hook = if xdp { Hook::Uplink } else { Hook::OutsideIn };
            return Some((tuple, other, hook, UPLINK, mac(UPLINK)));
        }
        let (hook, ifindex, mac) = self.place(host.endpoints[slot as usize].addr);
        Some((tuple, other, hook, ifindex, mac))
    }

    fn along_a_flow(&self, host: &Host) -> Option<Case> {
        let (tuple, _, hook, ifindex, mac) = self.some_flow(host)?;
        let mut spec = Spec::of(tuple, self.flags()).between(mac, far_mac(ifindex));
        if tuple.proto == proto::SCTP {
            spec.kind = self.chunk();
        }
        let spec = self.in_sequence(host, spec);
        let arrival = Arrival {
            ifindex,
            ..Arrival::default()
        };
        Some(Case {
            hook,
            arrival,
            frame: spec.build(),
        })
    }

    /// Gives a flow's segment numbers that the connection may expect, or nearly so, or not at all:
    /// most live on, and each bound is met from both sides.
    fn in_sequence(&self, host: &Host, spec: Spec) -> Spec {
        if spec.tuple.proto != proto::TCP {
            return spec;
        }
        let mut dice = self.dice();
        if dice.once_in(20) {
            let (seq, ack) = (dice.roll() as u32, dice.roll() as u32);
            return spec.numbers(seq, ack, 0x1000);
        }
        let reference = host.index.borrow().get(&spec.tuple).copied();
        let Some(reference) = reference else {
            return spec;
        };
        let flow = &host.flows[reference.index as usize];
        let own = usize::from(flow.tuples[0].get() != spec.tuple);
        let windows = &flow.windows;
        let known = windows.sides[own].max_win.get() != 0;
        let start = dice.roll() as u32;
        let (sent, heard) = (
            windows.sides[own].end.get(),
            windows.sides[own ^ 1].end.get(),
        );
        let seq = if !known {
            start
        } else if dice.once_in(4) {
            let places = [
                windows.sides[own].max_end.get(),
                windows.sides[own ^ 1].max_ack.get(),
                windows.last_end.get(),
                sent.wrapping_sub(windows.sides[own ^ 1].max_win.get()),
                0,
            ];
            dice.pick(&places)
                .wrapping_add(dice.pick(&[0, 1, 2, u32::MAX, 70_000]))
        } else {
            sent
        };
        let ack = if dice.once_in(6) {
            let places = [heard, heard.wrapping_sub(66_000), windows.last_end.get(), 0];
            dice.pick(&places)
                .wrapping_add(dice.pick(&[0, 1, u32::MAX, 1000]))
        } else {
            heard
        };
        let window = dice.pick(&[0, 1, 0x1000, 0x1000, 0xffff]);
        let spec = spec.numbers(seq, ack, window);
        let spec = if dice.once_in(3) {
            spec.payload(0)
        } else {
            spec
        };
        if dice.once_in(3) {
            spec.scale(dice.pick(&[0, 2, 7, 14, 15]))
        } else {
            spec
        }
    }

    /// A packet of the host's own, whose answers would be some flow's, or near it.
    fn of_the_hosts(&self, host: &Host) -> Option<Case> {
        let (tuple, ..) = self.some_flow(host)?;
        let mut tuple = tuple.reversed();
        if self.dice().once_in(4) {
            tuple.dst = REMOTE;
        }
        let flags = if self.dice().once_in(3) {
            self.flags()
        } else {
            SYN
        };
        let arrival = Arrival {
            ifindex: UPLINK,
            ..Arrival::default()
        };
        let frame = Spec::of(tuple, flags)
            .between(far_mac(UPLINK), mac(UPLINK))
            .build();
        Some(Case {
            hook: Hook::OutsideOut,
            arrival,
            frame,
        })
    }

    /// An ICMP error about a flow's packet as it was seen where the error comes from.
    fn error(&self, host: &Host) -> Option<Case> {
        let (tuple, other, hook, ifindex, mac) = self.some_flow(host)?;
        let own = self.dice().once_in(4);
        let mut quoted = Spec::of(tuple.reversed(), self.flags());
        quoted.unsummed = self.dice().once_in(6);
        let cut = self.dice().pick(&[20, 27, 28, 28, 36, 38, 40, 60, 100]);
        let kind = self
            .dice()
            .pick(&[UNREACHABLE, UNREACHABLE, TIME_EXCEEDED, 4, 5, 12]);
        let src = self.dice().pick(&[tuple.src, tuple.src, REMOTE, CLIENT]);
        let mut packet = quoted.packet();
        if self.dice().once_in(10) {
            packet = quoted.options().packet();
        }
        if own {
            let arrival = Arrival {
                ifindex: UPLINK,
                ..Arrival::default()
            };
            let error = Spec::error(kind, HOST, other.src, &packet, cut);
            return Some(Case {
                hook: Hook::OutsideOut,
                arrival,
                frame: error.build(),
            });
        }
        let hook = if hook == Hook::Uplink {
            Hook::OutsideIn
        } else {
            hook
        };
        let error = Spec::error(kind, src, tuple.dst, &packet, cut).between(mac, far_mac(ifindex));
        let arrival = Arrival {
            ifindex,
            ..Arrival::default()
        };
        Some(Case {
            hook,
            arrival,
            frame: error.build(),
        })
    }

    /// The first piece of a datagram: the others come next, more or less. They come for the first
    /// time, or are back from where they became whole.
    fn in_pieces(&mut self, host: &Host) -> Case {
        let kind = self.dice().below(3);
        let case = match kind {
            0 => self.by_veth(),
            1 => self.by_uplink(),
            _ => self.along_a_flow(host).unwrap_or_else(|| self.by_uplink()),
        };
        let mut dice = self.dice.borrow_mut();
        let (ethernet, packet) = case.frame.split_at(14);
        let long = dice.pick(&[8, 8, 200, 1000]);
        let packet = [packet, &vec![7; long]].concat();
        let octets = dice.pick(&[8, 16, 24, 200, 504]);
        let mut arrival = case.arrival;
        let returns = matches!(case.hook, Hook::OutsideIn | Hook::BridgeIn);
        if returns && !dice.once_in(3) {
            arrival.mark = mark::BACK;
        }
        let mut pieces: Vec<_> = cut(&packet, octets, dice.roll() as u16)
            .into_iter()
            .take(4)
            .map(|piece| Case {
                hook: case.hook,
                arrival,
                frame: [ethernet, &piece].concat(),
            })
            .collect();
        if pieces.len() > 2 && dice.once_in(4) {
            let lost = dice.below(pieces.len());
            pieces.remove(lost);
        }
        let first = pieces.remove(0);
        drop(dice);
        self.pieces.extend(pieces);
        first
    }

    /// A packet that a hook has handed on, at the next one.
    fn carried_on(&mut self) -> Option<Case> {
        let count = self.under_way.len();
        if count == 0 {
            return None;
        }
        let at = self.dice.get_mut().below(count);
        let (outcome, frame, came_by) = self.under_way.swap_remove(at);
        let to_container = frame[30..32] == [172, 17] || frame[30..32] == [172, 18];
        let (hook, ifindex) = match self.dice.get_mut().below(8) {
            1.. if mark::kind(outcome.mark) == mark::BACK && came_by == BRIDGE => {
                (Hook::BridgeIn, BRIDGE)
            }
            1.. if mark::kind(outcome.mark) == mark::BACK => (Hook::OutsideIn, UPLINK),
            1.. if frame[30] == 0 => (Hook::RoundOut, UPLINK),
            0 => (Hook::BridgeIn, BRIDGE),
            1 => (Hook::ContainerOut, APP_VETH),
            _ if to_container => (Hook::BridgeOut, BRIDGE),
            _ => (Hook::OutsideOut, UPLINK),
        };
        let arrival = Arrival {
            ifindex,
            came_by,
            mark: outcome.mark,
            hash: outcome.hash,
            segment: 0,
        };
        Some(Case {
            hook,
            arrival,
            frame,
        })
    }

    fn garbage(&self) -> Case {
        let mut dice = self.dice();
        let (hook, ifindex) = dice.pick(&[
            (Hook::OutsideIn, UPLINK),
            (Hook::OutsideOut, UPLINK),
            (Hook::Uplink, UPLINK),
            (Hook::ContainerIn, APP_VETH),
            (Hook::ContainerOut, APP_VETH),
            (Hook::BridgeIn, BRIDGE),
            (Hook::BridgeOut, BRIDGE),
        ]);
        let len = 34 + dice.below(120);
        let mut frame: Vec<u8> = (0..len).map(|_| dice.roll() as u8).collect();
        frame[..6].copy_from_slice(&mac(ifindex));
        if !dice.once_in(8) {
            frame[12..15].copy_from_slice(&[0x08, 0x00, 0x45]);
        }
        let came_by = dice.pick(&[0, UPLINK, BRIDGE, 77]);
        let mark = dice.pick(&[0, mark::FLOW | 3, mark::DONE, mark::HOST, 7]);
        let hash = dice.below(4) as u32;
        Case {
            hook,
            arrival: Arrival {
                ifindex,
                came_by,
                mark,
                hash,
                segment: 0,
            },
            frame,
        }
    }
}
