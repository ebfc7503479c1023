// SPDX-License-Identifier: MIT OR Apache-2.0
//! Any trace of segments, against a plain reference: nf_conntrack's rules by the names of its
//! documentation (I to IV), in numbers that never wrap.

use forwarder_common::abi::FlowState;
use forwarder_common::conntrack::window::follow;
use forwarder_common::family::V4;
use forwarder_common::reason::Reason;
use forwarder_common::tracking::segment::{NO_SCALE, Segment};
use forwarder_common::tracking::tcp::{State, Step, step};
use forwarder_common::tracking::verdict::Verdict;
use forwarder_common::wire::parse::Packet;
use forwarder_common::wire::tcp::{ACK, FIN, Kind, RST, SYN, kind};
use forwarder_testkit::model::Host;
use proptest::prelude::*;

/// One direction. Numbers are distances from where the test's numbers begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Side {
    end: i64,
    max_end: i64,
    max_win: i64,
    max_ack: i64,
    scale: u8,
    scales: bool,
    acknowledges: bool,
    unacknowledged: bool,
}

#[derive(Clone, Copy, Debug)]
struct DirectionState {
    reply: bool,
    flags: u8,
    seq: i64,
    ack: i64,
    win: i64,
    length: i64,
    scale: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Judgement {
    Follow(State),
    Ignore,
    State,
    Window,
}

/// What was the last segment, or the last one noted.
#[derive(Clone, Copy, Debug)]
struct Last {
    kind: Kind,
    reply: bool,
    end: i64,
    ack: i64,
    win: i64,
}

#[derive(Clone, Debug)]
struct Reference {
    state: State,
    sides: [Side; 2],
    last: Last,
    noted_scale: Option<u8>,
    challenge: bool,
    simultaneous: bool,
    replied: bool,
    assured: bool,
}

impl Reference {
    fn new() -> Self {
        Self {
            state: State::None,
            sides: [Side::default(); 2],
            last: Last {
                kind: Kind::None,
                reply: false,
                end: 0,
                ack: 0,
                win: 0,
            },
            noted_scale: None,
            challenge: false,
            simultaneous: false,
            replied: false,
            assured: false,
        }
    }

    fn take(&mut self, segment: &DirectionState) -> Judgement {
        let mut next = self.clone();
        let verdict = next.judge(segment);
        if matches!(verdict, Judgement::Follow(_) | Judgement::Ignore) {
            *self = next;
        }
        verdict
    }

