// SPDX-License-Identifier: MIT OR Apache-2.0
//! Conversion of Docker's JSON (as bollard models it) to the types of the host state. Pure; what
//! cannot be parsed is omitted.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use bollard::models::{
    ContainerInspectResponse, EndpointResource, EndpointSettings, IpamConfig, NetworkInspect,
    PortMap,
};
use forwarder_state::host_state::{
    Container, ContainerId, Endpoint, EndpointId, Mac, Network, NetworkEndpoint, NetworkId,
    PortBinding, Proto, Subnet,
};

use super::terms;

const BRIDGE_NAME: &str = "com.docker.network.bridge.name";
const MTU: &str = "com.docker.network.driver.mtu";

/// Converts a network as `GET /networks/{id}` shows it; none without an id.
pub(super) fn network(json: NetworkInspect) -> Option<Network> {
    let id = NetworkId(json.id?);
    let driver = json.driver.unwrap_or_default();
    let options = sorted(json.options);
    let labels = sorted(json.labels);
    // A range that was configured without `--ipv6` is not used.
    let has_ipv6 = json.enable_ipv6.unwrap_or(true);
    let option = |key: &str| options.get(key).map(String::as_str);
    let bridge = (driver == "bridge")
        .then(|| option(BRIDGE_NAME).map_or_else(|| format!("br-{}", id.short()), str::to_owned));
    Some(Network {
        name: json.name.unwrap_or_default(),
        bridge,
        subnets: json
            .ipam
            .and_then(|ipam| ipam.config)
            .unwrap_or_default()
            .iter()
            .filter_map(subnet)
            .filter(|subnet| has_ipv6 || subnet.address.is_ipv4())
            .collect(),
        internal: json.internal.unwrap_or_default(),
        terms: terms::of_network(&options, &labels),
        mtu: option(MTU).and_then(read),
        labels,
        endpoints: json
            .containers
            .into_iter()
            .flatten()
            .filter_map(network_endpoint)
            .collect(),
        id,
        driver,
        options,
    })
}

/// Converts a container as `GET /containers/{id}/json` shows it, without its namespace's number;
/// none without an id.
pub(super) fn container(json: ContainerInspectResponse) -> Option<Container> {
    let state = json.state.unwrap_or_default();
    let settings = json.network_settings.unwrap_or_default();
    // Between two attempts of a restart policy, Docker reports "running" without a process.
    let pid = state
        .pid
        .and_then(|pid| u32::try_from(pid).ok())
        .unwrap_or_default();
    let running = state.running.unwrap_or_default() && pid != 0;
    let host = json.host_config.unwrap_or_default();
    let config = json.config.unwrap_or_default();
    let bound = settings.ports.filter(|_| running).unwrap_or_default();
    let published = container_ports(bound.iter().filter(|(_, to)| to.is_some()).map(|(p, _)| p));
    let labels = sorted(config.labels);
    let (ingress, port_ingress) = terms::of_container(&labels);
    Some(Container {
        id: ContainerId(json.id?),
        name: json
            .name
            .unwrap_or_default()
            .trim_start_matches('/')
            .to_owned(),
        pid,
        running,
        paused: state.paused.unwrap_or_default(),
        sandbox_key: settings.sandbox_key.unwrap_or_default(),
        netns: None,
        network_mode: host.network_mode.unwrap_or_default(),
        endpoints: settings
            .networks
            .into_iter()
            .flatten()
            .filter_map(endpoint)
            .collect(),
        ports: ports(bound),
        exposed: &container_ports(config.exposed_ports.iter().flatten()) | &published,
        published,
        links: host
            .links
            .iter()
            .flatten()
            .filter_map(|l| linked(l))
            .collect(),
        ingress,
        port_ingress,
        allowed_sources: terms::allowed_sources(&labels),
        labels,
    })
}

fn network_endpoint(
    (container, json): (String, EndpointResource),
) -> Option<(EndpointId, NetworkEndpoint)> {
    let endpoint = NetworkEndpoint {
        container: ContainerId(container),
        ipv4: json.ipv4_address.as_deref().and_then(bare),
        ipv6: json.ipv6_address.as_deref().and_then(bare),
        mac: json.mac_address.as_deref().and_then(mac),
    };
    Some((
        EndpointId(json.endpoint_id.filter(|id| !id.is_empty())?),
        endpoint,
    ))
}

