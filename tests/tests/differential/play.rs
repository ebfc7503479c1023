// SPDX-License-Identifier: MIT OR Apache-2.0
//! A seed played on both arms, step by step, and what each of them showed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;

use anyhow::{Context as _, Result, bail};

use crate::arm::Arm;
use crate::compare::{compare, invariants};
use crate::flow::Flow;
use crate::known::{Difference, Known};
use crate::place::{At, End, HOST, PUBLISHED};
use crate::shot::{Body, Shot};
use crate::trace::{Action, Step, Trace};
use crate::view::{Came, Fields, Reader, gather, quoted_id};

/// Steps of a seed.
const STEPS: usize = 16;

/// A packet that came, by what it is to its step.
#[derive(Clone, Debug)]
pub(crate) struct Observation {
    /// Which packet it is.
    pub(crate) key: String,
    /// Where it came.
    pub(crate) at: At,
    /// The shot that it is itself, not only an answer to.
    pub(crate) shot: Option<usize>,
    /// What it says.
    pub(crate) fields: Fields,
    /// Its bytes.
    pub(crate) packet: Vec<u8>,
}

/// What is counted over a run.
#[derive(Default, Debug)]
pub(crate) struct Totals {
    /// Steps.
    pub(crate) steps: u64,
    /// Packets sent, on each arm.
    pub(crate) packets: u64,
    /// Differences that the list explains.
    pub(crate) known: u64,
    /// Differences of ports, one of which was drawn for another flow before.
    pub(crate) chance: u64,
    /// Packets that our path has to take, and that came.
    pub(crate) eligible: u64,
    /// Of these, those that it took.
    pub(crate) fast: u64,
}

/// The two arms, and what has been played on them.
pub(crate) struct Play<'a> {
    arms: [Arm; 2],
    known: &'a Known,
    two_is_published: bool,
    /// The seed at hand.
    seed: u64,
    /// Instead of failing: what was not explained, how often, and by which seed first.
    pub(crate) survey: Option<BTreeMap<String, (u64, u64)>>,
    /// What is counted.
    pub(crate) totals: Totals,
}

/// What one arm has seen of a seed's flows.
type Seen = Vec<Option<End>>;

impl<'a> Play<'a> {
    /// Both arms, stock first.
    pub(crate) fn new(known: &'a Known) -> Result<Self> {
        Ok(Self {
            arms: [Arm::new("stock", false)?, Arm::new("ours", true)?],
            known,
            two_is_published: true,
            seed: 0,
            survey: None,
            totals: Totals::default(),
        })
    }

    /// Plays a seed.
    pub(crate) fn seed(&mut self, seed: u64) -> Result<()> {
        self.seed = seed;
        for arm in &mut self.arms {
            if !self.two_is_published {
                arm.remove(At::Two)?;
                arm.start(At::Two, true)?;
            }
            arm.end_flows()?;
        }
        self.two_is_published = true;
        let mut trace = Trace::new(seed, true);
        let mut seen = [Seen::new(), Seen::new()];
        let mut steps = String::new();
        for number in 0..STEPS {
            let step = trace.next_step();
            let _ = writeln!(steps, "{number:2} {}", describe(&step));
            self.step(&step, &mut trace, &mut seen)
                .with_context(|| format!("seed {seed}, step {number}; the steps:\n{steps}"))?;
        }
        // What a step has left to be undone.
        while let Some(step) = trace.parting.take() {
            self.step(&step, &mut trace, &mut seen)?;
        }
        self.two_is_published = trace.two_is_published;
        Ok(())
    }

