// SPDX-License-Identifier: MIT OR Apache-2.0
//! Log messages about exhausted resources: flow records, ports, or a container's quota. Pure.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use forwarder_common::reason::Reason;
use forwarder_state::host_state::HostState;

/// The minimum time between two messages of the same reason.
const PAUSE: Duration = Duration::from_secs(10);

/// How often each resource was exhausted, by reason.
type Counts = [(Reason, u64); Reason::EXHAUSTED.len()];

/// What the log already says about each reason.
pub(crate) struct Exhaustion {
    logged: Counts,
    last: [Option<Instant>; Reason::EXHAUSTED.len()],
}

impl Exhaustion {
    /// Starts from these counts: earlier events are not logged.
    pub(crate) fn since(counts: Counts) -> Self {
        Self {
            logged: counts,
            last: Default::default(),
        }
    }

    /// Returns the messages that are due: a sentence for each reason whose count has increased
    /// since its last message.
    pub(crate) fn due(&mut self, counts: Counts, now: Instant) -> Vec<String> {
        let mut messages = Vec::new();
        for ((logged, last), (reason, count)) in
            self.logged.iter_mut().zip(&mut self.last).zip(counts)
        {
            let packets = count.saturating_sub(logged.1);
            if packets == 0 || last.is_some_and(|last| now.duration_since(last) < PAUSE) {
                continue;
            }
            *last = Some(now);
            logged.1 = count;
            let (label, text) = (reason.label(), reason.text());
            messages.push(format!("{packets} packets refused ({label}): {text}"));
        }
        messages
    }
}

/// Returns the container that created most of the live flows, from the number of flows of each
/// address.
pub(crate) fn holder(host_state: &HostState, opened: &[(IpAddr, u32)]) -> Option<String> {
    let &(address, flows) = opened.iter().max_by_key(|(_, flows)| flows)?;
    let container = host_state
        .endpoint_at(address)
        .and_then(|(_, container)| host_state.containers.get(container));
    let name = container.map_or("a container", |container| &container.name);
    (flows > 0).then(|| format!(" Most open flows: {name} ({address}), {flows}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(quota: u64) -> Counts {
        Reason::EXHAUSTED.map(|reason| {
            let count = if reason == Reason::FlowQuota {
                quota
            } else {
                3
            };
            (reason, count)
        })
    }

    /// A drop reason is logged when its count grows, and not too often.
    #[test]
    fn growing_reason_is_logged_at_a_limited_rate() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut exhaustion = Exhaustion::since(counts(5));
        assert!(exhaustion.due(counts(5), at(0)).is_empty(), "of before");
        let said = exhaustion.due(counts(7), at(1));
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].starts_with("2 packets refused (flow-quota): "));
        assert!(exhaustion.due(counts(9), at(2)).is_empty(), "too soon");
        let said = exhaustion.due(counts(9), at(11));
        assert!(said[0].starts_with("2 packets "), "what came in between");
        assert!(exhaustion.due(counts(9), at(60)).is_empty(), "told");
    }

    #[test]
    fn container_with_most_flows_is_named() {
        let host_state = HostState::default();
        let address = |last| IpAddr::from([172, 17, 0, last]);
        let opened = [(address(2), 5), (address(3), 70), (address(4), 0)];
        assert_eq!(
            holder(&host_state, &opened).unwrap(),
            " Most open flows: a container (172.17.0.3), 70."
        );
        assert_eq!(holder(&host_state, &opened[2..]), None);
    }
}
