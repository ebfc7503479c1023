// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reports of a small host: one network, one container, one published port.

use forwarder_common::abi::PortKey;
use forwarder_common::family::{Be16, Be32};
use forwarder_state::desired_state::{NetworkRow as Programmed, Target};
use forwarder_state::host_state::{Container, Link, Network, NetworkEndpoint};
use serde_json::json;

use super::*;
use crate::datapath::Ends;

fn be(octets: [u8; 4]) -> Be32 {
    Be32::from_octets(octets)
}

fn host_state() -> HostState {
    let mut host_state = HostState {
        docker: Some("20.10.24".into()),
        ..HostState::default()
    };
    let mut network = Network {
        id: "0123456789abcdef".into(),
        name: "web".into(),
        driver: "bridge".into(),
        bridge: Some("br-0123456789ab".into()),
        ..Network::default()
    };
    let endpoint = NetworkEndpoint {
        container: "c1".into(),
        ipv4: Some([172, 18, 0, 2].into()),
        mac: Some([2, 0x42, 0xac, 0x12, 0, 2]),
        ..NetworkEndpoint::default()
    };
    network.endpoints.insert("e1".into(), endpoint);
    let other = Network {
        id: "h".into(),
        name: "host".into(),
        driver: "host".into(),
        ..Network::default()
    };
    host_state.networks = [network, other]
        .map(|network| (network.id.clone(), network))
        .into();
    let container = Container {
        id: "c1".into(),
        name: "shop".into(),
        running: true,
        ..Container::default()
    };
    host_state
        .containers
        .insert(container.id.clone(), container);
    let link = |index, name: &str| Link {
        index,
        name: name.into(),
        ..Link::default()
    };
    host_state.links = [link(3, "br-0123456789ab"), link(4, "veth1")]
        .map(|link| (link.index, link))
        .into();
    host_state.veths.insert("e1".into(), 4);
    host_state
}

fn tables() -> DesiredState {
    let mut tables = DesiredState::default();
    tables.v4.networks.insert(3, Programmed::default());
    tables.hooks = [
        (4, Hook::ContainerIn),
        (4, Hook::ContainerOut),
        (9, Hook::OutsideIn),
    ]
    .into();
    let key = PortKey {
        addr: Be32::default(),
        port: Be16::new(8080),
        proto: proto::TCP as u16,
    };
    let target = Target {
        addr: be([172, 18, 0, 2]),
        port: Be16::new(80),
        policy: 0,
        generation: 1,
    };
    tables.v4.published.insert(key, target);
    tables
}

#[test]
fn ports_name_the_container_behind_the_address() {
    let rows = ports(&host_state(), &tables());
    let expected = json!([{
        "proto": "tcp", "host_ip": "0.0.0.0", "host_port": 8080,
        "container": "shop", "network": "web", "container_ip": "172.18.0.2",
        "container_port": 80,
    }]);
    assert_eq!(serde_json::to_value(rows).unwrap(), expected);
    let nobody = ports(&HostState::default(), &tables());
    assert_eq!(nobody[0].container, None);
}

#[test]
fn networks_are_those_with_a_bridge() {
    let rows = networks(&host_state(), &tables());
    assert_eq!(rows.len(), 1);
    assert_eq!(
        (rows[0].name.as_str(), rows[0].id.as_str()),
        ("web", "0123456789ab")
    );
    assert_eq!((rows[0].endpoints, rows[0].programmed), (1, true));
    assert!(!networks(&host_state(), &DesiredState::default())[0].programmed);
}

#[test]
fn endpoints_say_whether_both_programs_are_there() {
    let rows = endpoints(&host_state(), &tables());
    assert_eq!(rows[0].container, "shop");
    assert_eq!(rows[0].mac.as_deref(), Some("02:42:ac:12:00:02"));
    assert_eq!(
        (rows[0].veth.as_deref(), rows[0].hooked),
        (Some("veth1"), true)
    );
    let mut half = tables();
    half.hooks.remove(&(4, Hook::ContainerOut));
    assert!(!endpoints(&host_state(), &half)[0].hooked);
}

fn snapshot(protocol: u32, flow_state: FlowState) -> FlowSnapshot {
    let ends = |src: [u8; 4], sport, dst: [u8; 4], dport| Ends {
        src: src.into(),
        sport,
        dst: dst.into(),
        dport,
    };
    FlowSnapshot {
        proto: protocol,
        original: ends([198, 18, 1, 2], 40000, [198, 18, 1, 1], 8080),
        reply: ends([172, 18, 0, 2], 80, [198, 18, 1, 2], 40000),
        flow_state,
        index: 7,
        packets: [3, 2],
        bytes: [180, 120],
        created: 900,
        seen: 1000,
        expires: 5000,
    }
}