    fn judge(&mut self, segment: &DirectionState) -> Judgement {
        let kind = kind(segment.flags);
        let end = segment.seq
            + segment.length
            + i64::from(segment.flags & SYN != 0)
            + i64::from(segment.flags & FIN != 0);
        let (own, other) = (usize::from(segment.reply), usize::from(!segment.reply));
        let answers = self.last.reply != segment.reply;
        let mut from = self.state;
        let mut skips = false;
        let mut to = match step(from, segment.flags, segment.reply) {
            Step::Invalid => return Judgement::State,
            Step::To(State::SynSent) if matches!(from, State::TimeWait | State::Close) => {
                self.note(segment, kind, end);
                return Judgement::Ignore;
            }
            Step::To(to) => to,
            Step::Ignore => {
                let last = self.last;
                let agreed = kind == Kind::SynAck
                    && last.kind == Kind::Syn
                    && answers
                    && segment.ack == last.end;
                if !agreed {
                    self.note(segment, kind, end);
                    return Judgement::Ignore;
                }
                self.sides[other] = Side {
                    end: last.end,
                    max_end: last.end,
                    max_win: last.win.max(1),
                    max_ack: self.sides[other].max_ack,
                    scale: self.noted_scale.unwrap_or(0),
                    scales: self.noted_scale.is_some(),
                    ..Side::default()
                };
                self.sides[own] = Side::default();
                self.challenge = false;
                from = State::SynSent;
                State::SynReceived
            }
        };
        if from == State::LastAck
            && to == State::TimeWait
            && kind == Kind::Ack
            && self.last.kind == Kind::Syn
            && answers
            && self.challenge
        {
            self.challenge = false;
            return Judgement::Ignore;
        }
        self.simultaneous |= to == State::SynSent2;
        if to == State::SynReceived && segment.reply && kind == Kind::Ack && self.simultaneous {
            to = State::Established;
        }
        if kind == Kind::Rst {
            let open = matches!(
                from,
                State::Established | State::FinWait | State::CloseWait | State::LastAck
            );
            let last = self.last;
            let syn_of_the_others = answers && last.kind == Kind::Syn;
            let peer = self.sides[other];
            let mut judged = false;
            if matches!(from, State::TimeWait | State::Close) {
                (skips, judged) = (true, true);
            } else if segment.reply && from == State::SynSent {
                if segment.flags & ACK == 0 || segment.ack != peer.end {
                    return Judgement::Window;
                }
                judged = true;
            } else if peer.acknowledges && !syn_of_the_others {
                if segment.seq == ZERO && !open {
                    judged = true;
                } else if segment.seq < peer.max_ack {
                    return Judgement::Window;
                } else {
                    let series = last.kind == Kind::Ack && !answers && segment.seq == last.end;
                    judged = true;
                    if open && segment.seq != peer.max_ack && !series {
                        to = from;
                    }
                }
            }
            if !judged && answers {
                let answered = self.replied && last.kind == Kind::Syn
                    || !self.assured && last.kind == Kind::Ack;
                let challenged = from == State::SynSent
                    && last.kind == Kind::Ack
                    && !segment.reply
                    && segment.seq == last.ack;
                skips = answered && segment.ack == last.end || challenged;
            }
        }
        if self.state == State::None {
            self.sides[0] = Side {
                end,
                max_end: end,
                max_win: segment.win.max(1),
                scale: if segment.scale == NO_SCALE {
                    0
                } else {
                    segment.scale
                },
                scales: segment.scale != NO_SCALE,
                ..Side::default()
            };
            self.last.kind = Kind::None;
        }
        if !skips {
            match self.inside(segment, from, kind, end) {
                Judgement::Follow(_) => {}
                verdict => return verdict,
            }
        }
        self.last.kind = kind;
        self.last.reply = segment.reply;
        self.state = to;
        self.replied |= segment.reply;
        self.assured |= self.replied
            && to == State::Established
            && matches!(from, State::SynReceived | State::Established);
        Judgement::Follow(to)
    }

    fn note(&mut self, segment: &DirectionState, kind: Kind, end: i64) {
        let ack = if self.state == State::SynSent && kind == Kind::Ack && segment.reply {
            segment.ack
        } else {
            self.last.ack
        };
        self.last = Last {
            kind,
            reply: segment.reply,
            end,
            ack,
            win: segment.win,
        };
        if kind == Kind::Syn && !segment.reply {
            self.noted_scale = (segment.scale != NO_SCALE).then_some(segment.scale);
            self.challenge = self.state == State::LastAck;
            self.simultaneous = false;
        }
    }

