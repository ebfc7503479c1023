// SPDX-License-Identifier: MIT OR Apache-2.0
//! The administrator's overrides for networks, containers and published ports: the file's
//! `[network.NAME]` and `[port."8080/tcp"]`. They override Docker's options and labels.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de};

use crate::host_state::{
    Container, GatewayMode, HostPort, Ingress, Network, NetworkMode, NetworkOptions, PortName,
};

/// All overrides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// By the network's name.
    pub networks: BTreeMap<String, NetworkRules>,
    /// By the published port.
    pub ports: BTreeMap<PortName, PortRules>,
    /// By the container's name.
    pub containers: BTreeMap<String, ContainerRules>,
}

/// Overrides of a network. What they do not name stays as Docker and labels set it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct NetworkRules {
    icc: Option<bool>,
    masquerade: Option<bool>,
    gateway_mode_ipv4: Option<GatewayMode>,
    host_ipv4: Option<Ipv4Addr>,
    trusted_host_interfaces: Option<Vec<String>>,
    #[serde(deserialize_with = "ranges")]
    ingress_allow: Option<Vec<IpNet>>,
    #[serde(deserialize_with = "ranges")]
    ingress_deny: Option<Vec<IpNet>>,
    #[serde(deserialize_with = "ranges")]
    allowed_sources: Option<Vec<IpNet>>,
    any_mac: Option<bool>,
    mode: Option<NetworkMode>,
    other_frames: Option<bool>,
}

/// Overrides of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ContainerRules {
    #[serde(deserialize_with = "ranges")]
    allowed_sources: Option<Vec<IpNet>>,
}

/// Overrides of a published port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct PortRules {
    #[serde(deserialize_with = "ranges")]
    ingress_allow: Option<Vec<IpNet>>,
    #[serde(deserialize_with = "ranges")]
    ingress_deny: Option<Vec<IpNet>>,
}

impl<'de> Deserialize<'de> for PortName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = String::deserialize(from)?;
        name.parse().map_err(de::Error::custom)
    }
}

impl Overrides {
    /// Returns the options of a network.
    #[must_use]
    pub fn terms(&self, network: &Network) -> NetworkOptions {
        let mut terms = network.terms.clone();
        let Some(rules) = self.networks.get(&network.name) else {
            return terms;
        };
        terms.icc = rules.icc.unwrap_or(terms.icc);
        terms.masquerade = rules.masquerade.unwrap_or(terms.masquerade);
        terms.mode = rules.gateway_mode_ipv4.unwrap_or(terms.mode);
        terms.host_ipv4 = rules.host_ipv4.or(terms.host_ipv4);
        if let Some(trusted) = &rules.trusted_host_interfaces {
            terms.trusted.clone_from(trusted);
        }
        if let Some(list) = list(&rules.ingress_allow, &rules.ingress_deny) {
            terms.ingress = list;
        }
        if let Some(sources) = &rules.allowed_sources {
            terms.allowed_sources.clone_from(sources);
        }
        terms.network_mode = rules.mode.unwrap_or(terms.network_mode);
        terms.any_mac = rules.any_mac.unwrap_or(terms.any_mac);
        terms.other_frames = rules.other_frames.unwrap_or(terms.other_frames);
        terms
    }

    /// Returns the sources besides its own address that a container may use.
    #[must_use]
    pub fn allowed_sources<'a>(&'a self, container: &'a Container) -> &'a [IpNet] {
        let rules = self.containers.get(&container.name);
        let by_file = rules.and_then(|rules| rules.allowed_sources.as_ref());
        by_file.unwrap_or(&container.allowed_sources)
    }

    /// Returns the access list of a container's published port: the file's list for the port, else
    /// the container's label for the port, else its label for all ports. The container may not be
    /// known yet; it does not run before it is known.
    #[must_use]
    pub fn ingress(&self, container: Option<&Container>, at: &HostPort) -> Ingress {
        let name = |host_ip| PortName {
            host_ip,
            port: at.port,
            proto: at.proto,
        };
        let names = [name(Some(at.ip)), name(None)];
        let by_file = names.iter().find_map(|name| self.ports.get(name));
        if let Some(list) = by_file.and_then(|r| list(&r.ingress_allow, &r.ingress_deny)) {
            return list;
        }
        let Some(container) = container else {
            return Ingress::default();
        };
        let by_label = names
            .iter()
            .find_map(|name| container.port_ingress.get(name));
        by_label.unwrap_or(&container.ingress).clone()
    }
}

fn list(allow: &Option<Vec<IpNet>>, deny: &Option<Vec<IpNet>>) -> Option<Ingress> {
    let named = allow.is_some() || deny.is_some();
    let of = |ranges: &Option<Vec<IpNet>>| ranges.clone().unwrap_or_default();
    // An empty list of admitted clients admits no client.
    if allow.as_ref().is_some_and(Vec::is_empty) {
        return Some(Ingress::closed());
    }
    named.then(|| Ingress {
        allow: of(allow),
        deny: of(deny),
    })
}