#[test]
fn flow_has_both_directions_and_their_sum() {
    let established = FlowState((State::Established as u64) << 32);
    let now = 1000 + forwarder_common::clock::seconds(61);
    let flow = snapshot(proto::TCP, established);
    let rows = flows(&[flow], now, FlowOrder::Idle);
    let expected = json!([{
        "proto": "tcp",
        "original": { "src": "198.18.1.2", "sport": 40000, "dst": "198.18.1.1", "dport": 8080 },
        "reply": { "src": "172.18.0.2", "sport": 80, "dst": "198.18.1.2", "dport": 40000 },
        "state": "ESTABLISHED", "packets": 5, "bytes": 300, "idle_s": 60,
    }]);
    assert_eq!(serde_json::to_value(rows).unwrap(), expected);
}

#[test]
fn packet_newer_than_the_clock_is_not_idle() {
    let flow = snapshot(proto::TCP, FlowState(0));
    assert_eq!(flows(&[flow], 999, FlowOrder::Idle)[0].idle_s, 0);
}

#[test]
fn flows_are_sorted_as_asked() {
    let flow = |bytes, packets, created, seen| FlowSnapshot {
        bytes: [bytes, 0],
        packets: [packets, 0],
        created,
        seen,
        ..snapshot(proto::UDP, FlowState(0))
    };
    let all = [
        flow(300, 1, 3000, 4000),
        flow(200, 3, 1000, 5000),
        flow(100, 2, 2000, 6000),
    ];
    let sorted = |order| {
        let rows = flows(&all, 7000, order).into_iter();
        rows.map(|row| row.bytes).collect::<Vec<_>>()
    };
    assert_eq!(sorted(FlowOrder::Idle), [100, 200, 300]);
    assert_eq!(sorted(FlowOrder::Bytes), [300, 200, 100]);
    assert_eq!(sorted(FlowOrder::Packets), [200, 100, 300]);
    assert_eq!(sorted(FlowOrder::Age), [200, 100, 300]);
}

/// Flows without a state machine show whether they were answered.
#[test]
fn stateless_flows_show_if_they_were_answered() {
    // Flags of `FlowState`: replied, assured.
    let udp = |flags: u64| flow_row(&snapshot(proto::UDP, FlowState(flags << 48)), 1000).state;
    assert_eq!(
        [udp(0), udp(1), udp(3)],
        ["UNREPLIED", "REPLIED", "ASSURED"]
    );
    let icmp = flow_row(&snapshot(proto::ICMP, FlowState(0)), 1000);
    assert_eq!(
        (icmp.proto.as_str(), icmp.state.as_str()),
        ("icmp", "UNREPLIED")
    );
}

#[test]
fn status_is_whole_with_or_without_an_agent() {
    let told = agent(
        &host_state(),
        &tables(),
        Vec::new(),
        vec!["it fails".to_owned()],
        5,
    );
    assert_eq!(told.hooks["veth1"], ["container_in", "container_out"]);
    assert_eq!(told.hooks["#9"], ["outside_in"]);
    assert_eq!((told.docker.networks, told.docker.running), (2, 1));

    let counters = [
        (Reason::Forwarded, 7),
        (Reason::ToHost, 2),
        (Reason::NotIp, 1),
        (Reason::Loopback, 0),
    ];
    let maps = [MapFill {
        name: "FLOWS",
        size: 10,
        fill: 3,
    }];
    let pinned: Hooks = [("up0".to_owned(), vec!["outside_in".to_owned()])].into();
    let alive = status(
        Some(told.clone()),
        pinned.clone(),
        [SocketHook::Connect4],
        &counters,
        &maps,
        armed::ADOPT,
    );
    assert_eq!(alive.failures, ["it fails"]);
    assert_eq!(alive.hooks, told.hooks);
    let dead = status(None, pinned.clone(), [], &counters, &maps, armed::ADOPT);
    assert_eq!((dead.agent, dead.docker, dead.hooks), (None, None, pinned));
    let value = serde_json::to_value(alive).unwrap();
    assert_eq!(
        value["packets"],
        json!({ "fast": 7, "kernel": 3, "drop": 0 })
    );
    assert_eq!(
        value["reasons"],
        json!({ "forwarded": 7, "to-host": 2, "not-ip": 1 })
    );
    assert_eq!(value["sockets"], json!(["connect4"]));
    assert_eq!(value["maps"], json!({ "FLOWS": { "size": 10, "fill": 3 } }));
}
