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
        &["conformance::local::the_host_reaches_a_published_port_at_its_own_address"],
        "",
    ),
    case(
        "TestNetworkLocalhostTCPNat",
        &["conformance::local::the_host_reaches_a_published_port_at_localhost"],
        "UDP too",
    ),
    case(
        "TestNetworkLoopbackNat",
        &[
            "conformance::published::a_container_reaches_its_own_published_port_by_the_hosts_address",
        ],
        "",
    ),
    case(
        "TestAccessPublishedPortFromHost",
        &["conformance::local::the_host_reaches_a_published_port_at_every_address_of_its_own"],
        "IPv4; host-mode containers too",
    ),
    case(
        "TestAccessPublishedPortFromRemoteHost",
        &[
            "conformance::published::a_remote_host_reaches_a_published_port_at_every_address_of_the_host",
        ],
        V6_LATER,
    ),
    case(
        "TestAccessPublishedPortFromCtr",
        &[
            "conformance::published::a_sibling_reaches_a_published_port_by_the_hosts_and_the_gateways_address",
        ],
        "without docker-proxy and br_netfilter",
    ),
    case(
        "TestPortMappedHairpinTCP",
        &[
            "conformance::published::a_container_of_another_network_reaches_a_published_port_by_tcp_and_udp",
        ],
        "",
    ),
    case(
        "TestPortMappedHairpinUDP",
        &[
            "conformance::published::a_container_of_another_network_reaches_a_published_port_by_tcp_and_udp",
        ],
        "",
    ),
    case(
        "TestAccessPublishedPortFromAnotherNetwork",
        &[
            "conformance::published::a_client_reaches_a_port_of_another_network_at_its_own_gateway_too",
        ],
        V6_LATER,
    ),
    case(
        "TestAccessToPublishedPort",
        &[
            "conformance::published::clients_in_nat_and_routed_networks_reach_a_port_at_the_default_bridges_address",
        ],
        "routed by our label",
    ),
    case(
        "TestProxy4To6",
        &[
            "conformance::local::the_host_reaches_a_container_without_ipv6_by_the_ipv6_loopback_address",
        ],
        "",
    ),
    case(
        "TestRestartUserlandProxyUnder2MSL",
        &[
            "conformance::ports::a_container_made_anew_on_its_port_serves_at_once_in_spite_of_time_wait",
        ],
        "",
    ),
    case(
        "TestAccessPortPublishedOnLoopbackAddress",
        &["conformance::local::a_port_published_on_a_loopback_address_is_the_hosts_alone"],
        "",
    ),
    case(
        "TestPortMappingOnDistinctLoopbackAddrs",
        &["conformance::local::one_port_on_two_loopback_addresses_leads_to_two_containers"],
        "",
    ),
    case(
        "TestDirectRemoteAccessOnExposedPort",
        &[
            "conformance::direct::an_outsider_reaches_the_host_port_and_the_containers_own_only_where_the_mode_says_so",
        ],
        "modes by our labels",
    ),
    case(
        "TestAllowDirectRemoteAccessOnExposedPort",
        &[
            "conformance::direct::where_direct_routing_is_allowed_published_ports_are_reached_and_others_are_not",
        ],
        "by our configuration",
    ),
    case(
        "TestDirectRoutingOpenPorts",
        &["conformance::direct::what_is_open_to_direct_routing_is_what_each_mode_opens"],
        "IPv4; modes by our labels; where a firewall drops what is forwarded, `run` refuses",
    ),
    case(
        "TestRoutedNonGateway",
        &["conformance::direct::a_routed_network_serves_though_another_one_is_the_gateway"],
        "routed by our label",
    ),
    case(
        "TestAcceptFwMark",
        &[],
        "Kernel: netfilter marks a packet that comes in after tc has seen it",
    ),
    case(
        "TestMixAnyWithSpecificHostAddrs",
        &["conformance::ports::drawn_ports_of_one_container_differ_and_lead_to_their_own"],
        V6_LATER,
    ),
    case(
        "TestDisableNAT",
        &[],
        "Docker: what its inspect says of modes, from 27 on",
    ),
    case(
        "TestBridgeICC",
        &[
            "conformance::networks::containers_of_one_network_reach_each_other_by_address_and_by_name",
        ],
        V6_LATER,
    ),
    case(
        "TestBridgeINC, TestContainersNetworkIsolation",
        &[
            "conformance::networks::two_networks_are_joined_by_connecting_a_container_and_parted_again",
        ],
        V6_LATER,
    ),
    case(
        "TestBridgeINCRouted",
        &[
            "conformance::direct::a_nat_network_reaches_a_routed_ones_published_ports_and_not_the_other_way",
        ],
        "IPv4; routed by our label",
    ),
    case(
        "TestInterNetworkDirectRouting",
        &["conformance::direct::another_network_gets_straight_what_the_servers_mode_opens"],
        "IPv4; modes by our labels",
    ),
    case(
        "TestInternalNwConnectivity, TestDockerNetworkInternalMode",
        &[
            "conformance::networks::an_internal_network_has_its_own_gateway_its_peers_and_nothing_else",
        ],
        V6_LATER,
    ),
    case(
        "TestIsolated, TestPointToPoint",
        &["conformance::networks::an_isolated_network_joins_its_containers_and_not_even_the_host"],
        "isolated by our label; Docker 20.10 refuses a network of two addresses",
    ),
    case(
        "TestGatewaySelection",
        &["conformance::gateway::mappings_follow_the_endpoint_that_has_the_default_route"],
        "IPv4; Docker 20.10 has no priorities and chooses by name",
    ),
    case(
        "TestDockerNetworkConnectDisconnectWithPortMapping",
        &[
            "conformance::gateway::ports_that_were_asked_for_stay_and_drawn_ones_are_what_docker_says",
        ],
        "",
    ),
    case(
        "TestLegacyLink, TestRemoveLegacyLink, TestDaemonICCLinkExpose, TestDaemonICCPing",
        &[
            "conformance::icc::containers_without_icc_reach_all_but_each_other",
            "conformance::icc::dockers_option_against_icc_does_the_same",
            "conformance::icc::the_default_bridge_is_without_icc_when_the_configuration_says_so",
            "conformance::icc::a_link_opens_what_the_linked_exposes_and_closes_when_it_goes",
        ],
        "on docker0 by our configuration",
    ),
    case(
        "TestHostIPv4BridgeLabel",
        &["conformance::source::a_network_with_a_fixed_host_address_is_seen_by_that"],
        "by Docker's option and our label",
    ),
    case(
        "TestConntrackFlowsLeak",
        &["conformance::stale::nothing_remembers_a_flow_of_a_container_that_was_removed"],
        "our flows and nf_conntrack's",
    ),
    case(
        "#8795, #44688, #53384",
        &[
            "conformance::stale::a_flood_from_before_the_start_reaches_each_next_server_as_the_client",
        ],
        "",
    ),
    case(
        "TestPortMappingRestore, TestDaemonRestartWithRunningContainersPorts",
        &[
            "conformance::daemon::mappings_work_again_after_dockerd_restarts",
            "conformance::daemon::with_live_restore_no_request_fails_while_dockerd_restarts",
        ],
        "",
    ),
    case(
        "TestPublishedPortAlreadyInUse, TestRunPortInUse, TestRunAllocatePortInReservedRange",
        &[
            "conformance::ports::a_start_that_fails_for_a_taken_port_leaves_no_entry_and_the_port_to_its_owner",
        ],
        "",
    ),
    case(
        "TestRunDeallocatePortOnMissingIptablesRule",
        &["conformance::ports::an_entry_deleted_by_hand_keeps_nobody_from_the_port_and_comes_back"],
        "a map entry instead of a rule",
    ),
    case(
        "TestDropInForwardChain, TestFirewalldReloadNoZombies",
        &[
            "conformance::daemon::a_firewall_that_drops_and_reloads_breaks_nothing_and_brings_nobody_back",
        ],
        "by nft",
    ),
    case(
        "TestDockerNetworkMacvlan, TestDockerNetworkIpvlan, TestRunNetHost, TestRunContainerWithoutNetworking",
        &["conformance::daemon::containers_of_other_drivers_are_as_without_us"],
        "the tests' kernel has no ipvlan",
    ),
    case(
        "TestHostPortMappings, TestSwarmPublish*, TestServiceRemoveKeepsIngressNetwork",
        &["conformance::swarm::a_service_published_in_mode_host_is_reached_as_any_container"],
        "the tests' kernel has no IPVS for the routing mesh",
    ),
    case(
        "TestAdvertiseAddresses",
        &["conformance::daemon::a_container_with_another_hardware_address_is_reached_at_once"],
        "Docker before 28 does not hurry the neighbours' own ARP",
    ),
];