/// Converts an attachment; none while Docker has not created it (a container that does not run
/// lists its networks without ids).
fn endpoint((name, json): (String, EndpointSettings)) -> Option<(NetworkId, Endpoint)> {
    let network = NetworkId(json.network_id.filter(|id| !id.is_empty())?);
    let endpoint = Endpoint {
        id: EndpointId(json.endpoint_id.filter(|id| !id.is_empty())?),
        network_name: name,
        ipv4: json.ip_address.as_deref().and_then(read),
        ipv6: json.global_ipv6_address.as_deref().and_then(read),
        mac: json.mac_address.as_deref().and_then(mac),
        gateway_v4: json.gateway.as_deref().and_then(read),
        gateway_v6: json.ipv6_gateway.as_deref().and_then(read),
        gateway_priority: json.gw_priority.unwrap_or_default(),
    };
    Some((network, endpoint))
}

fn subnet(json: &IpamConfig) -> Option<Subnet> {
    let (address, prefix_len) = json.subnet.as_deref()?.split_once('/')?;
    Some(Subnet {
        address: read(address)?,
        prefix_len: read(prefix_len)?,
        gateway: json.gateway.as_deref().and_then(bare),
    })
}

/// Returns the bindings in force, sorted. A port without a host port is exposed or routed, not
/// published.
fn ports(json: PortMap) -> Vec<PortBinding> {
    let mut all = Vec::new();
    for (port, bindings) in json {
        let Some((proto, container_port)) = container_port(&port) else {
            continue;
        };
        for binding in bindings.into_iter().flatten() {
            let host_ip = match binding.host_ip.as_deref() {
                None | Some("") => Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
                Some(address) => read(address),
            };
            let host_port = binding
                .host_port
                .as_deref()
                .and_then(read)
                .filter(|&port| port != 0);
            if let (Some(host_ip), Some(host_port)) = (host_ip, host_port) {
                all.push(PortBinding {
                    proto,
                    host_ip,
                    host_port,
                    container_port,
                });
            }
        }
    }
    all.sort();
    all
}

/// Parses `80/tcp`.
fn container_port(text: &str) -> Option<(Proto, u16)> {
    let (port, proto) = text.split_once('/')?;
    Some((read(proto)?, read(port)?))
}

fn container_ports<'a>(texts: impl Iterator<Item = &'a String>) -> BTreeSet<(Proto, u16)> {
    texts.filter_map(|text| container_port(text)).collect()
}

/// Returns the container that a link (`/child:/parent/alias`) refers to.
fn linked(link: &str) -> Option<String> {
    let (child, _) = link.split_once(':')?;
    Some(child.trim_start_matches('/').to_owned())
}

fn mac(text: &str) -> Option<Mac> {
    let mut bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let mut mac = Mac::default();
    for byte in &mut mac {
        *byte = bytes.next()?.ok()?;
    }
    bytes.next().is_none().then_some(mac)
}

pub(super) fn read<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

/// Parses an address that may have a prefix length.
fn bare<T: FromStr>(text: &str) -> Option<T> {
    read(text.split_once('/').map_or(text, |(address, _)| address))
}

