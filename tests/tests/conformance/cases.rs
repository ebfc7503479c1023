// SPDX-License-Identifier: MIT OR Apache-2.0
//! The rows of the table: Docker's tests by their numbers, what is added to them, and the control arm.

/// One row.
pub(crate) struct Case {
    /// What Docker's own test is called; its package or file where the name alone says little.
    pub(crate) docker: &'static str,
    /// Our tests, as paths below `tests/tests`.
    pub(crate) ours: &'static [&'static str],
    /// What is different, or why there is no test.
    pub(crate) note: &'static str,
}

const fn case(docker: &'static str, ours: &'static [&'static str], note: &'static str) -> Case {
    Case { docker, ours, note }
}

/// The case's IPv6 part waits until IPv6 is ours.
const V6_LATER: &str = "IPv4";

/// The 40 cases in their order.
pub(crate) const CASES: [Case; 40] = [
    case(
        "TestNetworkNat",
        &["conformance::local::host_reaches_published_port_at_own_address"],
        "",
    ),
    case(
        "TestNetworkLocalhostTCPNat",
        &["conformance::local::host_reaches_published_port_at_localhost"],
        "UDP too",
    ),
    case(
        "TestNetworkLoopbackNat",
        &["conformance::published::container_reaches_itself_by_the_host_address"],
        "",
    ),
    case(
        "TestAccessPublishedPortFromHost",
        &["conformance::local::host_reaches_published_port_at_all_addresses"],
        "IPv4; host-mode containers too",
    ),
    case(
        "TestAccessPublishedPortFromRemoteHost",
        &["conformance::published::remote_reaches_port_at_every_host_address"],
        V6_LATER,
    ),
    case(
        "TestAccessPublishedPortFromCtr",
        &["conformance::published::sibling_reaches_port_by_host_and_gateway"],
        "without docker-proxy and br_netfilter",
    ),
    case(
        "TestPortMappedHairpinTCP",
        &["conformance::published::other_network_reaches_port_by_tcp_and_udp"],
        "",
    ),
    case(
        "TestPortMappedHairpinUDP",
        &["conformance::published::other_network_reaches_port_by_tcp_and_udp"],
        "",
    ),
    case(
        "TestAccessPublishedPortFromAnotherNetwork",
        &["conformance::published::own_gateway_serves_another_networks_port"],
        V6_LATER,
    ),
    case(
        "TestAccessToPublishedPort",
        &["conformance::published::default_bridge_address_serves_other_networks"],
        "routed by our label",
    ),
    case(
        "TestProxy4To6",
        &["conformance::local::host_reaches_ipv4_container_by_ipv6_loopback"],
        "",
    ),
    case(
        "TestRestartUserlandProxyUnder2MSL",
        &["conformance::ports::recreated_container_serves_despite_time_wait"],
        "",
    ),
    case(
        "TestAccessPortPublishedOnLoopbackAddress",
        &["conformance::local::loopback_port_is_for_the_host_only"],
        "",
    ),
    case(
        "TestPortMappingOnDistinctLoopbackAddrs",
        &["conformance::local::port_on_two_loopback_addresses_is_two_ports"],
        "",
    ),
    case(
        "TestDirectRemoteAccessOnExposedPort",
        &["conformance::direct::container_port_opens_to_outside_by_mode_only"],
        "modes by our labels",
    ),
    case(
        "TestAllowDirectRemoteAccessOnExposedPort",
        &["conformance::direct::direct_routing_reaches_published_ports_only"],
        "by our configuration",
    ),
    case(
        "TestDirectRoutingOpenPorts",
        &["conformance::direct::direct_routing_opens_what_the_mode_opens"],
        "IPv4; modes by our labels; where a firewall drops what is forwarded, `run` refuses",
    ),
    case(
        "TestRoutedNonGateway",
        &["conformance::direct::routed_network_serves_if_not_the_gateway"],
        "routed by our label",
    ),
    case(
        "TestAcceptFwMark",
        &[],
        "Kernel: netfilter marks a packet that comes in after tc has seen it",
    ),
    case(
        "TestMixAnyWithSpecificHostAddrs",
        &["conformance::ports::drawn_ports_differ_and_lead_to_their_own"],
        V6_LATER,
    ),
    case(
        "TestDisableNAT",
        &[],
        "Docker: what its inspect says of modes, from 27 on",
    ),
    case(
        "TestBridgeICC",
        &["conformance::networks::siblings_reach_each_other_by_address_and_name"],
        V6_LATER,
    ),
    case(
        "TestBridgeINC, TestContainersNetworkIsolation",
        &["conformance::networks::connected_container_joins_two_networks"],
        V6_LATER,
    ),
    case(
        "TestBridgeINCRouted",
        &["conformance::direct::nat_network_reaches_routed_ports_one_way"],
        "IPv4; routed by our label",
    ),
    case(
        "TestInterNetworkDirectRouting",
        &["conformance::direct::other_network_gets_what_the_mode_opens"],
        "IPv4; modes by our labels",
    ),
    case(
        "TestInternalNwConnectivity, TestDockerNetworkInternalMode",
        &["conformance::networks::internal_network_has_gateway_and_peers_only"],
        V6_LATER,
    ),
    case(
        "TestIsolated, TestPointToPoint",
        &["conformance::networks::isolated_network_excludes_the_host"],
        "isolated by our label; Docker 20.10 refuses a network of two addresses",
    ),
    case(
        "TestGatewaySelection",
        &["conformance::gateway::mappings_follow_the_gateway_endpoint"],
        "IPv4; Docker 20.10 has no priorities and chooses by name",
    ),
    case(
        "TestDockerNetworkConnectDisconnectWithPortMapping",
        &["conformance::gateway::network_changes_keep_requested_ports"],
        "",
    ),
    case(
        "TestLegacyLink, TestRemoveLegacyLink, TestDaemonICCLinkExpose, TestDaemonICCPing",
        &[
            "conformance::icc::icc_false_separates_siblings_only",
            "conformance::icc::dockers_icc_option_does_the_same",
            "conformance::icc::default_bridge_icc_follows_configuration",
            "conformance::icc::link_opens_exposed_ports_until_it_is_removed",
        ],
        "on docker0 by our configuration",
    ),
    case(
        "TestHostIPv4BridgeLabel",
        &["conformance::source::network_is_seen_by_its_fixed_host_address"],
        "by Docker's option and our label",
    ),
    case(
        "TestConntrackFlowsLeak",
        &["conformance::stale::removed_container_leaves_no_flow"],
        "our flows and nf_conntrack's",
    ),
    case(
        "#8795, #44688, #53384",
        &["conformance::stale::earlier_flood_reaches_each_next_server"],
        "",
    ),
    case(
        "TestPortMappingRestore, TestDaemonRestartWithRunningContainersPorts",
        &[
            "conformance::daemon::mappings_return_after_dockerd_restarts",
            "conformance::daemon::live_restore_loses_no_request",
        ],
        "",
    ),
    case(
        "TestPublishedPortAlreadyInUse, TestRunPortInUse, TestRunAllocatePortInReservedRange",
        &["conformance::ports::taken_port_fails_the_start_without_trace"],
        "",
    ),
    case(
        "TestRunDeallocatePortOnMissingIptablesRule",
        &["conformance::ports::deleted_entry_blocks_no_port_and_comes_back"],
        "a map entry instead of a rule",
    ),
    case(
        "TestDropInForwardChain, TestFirewalldReloadNoZombies",
        &["conformance::daemon::firewall_drop_and_reload_break_nothing"],
        "by nft",
    ),
    case(
        "TestDockerNetworkMacvlan, TestDockerNetworkIpvlan, TestRunNetHost, TestRunContainerWithoutNetworking",
        &["conformance::daemon::other_drivers_containers_are_left_alone"],
        "the tests' kernel has no ipvlan",
    ),
    case(
        "TestHostPortMappings, TestSwarmPublish*, TestServiceRemoveKeepsIngressNetwork",
        &["conformance::swarm::host_mode_service_is_reached_as_a_container"],
        "the tests' kernel has no IPVS for the routing mesh",
    ),
    case(
        "TestAdvertiseAddresses",
        &["conformance::daemon::changed_hardware_address_is_reached_at_once"],
        "Docker before 28 does not hurry the neighbours' own ARP",
    ),
];

/// What Docker has no test for, and users meet.
pub(crate) const ADDITIONS: [Case; 18] = [
    case(
        "a port's own address is seen by clients of both transports",
        &["traffic::published::server_sees_the_clients_own_address"],
        "also at an address added later",
    ),
    case(
        "one address per container on one port",
        &["traffic::published::port_at_one_address_is_closed_at_others"],
        "",
    ),
    case(
        "ICMP errors are translated both ways",
        &[
            "kernel_path::errors::outside_error_quotes_what_the_container_sent",
            "kernel_path::errors::container_error_quotes_the_published_address",
            "kernel_path::errors::large_transfer_finds_the_path_mtu",
        ],
        "",
    ),
    case(
        "ICMP echo is masqueraded",
        &["traffic::masquerade::every_bridge_network_is_masqueraded"],
        "",
    ),
    case(
        "masquerade off",
        &["conformance::source::unmasqueraded_network_is_seen_as_itself"],
        "",
    ),
    case(
        "the first packets of a container",
        &["traffic::masquerade::new_networks_first_packets_never_leak"],
        "",
    ),
    case(
        "a container that is killed and its flows",
        &["reuse::restarted_container_gets_republished_only"],
        "",
    ),
    case(
        "VLAN tags and other stations' frames",
        &["traffic::bystanders::vlan_and_foreign_frames_are_left_alone"],
        "",
    ),
    case(
        "foreign bridges and forwarding",
        &["traffic::bystanders::host_forwards_for_others_as_before"],
        "",
    ),
    case(
        "direct packets stay outside",
        &["conformance::direct::direct_packet_never_enters_a_plain_network"],
        "",
    ),
    case(
        "guards through restarts and churn, polled every 10 ms",
        &[
            "conformance::guard::agent_deaths_and_churn_let_nothing_in",
            "conformance::guard::dockerd_restarting_containers_lets_nothing_in",
            "conformance::guard::dockerd_restart_with_live_restore_is_closed",
            "conformance::guard::networks_that_come_and_go_are_closed",
            "conformance::guard::network_made_without_an_agent_is_closed",
        ],
        "",
    ),
    case(
        "the guards' probes themselves",
        &[
            "conformance::guard::probes_enter_an_unprotected_network",
            "conformance::control::stock_lets_the_probes_in",
        ],
        "",
    ),
    case(
        "ingress lists by container",
        &[
            "conformance::policy::container_label_allows_named_clients_only",
            "conformance::policy::deny_label_precedes_the_allow_label",
        ],
        "",
    ),
    case(
        "ingress lists by port",
        &["conformance::policy::port_label_is_for_the_requested_host_port"],
        "",
    ),
    case(
        "ingress lists by network",
        &["conformance::policy::network_list_in_file_holds_for_all_its_ports"],
        "",
    ),
    case(
        "a denial and what is accelerated",
        &["conformance::policy::denial_ends_flows_within_a_second"],
        "",
    ),
    case(
        "1,000 ports of 100 containers",
        &["scale::thousand_ports_keep_times_and_memory_flat"],
        "",
    ),
    case(
        "one association of SCTP",
        &[],
        "Kernel: the tests' one has no SCTP sockets",
    ),
];

/// Where stock Docker 20.10 fails.
pub(crate) const CONTROL: [Case; 4] = [
    case(
        "cases 15 and 17",
        &["conformance::control::stock_direct_routes_to_published_ports"],
        "",
    ),
    case(
        "case 13",
        &["conformance::control::stock_opens_loopback_ports_to_outside"],
        "",
    ),
    case(
        "cases 7 to 9",
        &["conformance::control::stock_separates_networks_published_ports"],
        "without docker-proxy",
    ),
    case(
        "case 33",
        &["conformance::control::stock_keeps_a_flood_from_a_later_server"],
        "",
    ),
];
