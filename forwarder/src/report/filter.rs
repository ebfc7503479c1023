// SPDX-License-Identifier: MIT OR Apache-2.0
//! Filters for flows: conditions that must all hold.

use std::collections::BTreeSet;
use std::net::IpAddr;

use forwarder_common::tracking::tcp::State;
use ipnet::IpNet;

use super::{ASSURED, Ends, FlowRow, REPLIED, UNREPLIED};

/// Conditions on flows. A condition that is not set always holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    /// One of these must be an address of the flow.
    pub addresses: Option<BTreeSet<IpAddr>>,
    /// Must be a port of the flow, before or after translation.
    pub port: Option<u16>,
    /// Must be the flow's state, as [`state_named`] writes it.
    pub state: Option<String>,
    /// Must contain an address of the flow, before or after translation.
    pub peer: Option<IpNet>,
    /// Must be the protocol's name.
    pub proto: Option<String>,
}

impl Filter {
    /// Whether every flow matches.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether all conditions hold.
    #[must_use]
    pub fn matches(&self, flow: &FlowRow) -> bool {
        let ends = [&flow.original, &flow.reply];
        let at = |holds: &dyn Fn(IpAddr) -> bool| {
            let either = |Ends { src, dst, .. }: &&Ends| holds(*src) || holds(*dst);
            ends.iter().any(either)
        };
        let from = |port| {
            let either = |Ends { sport, dport, .. }: &&Ends| [*sport, *dport].contains(&port);
            ends.iter().any(either)
        };
        let addresses = self.addresses.as_ref();
        let is = |wanted: Option<&String>, value: &String| wanted.is_none_or(|name| name == value);
        addresses.is_none_or(|all| at(&|address| all.contains(&address)))
            && self
                .peer
                .is_none_or(|net| at(&|address| net.contains(&address)))
            && self.port.is_none_or(from)
            && is(self.state.as_ref(), &flow.state)
            && is(self.proto.as_ref(), &flow.proto)
    }
}

/// Returns the state with this name. Case is ignored, and `-` stands for `_`.
///
/// # Errors
/// There is no such state. The error lists the existing ones.
pub fn state_named(name: &str) -> Result<String, String> {
    let wanted = name.to_uppercase().replace('-', "_");
    let others = [UNREPLIED, REPLIED, ASSURED];
    let all: Vec<_> = State::ALL
        .map(State::label)
        .into_iter()
        .chain(others)
        .collect();
    if all.contains(&wanted.as_str()) {
        Ok(wanted)
    } else {
        Err(format!("no such state; the states are {}", all.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> FlowRow {
        let ends = |src: [u8; 4], sport, dst: [u8; 4], dport| Ends {
            src: src.into(),
            sport,
            dst: dst.into(),
            dport,
        };
        FlowRow {
            proto: "tcp".to_owned(),
            original: ends([198, 18, 1, 2], 40_000, [198, 18, 1, 1], 8080),
            reply: ends([172, 17, 0, 2], 80, [198, 18, 1, 2], 40_000),
            state: "TIME_WAIT".to_owned(),
            packets: 1,
            bytes: 60,
            idle_s: 0,
        }
    }

    fn matches(change: impl FnOnce(&mut Filter)) -> bool {
        let mut filter = Filter::default();
        change(&mut filter);
        assert!(!filter.is_empty());
        filter.matches(&flow())
    }

    #[test]
    fn empty_filter_matches_every_flow() {
        assert!(Filter::default().is_empty() && Filter::default().matches(&flow()));
    }

    /// Ports and addresses are matched as they are before and after translation.
    #[test]
    fn filter_matches_before_and_after_nat() {
        for port in [40_000, 8080, 80] {
            assert!(matches(|filter| filter.port = Some(port)), "{port}");
        }
        assert!(!matches(|filter| filter.port = Some(8081)));
        let peer = |text: &str| matches(|filter| filter.peer = Some(text.parse().unwrap()));
        for net in [
            "198.18.1.0/24",
            "198.18.1.1/32",
            "172.16.0.0/12",
            "0.0.0.0/0",
        ] {
            assert!(peer(net), "{net}");
        }
        assert!(!peer("198.18.2.0/24") && !peer("::/0"));
    }

    #[test]
    fn container_addresses_are_alternatives() {
        let of = |all: &[[u8; 4]]| {
            let all = all.iter().map(|octets| (*octets).into()).collect();
            matches(|filter| filter.addresses = Some(all))
        };
        assert!(of(&[[172, 18, 0, 9], [172, 17, 0, 2]]));
        assert!(!of(&[[172, 18, 0, 9]]));
        assert!(!of(&[]), "a container without an address has no flows");
    }

    #[test]
    fn all_conditions_must_hold() {
        let both = |port, proto: &str| {
            matches(|filter| {
                filter.port = Some(port);
                filter.proto = Some(proto.to_owned());
            })
        };
        assert!(both(80, "tcp"));
        assert!(!both(80, "udp") && !both(81, "tcp"));
    }

    #[test]
    fn states_have_the_shown_names() {
        let state = |name| matches(|filter| filter.state = Some(state_named(name).unwrap()));
        assert!(state("TIME_WAIT") && state("time-wait") && state("Time_Wait"));
        assert!(!state("established") && !state("unreplied"));
        let refused = state_named("open").unwrap_err();
        assert!(refused.contains("ESTABLISHED") && refused.contains("ASSURED"));
    }
}
