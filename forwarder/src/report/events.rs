// SPDX-License-Identifier: MIT OR Apache-2.0
//! Flow events as rows.

use std::time::Duration;

use forwarder_common::clock::{Ticks, reached};
use forwarder_common::event::EventKind;
use forwarder_common::tracking::tcp::State;
use forwarder_common::wire::proto;
use serde::{Deserialize, Serialize};

use super::{FlowRow, flow_row};
use crate::datapath::FlowEvent;

/// An event of a flow.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct EventRow {
    /// `new` or `end`.
    pub event: String,
    /// Seconds since 1970, in steps of 17 ms.
    pub time: f64,
    /// The flow's unique id: the same at its beginning and at its end.
    pub id: String,
    /// Why it ended: `expired`, `closed` or `reset` (TCP, by its state), `stale` (its container,
    /// its published port or its route has changed), `evicted` (replaced by newer flows before a
    /// reply), `deleted`, or `undone` (another CPU had just created the same flow).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The flow's lifetime in seconds.
    pub age_s: f64,
    /// The flow at that time.
    #[serde(flatten)]
    pub flow: FlowRow,
}

/// Returns an event's row. `now` is the present as a tick, and `wall` the present since 1970.
#[must_use]
pub fn event(event: &FlowEvent, now: Ticks, wall: Duration) -> EventRow {
    let FlowEvent { news, at, flow } = event;
    let ended = *news != EventKind::Begins;
    EventRow {
        event: if ended { "end" } else { "new" }.to_owned(),
        time: millis(wall.saturating_sub(since(*at, now))),
        id: format!("{}.{}", flow.index, flow.flow_state.id()),
        reason: ended.then(|| reason(event).to_owned()),
        age_s: millis(since(flow.created, *at)),
        flow: flow_row(flow, *at),
    }
}

/// Returns the time between two ticks.
pub(super) fn since(earlier: Ticks, later: Ticks) -> Duration {
    // A tick may pass between two readings of the clock.
    let span = if reached(earlier, later) {
        later.wrapping_sub(earlier)
    } else {
        0
    };
    Duration::from_nanos(u64::from(span) << 24)
}

/// Returns seconds, rounded down to the millisecond.
pub(super) fn millis(span: Duration) -> f64 {
    span.as_millis() as f64 / 1000.0
}

fn reason(event: &FlowEvent) -> &'static str {
    let FlowEvent { news, at, flow } = event;
    let tcp = flow.proto == proto::TCP;
    match news {
        EventKind::Evicted => "evicted",
        EventKind::Deleted => "deleted",
        EventKind::Undone => "undone",
        EventKind::Begins | EventKind::Over => match State::from_u8(flow.flow_state.state()) {
            State::Close if tcp => "reset",
            State::TimeWait | State::LastAck if tcp => "closed",
            _ if reached(flow.expires, *at) => "expired",
            _ => "stale",
        },
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use forwarder_common::abi::FlowState;

    use super::*;
    use crate::datapath::{Ends, FlowSnapshot};

    /// The number of ticks per second, approximately.
    const SECOND: Ticks = 60;

    fn told(news: EventKind, proto: u32, state: State, expires: Ticks) -> FlowEvent {
        let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let ends = |sport, dport| Ends {
            src: nowhere,
            sport,
            dst: nowhere,
            dport,
        };
        let flow = FlowSnapshot {
            proto,
            original: ends(40_000, 0),
            reply: ends(0, 40_000),
            index: 5,
            flow_state: FlowState(9 | (state as u64) << 32),
            packets: [3, 2],
            bytes: [180, 120],
            created: 1000,
            seen: 1000 + SECOND,
            expires,
        };
        FlowEvent {
            news,
            at: 1000 + 3 * SECOND,
            flow,
        }
    }

    /// The reasons of an end are those that the event's record names.
    #[test]
    fn end_reasons_come_from_the_record() {
        let reason = |news, proto, state, expires| {
            let row = event(&told(news, proto, state, expires), 2000, Duration::MAX);
            row.reason
        };
        let (past, future) = (1100, 5000);
        let over = |proto, state, expires| reason(EventKind::Over, proto, state, expires).unwrap();
        assert_eq!(over(proto::TCP, State::Established, past), "expired");
        assert_eq!(over(proto::TCP, State::Established, future), "stale");
        assert_eq!(over(proto::TCP, State::TimeWait, past), "closed");
        assert_eq!(over(proto::TCP, State::TimeWait, future), "closed");
        assert_eq!(over(proto::TCP, State::Close, past), "reset");
        assert_eq!(over(proto::UDP, State::None, past), "expired");
        let ended = |news| reason(news, proto::TCP, State::Close, past);
        assert_eq!(ended(EventKind::Evicted).as_deref(), Some("evicted"));
        assert_eq!(ended(EventKind::Deleted).as_deref(), Some("deleted"));
        assert_eq!(ended(EventKind::Undone).as_deref(), Some("undone"));
        assert_eq!(ended(EventKind::Begins), None);
    }

    /// The time shown is that of the event and not that of its reading.
    #[test]
    fn time_is_that_of_the_event() {
        let told = told(EventKind::Over, proto::UDP, State::None, 1100);
        let wall = Duration::from_secs(1_000_000);
        let row = event(&told, told.at + 10 * SECOND, wall);
        assert!(
            (row.time - (1_000_000.0 - 10.06)).abs() < 0.1,
            "{}",
            row.time
        );
        assert!((row.age_s - 3.02).abs() < 0.1, "{}", row.age_s);
        assert_eq!((row.flow.idle_s, row.flow.packets), (2, 5));
        assert_eq!((row.event.as_str(), row.id.as_str()), ("end", "5.9"));
        let early = event(&told, told.at - 1, wall);
        assert!((early.time - 1_000_000.0).abs() < 0.001, "{}", early.time);
    }
}