    fn step(&mut self, step: &Step, trace: &mut Trace, seen: &mut [Seen; 2]) -> Result<()> {
        let shots: Vec<&Shot> = step.volleys.iter().flatten().collect();
        let eligible = !shots.is_empty() && shots.iter().all(|shot| shot.eligible);
        let before = self.arms[1].fast()?;
        let mut markers = 0;
        let mut showed = [Vec::new(), Vec::new()];
        for (place, arm) in self.arms.iter_mut().enumerate() {
            act(arm, step.action)?;
            let mut sent_before = 0;
            let seen = &mut seen[place];
            seen.resize(trace.flows.len(), None);
            for volley in &step.volleys {
                let (came, taken) = fire(arm, volley, &trace.flows, seen)?;
                markers += if arm.is_ours() { taken } else { 0 };
                let first = showed[place].len();
                let sent = sent_before..sent_before + volley.len();
                sent_before = sent.end;
                observe((&shots, sent), came, &trace.flows, seen, &mut showed[place]);
                order_keys(&mut showed[place], first);
            }
        }
        self.totals.steps += 1;
        self.totals.packets += shots.len() as u64;
        let [stock, ours] = &showed;
        if eligible {
            let came = ours.iter().filter(|came| came.shot.is_some()).count() as u64;
            let taken = self.arms[1].fast()? - before;
            self.totals.eligible += came;
            self.totals.fast += taken.saturating_sub(markers).min(came);
        }
        let mut all = compare(step.kind, &shots, stock, ours);
        all.extend(invariants(step.kind, &shots, ours, &trace.flows, &seen[1]));
        for (difference, shot) in all {
            let flow = shot.and_then(|shot| shots[shot].flow);
            let chance = difference.field == "sport"
                && flow.is_some_and(|flow| is_chance(&trace.flows, flow, seen));
            if chance {
                self.totals.chance += 1;
            } else if self.known.holds(&difference, self.seed) {
                self.totals.known += 1;
            } else if let Some(survey) = &mut self.survey {
                let seeds = survey.entry(tell(&difference)).or_insert((0, self.seed));
                seeds.0 += 1;
            } else {
                bail!(
                    "{}\nunexplained: {}",
                    show(&shots, &showed, shot),
                    tell(&difference)
                );
            }
            // Where one arm has not delivered, the flow may be another one there.
            if let Some(flow) = flow.filter(|_| matches!(&*difference.field, "at" | "sport")) {
                trace.flows[flow].over = true;
            }
        }
        for flow in &mut trace.flows {
            flow.over |= seen.iter().any(|seen| match seen[flow.number] {
                // Whether a packet that came nowhere has made a flow, is nobody's business.
                None => true,
                // Stock has drawn a port that is published, by chance: strangers have it, too.
                Some((_, port)) => {
                    port != flow.originator.1 && PUBLISHED.iter().any(|row| row.1 == port)
                }
            });
        }
        Ok(())
    }
}

/// Whether a flow's own port is one that another flow has, on one arm only: that one had drawn it.
/// Then this one had to draw, if it is to the same server; else it looks as if it had.
fn is_chance(flows: &[Flow], flow: usize, seen: &[Seen; 2]) -> bool {
    let own = &flows[flow];
    let taken = |seen: &Seen| {
        let wanted = seen[flow].map(|end| (end.0, own.originator.1));
        flows.iter().any(|other| {
            let same = (other.proto, other.server) == (own.proto, own.server);
            let drawn = other.originator.1 != own.originator.1;
            other.number != flow
                && (same || drawn)
                && wanted.is_some()
                && seen[other.number] == wanted
        })
    };
    taken(&seen[0]) != taken(&seen[1])
}

fn act(arm: &mut Arm, action: Option<Action>) -> Result<()> {
    match action {
        None => Ok(()),
        Some(Action::EndFlows) => arm.end_flows(),
        Some(Action::Mtu(mtu)) => arm.set_mtu(mtu),
        Some(Action::Churn(at, published)) => {
            arm.remove(at)?;
            arm.start(at, published)
        }
    }
}

/// What a flow's server sees as its client, or would, if nothing had come.
fn client(flow: &Flow, seen: &Seen) -> End {
    let expected = match flow.kind() {
        "in" => flow.originator,
        _ => (HOST, flow.originator.1),
    };
    seen[flow.number].unwrap_or(expected)
}

/// Sends packets and waits for what comes of them.
fn fire(arm: &mut Arm, volley: &[Shot], flows: &[Flow], seen: &Seen) -> Result<(Vec<Came>, u64)> {
    for shot in volley {
        for frame in shot.frames(&|flow| client(&flows[flow], seen)) {
            arm.send(shot.at, &frame)?;
        }
    }
    let (arrivals, markers) = arm.settle()?;
    Ok((gather(arrivals)?, markers))
}

