// SPDX-License-Identifier: MIT OR Apache-2.0
//! Options and labels of networks and containers, converted to network options and access lists.
//!
//! A label of ours replaces an option that the daemon does not know, and overrides it.

use std::collections::BTreeMap;

use forwarder_state::host_state::PortName;
use forwarder_state::host_state::{Ingress, NetworkOptions};
use forwarder_state::overrides::range;
use ipnet::IpNet;

use super::inspect::{is_true, read};

const DEFAULT_BRIDGE: &str = "com.docker.network.bridge.default_bridge";
const ICC: &str = "com.docker.network.bridge.enable_icc";
pub(super) const MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
const HOST_IPV4: &str = "com.docker.network.host_ipv4";
const MODE: &str = "com.docker.network.bridge.gateway_mode_ipv4";
const TRUSTED: &str = "com.docker.network.bridge.trusted_host_interfaces";
/// Our label prefix, before the last word of the option.
const PREFIX: &str = "forwarder.";
/// Our labels: `forwarder.ingress.allow`, and for one port `forwarder.ingress.8080/tcp.allow`.
const INGRESS: &str = "forwarder.ingress.";
/// Our label of a network or a container: address ranges.
const ALLOWED_SOURCES: &str = "forwarder.allowed-sources";
/// The maximum number of ranges in one such label, because all share one map.
const ALLOWED_RANGES: usize = 64;
/// Our label of a network.
const ANY_MAC: &str = "forwarder.any-mac";
/// Our label of a network: `auto`, `own` or `off`.
const NETWORK_MODE: &str = "forwarder.mode";
/// Our label of a network.
const OTHER_FRAMES: &str = "forwarder.other-frames";

type Texts = BTreeMap<String, String>;

/// Returns the options of a network.
pub(super) fn of_network(options: &Texts, labels: &Texts) -> NetworkOptions {
    let labelled = |option: &str| {
        let word = option.rsplit('.').next().unwrap_or(option);
        labels.get(&format!("{PREFIX}{word}"))
    };
    let asked = |option: &str| {
        let text = labelled(option).or_else(|| options.get(option));
        text.map(String::as_str)
    };
    let is_default = options
        .get(DEFAULT_BRIDGE)
        .is_some_and(|text| is_true(text));
    NetworkOptions {
        icc: asked(ICC).is_none_or(is_true),
        masquerade: is_default && labelled(MASQUERADE).is_none()
            || asked(MASQUERADE).is_none_or(is_true),
        mode: asked(MODE).and_then(read).unwrap_or_default(),
        host_ipv4: asked(HOST_IPV4).and_then(read),
        trusted: asked(TRUSTED)
            .into_iter()
            .flat_map(|names| names.split(':'))
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect(),
        ingress: ingress(labels, ""),
        allowed_sources: allowed_sources(labels),
        any_mac: labels.get(ANY_MAC).is_some_and(|text| is_true(text)),
        network_mode: labels
            .get(NETWORK_MODE)
            .map(String::as_str)
            .and_then(read)
            .unwrap_or_default(),
        other_frames: labels.get(OTHER_FRAMES).is_some_and(|text| is_true(text)),
    }
}

/// Returns the sources besides their own that a container, or each container of a network, may use.
/// A list that cannot be parsed allows none.
pub(super) fn allowed_sources(labels: &Texts) -> Vec<IpNet> {
    let Some(text) = labels.get(ALLOWED_SOURCES) else {
        return Vec::new();
    };
    if text.split(',').count() > ALLOWED_RANGES {
        tracing::warn!(
            "label {ALLOWED_SOURCES} has more than {ALLOWED_RANGES} address ranges: no source is \
             allowed"
        );
        return Vec::new();
    }
    let names = text.split(',').map(str::trim);
    let ranges = names.map(range).collect::<Option<Vec<_>>>();
    if ranges.is_none() {
        tracing::warn!(
            "label {ALLOWED_SOURCES}: {text:?} is not a list of address ranges: no source is \
             allowed"
        );
    }
    ranges.unwrap_or_default()
}

/// Returns a container's access lists: for all of its published ports, and by port.
pub(super) fn of_container(labels: &Texts) -> (Ingress, BTreeMap<PortName, Ingress>) {
    let ports = labels.keys().filter_map(|label| {
        let (port, _) = label.strip_prefix(INGRESS)?.rsplit_once('.')?;
        match port.parse::<PortName>() {
            Ok(name) => Some((name, ingress(labels, &format!("{port}.")))),
            Err(why) => {
                tracing::warn!("label {label}: {why}");
                None
            }
        }
    });
    (ingress(labels, ""), ports.collect())
}