/// What Docker has no test for, and users meet.
pub(crate) const ADDITIONS: [Case; 18] = [
    case(
        "a port's own address is seen by clients of both transports",
        &[
            "traffic::published::the_server_sees_the_clients_own_address_at_every_address_of_the_host",
        ],
        "also at an address added later",
    ),
    case(
        "one address per container on one port",
        &["traffic::published::a_port_published_at_one_address_is_closed_at_the_others"],
        "",
    ),
    case(
        "ICMP errors are translated both ways",
        &[
            "handon::errors::an_error_from_outside_reaches_the_container_and_quotes_what_it_sent",
            "handon::errors::a_containers_own_error_leaves_with_the_published_address_in_its_quote",
            "handon::errors::a_large_transfer_finds_the_path_mtu_behind_the_next_router",
        ],
        "",
    ),
    case(
        "ICMP echo is masqueraded",
        &[
            "traffic::masquerade::every_bridge_network_leaves_by_the_hosts_address_for_tcp_udp_and_echo",
        ],
        "",
    ),
    case(
        "masquerade off",
        &[
            "conformance::source::a_network_without_masquerade_is_seen_as_itself_and_published_ports_work",
        ],
        "",
    ),
    case(
        "the first packets of a container",
        &["traffic::masquerade::the_first_packets_of_a_new_container_on_a_new_network_never_leak"],
        "",
    ),
    case(
        "a container that is killed and its flows",
        &["reuse::a_container_that_is_restarted_gets_only_what_is_published_again"],
        "",
    ),
    case(
        "VLAN tags and other stations' frames",
        &["traffic::bystanders::frames_with_a_vlan_tag_or_for_another_station_are_left_alone"],
        "",
    ),
    case(
        "foreign bridges and forwarding",
        &["traffic::bystanders::the_host_forwards_for_others_as_before"],
        "",
    ),
    case(
        "direct packets stay outside",
        &["conformance::direct::nothing_of_a_direct_packet_shows_inside_a_plain_network"],
        "",
    ),
    case(
        "guards through restarts and churn, polled every 10 ms",
        &[
            "conformance::guard::nothing_comes_in_while_agents_die_and_containers_come_and_go",
            "conformance::guard::nothing_comes_in_while_dockerd_restarts_its_containers",
            "conformance::guard::nothing_comes_in_while_dockerd_restarts_beside_its_containers",
            "conformance::guard::nothing_comes_into_networks_that_come_and_go",
            "conformance::guard::nothing_comes_into_a_network_that_was_made_while_no_agent_lived",
        ],
        "",
    ),
    case(
        "the guards' probes themselves",
        &[
            "conformance::guard::the_probes_come_into_an_unprotected_network",
            "conformance::control::stock_lets_the_guards_probes_in",
        ],
        "",
    ),
    case(
        "ingress lists by container",
        &[
            "conformance::policy::a_containers_label_lets_in_whom_it_names_and_nobody_else",
            "conformance::policy::a_containers_label_keeps_out_whom_it_names_though_another_one_lets_them_in",
        ],
        "",
    ),
    case(
        "ingress lists by port",
        &["conformance::policy::a_ports_label_is_about_the_host_port_that_is_asked"],
        "",
    ),
    case(
        "ingress lists by network",
        &["conformance::policy::a_networks_list_in_the_configuration_is_for_all_its_ports"],
        "",
    ),
    case(
        "a denial and what is accelerated",
        &["conformance::policy::a_denial_ends_what_is_already_accelerated_within_a_second"],
        "",
    ),
    case(
        "1,000 ports of 100 containers",
        &["scale::starts_publishing_and_memory_stay_flat_with_a_thousand_ports"],
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
        &["conformance::control::stock_lets_outsiders_straight_to_published_ports"],
        "",
    ),
    case(
        "case 13",
        &["conformance::control::stock_lets_outsiders_to_ports_published_on_loopback"],
        "",
    ),
    case(
        "cases 7 to 9",
        &["conformance::control::stock_keeps_networks_from_each_others_published_ports"],
        "without docker-proxy",
    ),
    case(
        "case 33",
        &["conformance::control::stock_keeps_a_flood_from_the_server_that_came_later"],
        "",
    ),
];