/// Deserializes address ranges, written as `ADDRESS/LENGTH` or `ADDRESS`.
fn ranges<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<IpNet>>, D::Error> {
    let names = Vec::<String>::deserialize(from)?;
    let most = Ingress::RANGES;
    if names.len() > most {
        let why = format!(
            "{} address ranges exceed the maximum of {most}",
            names.len()
        );
        return Err(de::Error::custom(why));
    }
    let ranges = names.iter().map(|name| {
        range(name).ok_or_else(|| de::Error::custom(format!("{name} is not an address range")))
    });
    ranges.collect::<Result<_, _>>().map(Some)
}

/// Parses a range of addresses, or a single address; host bits are ignored.
#[must_use]
pub fn range(text: &str) -> Option<IpNet> {
    let range = text
        .parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    range.ok().map(|range| range.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_state::Proto;

    fn port(name: &str) -> Result<PortName, String> {
        name.parse()
    }

    #[test]
    fn ports_have_names() {
        let name = port("8080").unwrap();
        assert_eq!(
            (name.host_ip, name.port, name.proto),
            (None, 8080, Proto::Tcp)
        );
        let name = port("198.18.1.1:53/udp").unwrap();
        assert_eq!(name.host_ip, Some([198, 18, 1, 1].into()));
        assert_eq!((name.port, name.proto), (53, Proto::Udp));
        assert!(
            port("[2001:db8::1]:80/tcp")
                .unwrap()
                .host_ip
                .unwrap()
                .is_ipv6()
        );
        for wrong in ["", "http", "80/dccp", "70000", "198.18.1.1/tcp"] {
            assert!(port(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn file_precedes_docker_and_labels() {
        let rules: NetworkRules = toml::from_str(
            "icc = false\ngateway-mode-ipv4 = 'routed'\ningress-allow = ['198.18.7.7/16']",
        )
        .unwrap();
        let rules = Overrides {
            networks: [("web".to_owned(), rules)].into(),
            ..Overrides::default()
        };
        let mut network = Network {
            name: "web".into(),
            ..Network::default()
        };
        network.terms.host_ipv4 = Some([198, 18, 0, 9].into());
        let terms = rules.terms(&network);
        assert!(!terms.icc && terms.masquerade);
        assert_eq!(terms.mode, GatewayMode::Routed);
        assert_eq!(terms.host_ipv4, network.terms.host_ipv4, "not named");
        assert_eq!(terms.ingress.allow, [range("198.18.0.0/16").unwrap()]);
        network.name = "other".into();
        assert_eq!(rules.terms(&network), network.terms);
    }

    #[test]
    fn allowed_sources_of_a_file_come_first() {
        let range = |text| super::range(text).unwrap();
        let mut container = Container {
            name: "vpn".into(),
            allowed_sources: vec![range("10.8.0.0/24")],
            ..Container::default()
        };
        let of_file = toml::from_str("allowed-sources = ['10.9.0.0/24']").unwrap();
        let rules = Overrides {
            containers: [("vpn".to_owned(), of_file)].into(),
            ..Overrides::default()
        };
        assert_eq!(rules.allowed_sources(&container), [range("10.9.0.0/24")]);
        container.name = "other".into();
        assert_eq!(rules.allowed_sources(&container), [range("10.8.0.0/24")]);
    }

    #[test]
    fn most_specific_list_of_a_port_counts() {
        let only = |text: &str| Ingress {
            allow: vec![range(text).unwrap()],
            deny: Vec::new(),
        };
        let at = HostPort {
            proto: Proto::Tcp,
            ip: [0, 0, 0, 0].into(),
            port: 8080,
        };
        let mut container = Container {
            ingress: only("198.18.1.0/24"),
            ..Container::default()
        };
        let mut rules = Overrides::default();
        assert_eq!(rules.ingress(Some(&container), &at), container.ingress);
        let label = only("198.18.2.0/24");
        let name = port("8080/tcp").unwrap();
        container.port_ingress.insert(name, label.clone());
        assert_eq!(rules.ingress(Some(&container), &at), label);
        let of_file: PortRules = toml::from_str("ingress-deny = ['198.18.3.1']").unwrap();
        rules.ports.insert(name, of_file);
        let list = rules.ingress(Some(&container), &at);
        assert_eq!((list.allow.len(), list.deny.len()), (0, 1));
        let nobody: PortRules = toml::from_str("ingress-allow = []").unwrap();
        rules.ports.insert(name, nobody);
        assert_eq!(rules.ingress(Some(&container), &at), Ingress::closed());
    }

    #[test]
    fn invalid_ranges_are_refused() {
        let refused = toml::from_str::<PortRules>("ingress-allow = ['198.18.0.0/40']");
        let error = refused.unwrap_err().to_string();
        assert!(
            error.contains("198.18.0.0/40 is not an address range"),
            "{error}"
        );
    }
}