fn ingress(labels: &Texts, of: &str) -> Ingress {
    let list = |word: &str| -> Option<Vec<IpNet>> {
        let label = format!("{INGRESS}{of}{word}");
        let Some(text) = labels.get(&label) else {
            return Some(Vec::new());
        };
        let most = Ingress::RANGES;
        if text.split(',').count() > most {
            tracing::warn!("label {label} has more than {most} address ranges: nobody is let in");
            return None;
        }
        let names = text.split(',').map(str::trim);
        let ranges = names.map(range).collect::<Option<Vec<_>>>();
        if ranges.is_none() {
            tracing::warn!(
                "label {label}: {text} is not a list of address ranges: nobody is let in"
            );
        }
        ranges
    };
    match (list("allow"), list("deny")) {
        (Some(allow), Some(deny)) => Ingress { allow, deny },
        _ => Ingress::closed(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forwarder_state::host_state::GatewayMode;

    fn texts(pairs: &[(&str, &str)]) -> Texts {
        let pairs = pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned()));
        pairs.collect()
    }

    #[test]
    fn options_are_read_as_by_docker() {
        let options = texts(&[
            (MASQUERADE, "0"),
            (ICC, "False"),
            (HOST_IPV4, "198.18.0.9"),
            (MODE, "nat-unprotected"),
            (TRUSTED, "eth1:eth2"),
        ]);
        let terms = of_network(&options, &Texts::new());
        assert!(!terms.masquerade && !terms.icc);
        assert_eq!(terms.host_ipv4, Some([198, 18, 0, 9].into()));
        assert_eq!(terms.mode, GatewayMode::NatUnprotected);
        assert_eq!(terms.trusted, ["eth1", "eth2"]);
    }

    #[test]
    fn label_precedes_the_option() {
        let options = texts(&[(ICC, "true"), (MODE, "nat"), (DEFAULT_BRIDGE, "true")]);
        let labels = texts(&[
            ("forwarder.enable_icc", "false"),
            ("forwarder.gateway_mode_ipv4", "routed"),
            ("forwarder.enable_ip_masquerade", "false"),
            ("forwarder.host_ipv4", "198.18.0.8"),
        ]);
        let terms = of_network(&options, &labels);
        assert!(!terms.icc && !terms.masquerade);
        assert_eq!(terms.mode, GatewayMode::Routed);
        assert_eq!(terms.host_ipv4, Some([198, 18, 0, 8].into()));
        assert_eq!(
            of_network(&Texts::new(), &Texts::new()),
            NetworkOptions::default()
        );
    }

    #[test]
    fn lists_are_read_from_labels() {
        let labels = texts(&[
            ("forwarder.ingress.allow", "198.18.0.0/15, 10.0.0.1"),
            ("forwarder.ingress.8080/tcp.deny", "198.18.3.0/24"),
            ("forwarder.ingress.http.deny", "198.18.3.0/24"),
        ]);
        let (all, ports) = of_container(&labels);
        assert_eq!(all.allow.len(), 2);
        assert!(all.deny.is_empty());
        let port = &ports[&"8080/tcp".parse().unwrap()];
        assert_eq!((port.allow.len(), port.deny.len(), ports.len()), (0, 1, 1));
    }

    #[test]
    fn allowed_sources_are_read_or_none() {
        let of = |text| allowed_sources(&texts(&[("forwarder.allowed-sources", text)]));
        let expected = [range("10.8.0.0/24").unwrap(), range("10.9.0.1").unwrap()];
        assert_eq!(of("10.8.0.7/24, 10.9.0.1"), expected);
        assert!(of("10.8.0.0/24, everything").is_empty());
        let labels = texts(&[
            ("forwarder.any-mac", "true"),
            ("forwarder.other-frames", "1"),
        ]);
        let terms = of_network(&Texts::new(), &labels);
        assert!(terms.any_mac && terms.other_frames);
    }

    #[test]
    fn unreadable_list_lets_nobody_in() {
        let (all, _) = of_container(&texts(&[("forwarder.ingress.allow", "everybody")]));
        assert_eq!(all, Ingress::closed());
    }

    #[test]
    fn too_long_list_lets_nobody_in() {
        let of = |count: usize| {
            let ranges = vec!["198.18.0.0/24"; count].join(",");
            of_container(&texts(&[("forwarder.ingress.allow", &ranges)])).0
        };
        assert_eq!(of(Ingress::RANGES).allow.len(), Ingress::RANGES);
        assert_eq!(of(Ingress::RANGES + 1), Ingress::closed());
    }
}
