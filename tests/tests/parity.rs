// SPDX-License-Identifier: MIT OR Apache-2.0
//! The parity test: the same random packets over the same random tables, through the packet brain on
//! the host and through the kernel's programs, give the same bytes, verdict, mark and reason, and
//! leave the same flows behind and have emitted the same events.
//!
//! `TWIN_CASES` says how many packets, `TWIN_SEED` where the generator starts: a failure prints the
//! seed of its sequence.

#[expect(
    dead_code,
    reason = "the parity test needs less of the fixtures than there is"
)]
mod fixtures;

use std::collections::BTreeMap;
use std::env;

use anyhow::{Result, ensure};
use forwarder::datapath::{Simulated, now};
use forwarder_common::abi::{FlowRef, Tuple, others};
use forwarder_common::conntrack::flow_operation;
use forwarder_common::family::V4;
use forwarder_common::reason::Reason;
use forwarder_common::wire::parse::{Packet, parse};
use forwarder_common::wire::proto;
use forwarder_testkit::model::{Host, Outcome};
use forwarder_testkit::rng::Rng;
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};

use fixtures::host_state::{connection, disturb, host_state};
use fixtures::raw::{events_of, state_of};
use fixtures::traffic::{Case, Traffic};
use fixtures::{Fixtures, Loaded, code};

/// Packets in all.
const CASES: usize = 100_000;
/// Packets of one world. A sequence must be over before a UDP flow can count as a stream.
const SEQUENCE: usize = 500;
/// Flow records: few, so that unassured flows are pushed out.
const FLOWS: u32 = 256;

fn from_env(name: &str, otherwise: u64) -> u64 {
    env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(otherwise)
}

#[test]
fn host_and_kernel_agree() -> Result<()> {
    let fixtures = Fixtures::new("parity")?;
    let (bpffs, netns) = (fixtures.bpffs(), fixtures.space().path().to_owned());
    fixtures.space().enter(|| {
        // Which piece of a datagram comes next is known to one CPU.
        let mut here = CpuSet::new();
        here.set(sched_getcpu());
        sched_setaffinity(None, &here)?;
        let mut twins = Twins {
            kernel: Loaded::open(&bpffs, &netns, FLOWS)?,
            seen: BTreeMap::new(),
        };
        let sequences = from_env("TWIN_CASES", CASES as u64).div_ceil(SEQUENCE as u64);
        let first = from_env("TWIN_SEED", 1);
        for seed in first..first + sequences {
            if let Err(error) = twins.sequence(seed) {
                panic!("{error:#}\nrepeat with TWIN_SEED={seed} TWIN_CASES={SEQUENCE}");
            }
        }
        println!("{} packets: {:?}", sequences * SEQUENCE as u64, twins.seen);
        if sequences >= (CASES / SEQUENCE) as u64 {
            twins.covers()?;
        }
        Ok(())
    })?
}

/// The kernel's side, and how often each reason was seen.
struct Twins {
    kernel: Loaded,
    seen: BTreeMap<&'static str, u64>,
}

impl Twins {
    /// One world, and packets through it.
    fn sequence(&mut self, seed: u64) -> Result<()> {
        let mut rng = Rng::new(seed);
        let mut host = host_state(&mut rng, FLOWS);
        let fresh = !rng.once_in(4);
        host.settings.heartbeat = if fresh {
            now()
        } else {
            now().wrapping_sub(100_000)
        };
        self.kernel.raw.reset()?;
        self.kernel.mirror(&host)?;
        let mut traffic = Traffic::new(rng.wide());
        let mut counts = self.kernel.raw.counts()?;
        for number in 0..SEQUENCE {
            if rng.once_in(40) {
                disturb(&mut rng, &mut host);
                self.kernel.mirror(&host)?;
            }
            if host.settings.others & others::FOLLOWED != 0 && rng.once_in(20) {
                self.follow(&mut rng, &host)?;
            }
            let case = traffic.next(&host);
            let simulated = self.kernel.run(case.hook, &case.frame, case.arrival)?;
            host.clock.set(now());
            host.drawn.set(self.random_for(&case));
            let mut after = case.frame.clone();
            let outcome = host.run(case.hook, &mut after, case.arrival);
            host.check();
            if let Some(answer) = host.answer.take() {
                after = answer;
            }
            let counted = match outcome.reason {
                None => true,
                Some(reason) => {
                    counts[reason as usize] += 1;
                    *self.seen.entry(reason.label()).or_default() += 1;
                    self.kernel.raw.count(reason)? == counts[reason as usize]
                }
            };
            let same = counted
                && simulated.code == code(case.hook, &outcome)
                && simulated.frame == after
                && simulated.mark == outcome.mark;
            ensure!(
                same,
                "packet {number}: {}",
                self.difference(&case, &outcome, &after, &simulated, &counts)?
            );
            traffic.learn(&case, &outcome, &after);
        }
        ensure!(
            self.kernel.raw.counts()? == counts,
            "a packet was counted twice"
        );
        let (here, there) = (events_of(&host), self.kernel.raw.events());
        for (number, event) in here.iter().enumerate() {
            let other = there.get(number);
            ensure!(
                other == Some(event),
                "event {number}: on the host {}, in the kernel {}",
                hex(event),
                other.map_or("none".to_owned(), |bytes| hex(bytes)),
            );
        }
        ensure!(here.len() == there.len(), "the kernel tells more");
        let (here, there) = (state_of(&host), self.kernel.raw.state()?);
        for (key, record) in &here {
            let other = there.get(key);
            ensure!(
                other == Some(record),
                "{}: on the host {}, in the kernel {}",
                hex(key),
                show(Some(record)),
                show(other),
            );
        }
        ensure!(
            here.len() == there.len(),
            "the kernel has flows that the host does not have"
        );
        for (slot, quota) in host.quotas.iter().enumerate() {
            let (here, there) = (quota.held.get(), self.kernel.raw.held(slot as u32)?);
            ensure!(
                here == there,
                "slot {slot} is charged {here:#x} on the host, {there:#x} in the kernel"
            );
        }
        Ok(())
    }

