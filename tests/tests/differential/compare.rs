// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where two arms differ, and what holds whatever the other arm does.

use std::collections::BTreeMap;

use harness::is_private;

use crate::flow::{Flow, Name};
use crate::known::Difference;
use crate::place::{At, End};
use crate::play::Observation;
use crate::shot::{Body, Damage, Shot};
use crate::view::{address, quoted_ends};

/// All differences of a step, with the shot that each is about.
pub(crate) fn compare(
    step: &str,
    shots: &[&Shot],
    stock: &[Observation],
    ours: &[Observation],
) -> Vec<(Difference, Option<usize>)> {
    let mut all = Vec::new();
    let mut differ = |key: &str, shot, field: &str, stock: &str, ours: &str| {
        let difference = Difference {
            step: step.to_owned(),
            packet: plain(key),
            field: field.to_owned(),
            stock: stock.to_owned(),
            ours: ours.to_owned(),
        };
        all.push((difference, shot));
    };
    let index = |observed: &[Observation]| -> BTreeMap<String, usize> {
        let keys = observed.iter().enumerate();
        keys.map(|(place, came)| (came.key.clone(), place))
            .collect()
    };
    let (by_stock, by_ours) = (index(stock), index(ours));
    let mut keys: Vec<_> = by_stock.keys().chain(by_ours.keys()).collect();
    keys.sort();
    keys.dedup();
    for key in keys {
        let at = |observed: Option<&Observation>| match observed {
            Some(came) => came.at.name(),
            None => "nowhere",
        };
        let in_stock = by_stock.get(key).map(|place| &stock[*place]);
        let in_ours = by_ours.get(key).map(|place| &ours[*place]);
        let shot = number(key);
        if at(in_stock) != at(in_ours) {
            differ(key, shot, "at", at(in_stock), at(in_ours));
            continue;
        }
        let (Some(in_stock), Some(in_ours)) = (in_stock, in_ours) else {
            continue;
        };
        let names = in_stock.fields.iter().chain(&in_ours.fields);
        let mut names: Vec<_> = names.map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let value = |came: &Observation| {
                let field = came.fields.iter().find(|field| field.0 == name);
                field.map_or("absent".to_owned(), |field| field.1.clone())
            };
            let (in_stock, in_ours) = (value(in_stock), value(in_ours));
            if in_stock != in_ours {
                differ(key, shot, name, &in_stock, &in_ours);
            }
        }
    }
    for at in crate::place::PLACES {
        let order = |observed: &[Observation], other: &BTreeMap<String, usize>| -> Vec<String> {
            let common = observed.iter().filter(|came| {
                came.at == at && came.shot.is_some() && other.contains_key(&came.key)
            });
            common.map(|came| came.key.clone()).collect()
        };
        let (in_stock, in_ours) = (order(stock, &by_ours), order(ours, &by_stock));
        if in_stock.len() == in_ours.len() && in_stock != in_ours {
            differ(
                at.name(),
                None,
                "order",
                &in_stock.join(", "),
                &in_ours.join(", "),
            );
        }
    }
    debug_assert!(
        all.iter()
            .all(|(_, shot)| shot.is_none_or(|shot| shot < shots.len()))
    );
    all
}

/// What a step has broken that has to hold whatever stock does: no container's address outside, no
/// wrong checksum of a packet that was right, quotes as their receiver sent them, no two flows that
/// look the same.
pub(crate) fn invariants(
    step: &str,
    shots: &[&Shot],
    ours: &[Observation],
    flows: &[Flow],
    seen: &[Option<End>],
) -> Vec<(Difference, Option<usize>)> {
    let mut all = Vec::new();
    let mut broken = |key: &str, what: &str| {
        let difference = Difference {
            step: step.to_owned(),
            packet: plain(key),
            field: "invariant".to_owned(),
            stock: "whatever".to_owned(),
            ours: what.to_owned(),
        };
        all.push((difference, None));
    };
    for came in ours {
        let mut ends = vec![address(&came.packet[12..16])];
        let quoted = quoted_ends(&came.packet);
        ends.extend(quoted.into_iter().flatten());
        if came.at == At::Lan && ends.iter().any(|end| is_private(*end)) {
            broken(&came.key, "a container's address outside");
        }
        let damaged = came
            .shot
            .is_some_and(|shot| shots[shot].draft.damage != Damage::None);
        let wrong = came.fields.iter().any(|(name, value)| {
            value == "wrong" && matches!(name.as_str(), "checksum" | "header checksum")
        });
        if wrong && !damaged {
            broken(&came.key, "a wrong checksum");
        }
        let about = number(&came.key).filter(|_| came.shot.is_none());
        if let (Some(shot), Some(quoted)) = (about, quoted) {
            let name = |name| match name {
                Name::Fixed(address, _) => Some(address),
                Name::Seen(flow) => seen[flow].map(|end| end.0),
            };
            let sent = [shots[shot].draft.ends.0, shots[shot].draft.ends.1].map(name);
            let same = sent
                .iter()
                .zip(quoted)
                .all(|(sent, quoted)| sent.is_none_or(|s| s == quoted));
            if !same {
                broken(&came.key, "a quote that nobody sent");
            }
        }
    }
    let opened: Vec<usize> = shots
        .iter()
        .filter(|shot| !matches!(shot.draft.body, Body::Error(_)))
        .filter_map(|shot| shot.flow)
        .collect();
    let tuple = |flow: usize| seen[flow].map(|end| (flows[flow].proto, end, flows[flow].server));
    let alive = |flow: &&Flow| !flow.over || opened.contains(&flow.number);
    for flow in opened.iter().copied() {
        let Some(own) = tuple(flow) else { continue };
        let mut others = flows.iter().filter(alive);
        if others.any(|other| other.number != flow && tuple(other.number) == Some(own)) {
            broken(flows[flow].kind(), "two flows that look the same");
        }
    }
    all
}

/// A packet's key without its number in the step, which is of no interest to the list.
fn plain(key: &str) -> String {
    match key.split_once('#') {
        Some((label, rest)) => label.to_owned() + rest.trim_start_matches(char::is_numeric),
        None => key.to_owned(),
    }
}

/// A packet's number in its step, from its key.
fn number(key: &str) -> Option<usize> {
    key.rsplit_once('#')?.1.split(' ').next()?.parse().ok()
}