/// Finds out what came of the packets of a step, of which some were sent just now, and remembers by
/// which ends flows are seen.
fn observe(
    (shots, sent): (&[&Shot], Range<usize>),
    came: Vec<Came>,
    flows: &[Flow],
    seen: &mut Seen,
    observed: &mut Vec<Observation>,
) {
    let place = |id: u16| shots.iter().position(|shot| shot.tag == id);
    let word = |packet: &[u8], at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    for came in &came {
        let packet = &came.packet;
        let shot = place(word(packet, 4));
        let Some((shot, flow)) = shot.and_then(|shot| Some((shots[shot], shots[shot].flow?)))
        else {
            continue;
        };
        let own = &flows[flow];
        let opens = !matches!(shot.draft.body, Body::Error(_)) && shot.at == own.originator_at;
        if opens && came.at == own.server_at && seen[flow].is_none() {
            let header = usize::from(packet[0] & 0xf) * 4;
            let at = header + if packet[9] == 1 { 4 } else { 0 };
            if packet.len() >= at + 2 {
                seen[flow] = Some((crate::view::address(&packet[12..16]), word(packet, at)));
            }
        }
    }
    for came in came {
        let own = place(word(&came.packet, 4));
        let about = quoted_id(&came.packet).and_then(place);
        let key = match (own, about) {
            (Some(shot), _) => format!("{}#{shot}", shots[shot].label),
            (None, Some(shot)) => format!("error about {}#{shot}", shots[shot].label),
            (None, None) => {
                // Who says nothing of what it answers, answers the only one that it may mean.
                let mut asked = sent.clone().filter(|shot| shots[*shot].at == came.at);
                match (asked.next(), asked.next()) {
                    (Some(shot), None) => format!("answer to {}#{shot}", shots[shot].label),
                    _ => format!("answer of protocol {}", came.packet[9]),
                }
            }
        };
        let drawn: Vec<End> = shots
            .iter()
            .filter_map(|shot| {
                let flow = shot.flow?;
                let own = flows[flow].originator;
                // A server that speaks first is seen by the port that publishes it: not a drawn one.
                let publishes = |end: End| {
                    PUBLISHED
                        .iter()
                        .any(|&(at, host, inside)| host == end.1 && own == (at.address(), inside))
                };
                seen[flow].filter(|&end| end.1 != own.1 && !publishes(end))
            })
            .collect();
        let fields = Reader { drawn: &drawn }.fields(&came, own.is_some());
        observed.push(Observation {
            key,
            at: came.at,
            shot: own,
            fields,
            packet: came.packet,
        });
    }
}

/// Tells packets of the same key apart by their order.
fn order_keys(observed: &mut [Observation], first: usize) {
    for place in first..observed.len() {
        let key = observed[place].key.clone();
        let same = |other: &&Observation| other.key.split(" (").next() == Some(key.as_str());
        let before = observed[..place].iter().filter(same).count();
        if before > 0 {
            let _ = write!(observed[place].key, " (again {before})");
        }
    }
}

fn describe(step: &Step) -> String {
    let mut text = step.kind.to_owned();
    if let Some(action) = step.action {
        let _ = write!(text, " {action:?}");
    }
    for volley in step.volleys.iter().filter(|volley| volley.len() < 20) {
        let labels: Vec<_> = volley.iter().map(|shot| shot.label.as_str()).collect();
        let _ = write!(text, " [{}]", labels.join(", "));
    }
    text
}

fn tell(difference: &Difference) -> String {
    let Difference {
        step,
        packet,
        field,
        stock,
        ours,
    } = difference;
    format!("step {step}, packet {packet:?}, field {field:?}: stock {stock:?}, ours {ours:?}")
}

/// What was sent and what came, as far as a screen holds it; else of one packet only.
fn show(shots: &[&Shot], showed: &[Vec<Observation>; 2], about: Option<usize>) -> String {
    let mut text = String::new();
    let few = shots.len() < 20;
    for (number, shot) in shots.iter().enumerate() {
        if few || about == Some(number) {
            let _ = writeln!(text, "sent: {shot:?}");
        }
    }
    for (arm, observed) in ["stock", "ours"].into_iter().zip(showed) {
        for came in observed.iter().filter(|came| few || came.shot == about) {
            let mut fields = String::new();
            for (name, value) in &came.fields {
                let _ = write!(fields, " {name}={value}");
            }
            let _ = writeln!(text, "{arm}: {} at {:?}:{fields}", came.key, came.at);
        }
    }
    text
}