    /// Follows a connection on both sides.
    fn follow(&mut self, rng: &mut Rng, host: &Host) -> Result<()> {
        let connection = connection(rng, host);
        let there = self.kernel.datapath.follow(&connection)?;
        host.clock.set(now());
        let here = flow_operation::follow(host, &connection);
        ensure!(
            here == there,
            "{connection:?}: {here:?}, in the kernel {there:?}"
        );
        Ok(())
    }

    /// What the model's `random` has to say for it to draw the port that the kernel drew.
    fn random_for(&self, case: &Case) -> Option<u32> {
        let tuple = tuple_of(&case.frame)?;
        let port = u32::from(self.kernel.raw.port_of(&tuple)?);
        let (low, count) = match (tuple.proto, port) {
            (proto::ICMP, _) => (0, 65_536),
            (_, ..512) => (1, 511),
            (_, ..1024) => (600, 424),
            _ => (1024, 64_512),
        };
        let offset = u64::from(port.checked_sub(low)?);
        u32::try_from((offset << 32).div_ceil(count)).ok()
    }

    fn difference(
        &self,
        case: &Case,
        outcome: &Outcome,
        after: &[u8],
        simulated: &Simulated,
        counts: &[u64],
    ) -> Result<String> {
        let counted = self.kernel.raw.counts()?;
        let reasons: Vec<_> = Reason::ALL
            .into_iter()
            .filter(|&reason| {
                let own = u64::from(outcome.reason == Some(reason));
                counted[reason as usize] > counts[reason as usize] - own
            })
            .collect();
        Ok(format!(
            "{:?} {:?}\nframe   {}\nhost    {outcome:x?} {}\n        {}\nkernel  {reasons:?} code {} mark {:#x}\n        {}",
            case.hook,
            case.arrival,
            hex(&case.frame),
            code(case.hook, outcome),
            hex(after),
            simulated.code,
            simulated.mark,
            hex(&simulated.frame),
        ))
    }

    /// A run of full length must have come everywhere that a packet can.
    fn covers(&self) -> Result<()> {
        // What needs two CPUs, a device without Ethernet header, a full table, or one clock for both.
        let beyond = [
            Reason::FlowGone,
            Reason::TableFull,
            Reason::PortsExhausted,
            Reason::FlowRate,
            // More pieces than a sequence has packets.
            Reason::FragmentQuota,
        ];
        let missed: Vec<_> = Reason::ALL
            .into_iter()
            .filter(|reason| !beyond.contains(reason) && !self.seen.contains_key(reason.label()))
            .collect();
        ensure!(missed.is_empty(), "never seen: {missed:?}");
        Ok(())
    }
}

fn tuple_of(frame: &[u8]) -> Option<Tuple<V4>> {
    let mut frame = frame.to_vec();
    let frame = forwarder_common::wire::frame::Frame::new(&mut frame);
    let mut packet = Packet::<V4>::default();
    parse(&frame, 14, &mut packet).ok()?;
    Some(packet.tuple)
}

fn show(record: Option<&(FlowRef, Vec<u8>)>) -> String {
    record.map_or("none".to_owned(), |(FlowRef { index, id }, record)| {
        format!("{index} of id {id}, {}", hex(record))
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