/// Parses a boolean as Go's `strconv.ParseBool` reads the options.
pub(super) fn is_true(text: &str) -> bool {
    matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

fn sorted(map: Option<HashMap<String, String>>) -> BTreeMap<String, String> {
    map.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use forwarder_state::host_state::NetworkOptions;

    const NETWORK: &str = include_str!("fixtures/network.json");
    const DOCKER0: &str = include_str!("fixtures/docker0.json");
    const CONTAINER: &str = include_str!("fixtures/container.json");
    const STOPPED: &str = include_str!("fixtures/stopped.json");

    fn parsed_network(json: &str) -> Network {
        network(serde_json::from_str(json).unwrap()).unwrap()
    }

    fn parsed_container(json: &str) -> Container {
        container(serde_json::from_str(json).unwrap()).unwrap()
    }

    #[test]
    fn user_defined_network_is_read() {
        let network = parsed_network(NETWORK);
        assert_eq!(
            network.bridge.as_deref(),
            Some("br-f711d44070ae"),
            "named by its id"
        );
        assert_eq!(network.subnets.len(), 1);
        assert_eq!(network.subnets[0].prefix_len, 16);
        assert_eq!(network.subnets[0].gateway, Some([172, 18, 0, 1].into()));
        assert!(
            network.terms == NetworkOptions::default() && !network.internal,
            "absent options are Docker's defaults"
        );
        let (id, endpoint) = network.endpoints.first_key_value().unwrap();
        assert!(id.0.starts_with("b3dd2a89153e"));
        assert_eq!(endpoint.ipv4, Some([172, 18, 0, 2].into()));
        assert_eq!(endpoint.ipv6, None);
        assert_eq!(endpoint.mac, Some([0x02, 0x42, 0xac, 0x12, 0, 2]));
        assert_eq!(endpoint.container.short(), "160dfb9e92fc");
    }

    /// The default bridge of a daemon without iptables still masquerades.
    #[test]
    fn default_bridge_masquerades_without_iptables() {
        let network = parsed_network(DOCKER0);
        assert_eq!(network.bridge.as_deref(), Some("docker0"));
        assert_eq!(
            network.options[terms::MASQUERADE],
            "false",
            "what the daemon reports"
        );
        assert!(network.terms.masquerade);
        assert_eq!(network.mtu, Some(1500));
        assert_eq!(
            network.subnets[0].gateway, None,
            "it is the bridge's own address"
        );
    }

    /// Options of a network are read as Docker reads them.
    #[test]
    fn network_options_are_read_as_by_docker() {
        let mut json: NetworkInspect = serde_json::from_str(NETWORK).unwrap();
        json.options = Some(HashMap::from([
            (BRIDGE_NAME.to_owned(), "corp0".to_owned()),
            (terms::MASQUERADE.to_owned(), "0".to_owned()),
        ]));
        let network = network(json.clone()).unwrap();
        assert_eq!(network.bridge.as_deref(), Some("corp0"));
        assert!(!network.terms.masquerade && network.terms.icc);
        json.driver = Some("macvlan".to_owned());
        assert_eq!(super::network(json).unwrap().bridge, None);
    }

    #[test]
    fn running_container_is_read() {
        let container = parsed_container(CONTAINER);
        assert_eq!((container.name.as_str(), container.pid), ("c1", 9324));
        assert!(container.running && !container.paused);
        assert_eq!(container.sandbox_key, "/var/run/docker/netns/7890898e0462");
        assert_eq!(container.network_mode, "web");
        assert_eq!(container.labels["a"], "b");
        assert_eq!(
            container.ports,
            [
                PortBinding {
                    proto: Proto::Tcp,
                    host_ip: [0, 0, 0, 0].into(),
                    host_port: 8080,
                    container_port: 80
                },
                PortBinding {
                    proto: Proto::Udp,
                    host_ip: [127, 0, 0, 1].into(),
                    host_port: 5353,
                    container_port: 53
                },
            ]
        );
        assert_eq!(container.endpoints.len(), 2);
        let web = container
            .endpoints
            .values()
            .find(|e| e.network_name == "web")
            .unwrap();
        assert_eq!(
            (web.ipv4, web.gateway_v4),
            (Some([172, 18, 0, 2].into()), Some([172, 18, 0, 1].into()))
        );
        assert_eq!(web.mac, Some([0x02, 0x42, 0xac, 0x12, 0, 2]));
        assert_eq!((web.ipv6, web.gateway_v6), (None, None));
    }

    /// A stopped container has neither endpoints nor ports.
    #[test]
    fn stopped_container_has_no_endpoints_or_ports() {
        let container = parsed_container(STOPPED);
        assert!(!container.running);
        assert_eq!(container.pid, 0);
        assert!(container.endpoints.is_empty() && container.ports.is_empty());
    }

    #[test]
    fn port_maps_with_holes_are_read() {
        let map: PortMap = serde_json::from_str(
            r#"{"80/tcp": null, "81/tcp": [{"HostIp": "", "HostPort": ""}], "82/tcp": [{"HostIp": "", "HostPort": "82"},
                {"HostIp": "::", "HostPort": "82"}], "x/tcp": [], "83/dccp": [{"HostIp": "", "HostPort": "1"}]}"#,
        )
        .unwrap();
        let hosts: Vec<String> = ports(map)
            .iter()
            .map(|p| format!("{} {}", p.host_ip, p.host_port))
            .collect();
        assert_eq!(hosts, ["0.0.0.0 82", ":: 82"]);
    }

    #[test]
    fn mac_addresses_are_read() {
        assert_eq!(mac("02:42:ac:11:00:02"), Some([2, 0x42, 0xac, 0x11, 0, 2]));
        for bad in [
            "",
            "02:42:ac:11:00",
            "02:42:ac:11:00:02:03",
            "02:42:ac:11:00:zz",
        ] {
            assert_eq!(mac(bad), None, "{bad}");
        }
    }
}