    fn inside(&mut self, segment: &DirectionState, from: State, kind: Kind, end: i64) -> Judgement {
        let (own, other) = (usize::from(segment.reply), usize::from(!segment.reply));
        let old = self.sides;
        let (mut seq, mut end, mut ack) = (segment.seq, end, segment.ack);
        let syn = segment.flags & SYN != 0;
        let acks = segment.flags & ACK != 0;
        let mut sender = self.sides[own];
        let mut receiver = self.sides[other];
        let first = sender.max_win == 0;
        let again = syn && end > sender.end && matches!(from, State::SynSent | State::SynReceived);
        if syn && (first || again) {
            sender = Side {
                end,
                max_end: end,
                max_win: segment.win.max(1),
                max_ack: sender.max_ack,
                scale: if segment.scale == NO_SCALE {
                    0
                } else {
                    segment.scale
                },
                scales: segment.scale != NO_SCALE,
                ..Side::default()
            };
            if segment.reply && !(sender.scales && receiver.scales) {
                (sender.scale, receiver.scale) = (0, 0);
            }
            if !acks && (first || segment.reply) {
                self.sides[own] = sender;
                self.sides[other] = receiver;
                return Judgement::Follow(from);
            }
        } else if first {
            sender.end = end;
            sender.max_win = (segment.win << sender.scale).max(1);
            sender.max_end = end + sender.max_win;
            if receiver.max_win == 0 {
                (receiver.end, receiver.max_end) = (ack, ack);
            } else if ack == receiver.end + 1 {
                receiver.end += 1;
            }
        }
        let reset = segment.flags & RST != 0;
        if !acks || reset && ack == ZERO {
            ack = receiver.end;
        }
        if reset && seq == ZERO && from == State::SynSent {
            (seq, end) = (sender.end, sender.end);
        }
        let i = seq <= sender.max_end;
        let ii = end >= sender.end - receiver.max_win;
        let iii = ack <= receiver.end;
        let iv = ack >= receiver.end - sender.max_win.max(66_000);
        if !i {
            let over = end - sender.max_end + 1;
            if receiver.max_win != 0 && ii && iii && iv && over <= receiver.max_win {
                self.sides = old;
                self.sides[own].end = old[own].end.max(end);
                self.sides[own].unacknowledged = true;
                return Judgement::Ignore;
            }
            return Judgement::Window;
        }
        if !iii {
            return Judgement::Window;
        }
        if receiver.max_win != 0 && !ii || !iv {
            return Judgement::Ignore;
        }
        let win = if syn {
            segment.win
        } else {
            segment.win << sender.scale
        };
        sender.max_win = sender.max_win.max(win);
        if end > sender.end {
            (sender.end, sender.unacknowledged) = (end, true);
        }
        if acks {
            sender.max_ack = if sender.acknowledges {
                sender.max_ack.max(ack)
            } else {
                ack
            };
            sender.acknowledges = true;
        }
        if receiver.max_win != 0 && end > sender.max_end {
            receiver.max_win += end - sender.max_end;
        }
        if ack == receiver.end {
            receiver.unacknowledged = false;
        }
        if ack + win >= receiver.max_end {
            receiver.max_end = ack + win.max(1);
        }
        self.sides[own] = sender;
        self.sides[other] = receiver;
        if kind == Kind::Ack {
            self.last = Last {
                end,
                ack,
                win: segment.win,
                ..self.last
            };
        }
        Judgement::Follow(from)
    }
}

/// The number 0 on the wire, as a distance from where the test's numbers begin: never met unless
/// meant, and further than any window.
const ZERO: i64 = -BASE;
/// Where the test's numbers begin: they wrap around in the middle of a trace.
const BASE: i64 = (1 << 32) - 30_000;

fn wire(number: i64) -> u32 {
    (BASE + number) as u32
}

/// How a trace's next segment is made: direction, flags, and picks among numbers that matter.
type Recipe = (bool, usize, usize, usize, usize, usize, usize);

fn segment(reference: &Reference, recipe: Recipe) -> DirectionState {
    let (reply, flags, seq, ack, win, length, scale) = recipe;
    let sent = reference.sides[usize::from(reply)];
    let peer = reference.sides[usize::from(!reply)];
    let flags = [
        ACK,
        ACK,
        ACK,
        ACK,
        SYN,
        SYN | ACK,
        FIN | ACK,
        RST,
        RST | ACK,
        SYN,
        SYN | ACK,
        ACK,
    ][flags % 12];
    let windowless = peer.max_win.max(1);
    let seqs = [
        sent.end,
        sent.end,
        sent.end,
        sent.end - 1,
        sent.max_end,
        sent.max_end + 1,
        sent.max_end + windowless - 2,
        sent.max_end + windowless,
        sent.end - windowless,
        sent.end - windowless - 1,
        peer.max_ack,
        peer.max_ack - 1,
        peer.max_ack + 1,
        reference.last.end,
        reference.last.ack,
        sent.end + 5_000_000,
    ];
    let late = sent.max_win.max(66_000);
    let acks = [
        peer.end,
        peer.end,
        peer.end,
        peer.end,
        peer.end + 1,
        peer.end - 1,
        peer.end - late,
        peer.end - late - 1,
        reference.last.end,
        sent.max_ack,
    ];
    DirectionState {
        reply,
        flags,
        seq: seqs[seq % seqs.len()],
        ack: acks[ack % acks.len()],
        win: [4096, 4096, 0, 1, 65_535][win % 5],
        length: if flags & SYN == 0 {
            [0, 0, 1, 100, 1460][length % 5]
        } else {
            0
        },
        scale: [NO_SCALE, 0, 3, 7][scale % 4],
    }
}

fn packet(segment: &DirectionState) -> Packet<V4> {
    let mut packet = Packet::<V4>::default();
    packet.tuple.proto = 6;
    packet.headers = 40;
    packet.len = 40 + segment.length as u16;
    packet.flags = segment.flags;
    packet.seq = wire(segment.seq);
    packet.ack = wire(segment.ack);
    packet.window = segment.win as u16;
    packet
}

fn check(recipes: Vec<Recipe>) -> Result<(), TestCaseError> {
    let host = Host::new(4);
    let windows = &host.flows[0].windows;
    let mut reference = Reference::new();
    // A connection has a beginning.
    let opening = [(false, 4), (true, 5), (false, 0)].map(|(reply, flags)| {
        let scale = recipes.len() % 4;
        (reply, flags, 0, 0, 0, 0, scale)
    });
    for recipe in opening.into_iter().chain(recipes) {
        let segment = segment(&reference, recipe);
        let flags = u64::from(reference.replied) | u64::from(reference.assured) << 1;
        let flow_state = FlowState((reference.state as u64) << 32 | 1 << 40 | flags << 48);
        let before = reference.clone();
        let expected = reference.take(&segment);
        let scale = if segment.flags & SYN == 0 {
            NO_SCALE
        } else {
            segment.scale
        };
        let read = packet(&segment);
        let packed = Segment::of(
            &read,
            u32::from(read.len),
            usize::from(segment.reply),
            scale,
        );
        let fate = follow(&host, windows, 0, flow_state, &packed);
        let fate = match fate {
            Verdict::To(state, _) => Judgement::Follow(state),
            Verdict::Ignore => Judgement::Ignore,
            Verdict::Refuse(Reason::TcpState) => Judgement::State,
            Verdict::Refuse(_) => Judgement::Window,
        };
        prop_assert_eq!(fate, expected, "{:?} {:?}", segment, before);
        for (dir, side) in reference.sides.iter().enumerate() {
            let kept = &windows.sides[dir];
            let words = [&kept.end, &kept.max_end, &kept.max_ack];
            let numbers = [side.end, side.max_end, side.max_ack];
            for (word, number) in words.into_iter().zip(numbers) {
                let unset =
                    side.max_win == 0 || std::ptr::eq(word, &kept.max_ack) && !side.acknowledges;
                prop_assert!(
                    unset || word.get() == wire(number),
                    "{:?} {:?}",
                    segment,
                    before
                );
            }
            prop_assert_eq!(i64::from(windows.sides[dir].max_win.get()), side.max_win);
            prop_assert_eq!(windows.scale[dir].get(), side.scale);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn tracking_equals_the_reference_on_any_trace(
        recipes in prop::collection::vec(
            (any::<bool>(), 0_usize..12, 0_usize..16, 0_usize..10, 0_usize..5, 0_usize..5, 0_usize..4),
            0..40,
        )
    ) {
        check(recipes)?;
    }
}
