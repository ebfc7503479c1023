// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a container may send and get by IPv6, hook by hook.

use forwarder_common::abi::{
    AllowedKey6, Endpoint6, HostAddressKey6, IngressKey6, OwnerKey6, PortKey6, Published6, allowed,
    device, ingress, network,
};
use forwarder_common::family::{Be16, Be128};
use forwarder_common::reason::Reason;
use forwarder_testkit::model::host::{
    APP_VETH, BRIDGE, FAR_VETH, OTHER_BRIDGE, UPLINK, WEB_VETH, far_mac, mac,
};
use forwarder_testkit::model::ipv6::{
    APP6, CLIENT6, FAR6, GATEWAY6, HOST6, WEB6, frame, neighbour, net,
};
use forwarder_testkit::model::{self, Arrival, Hook, Host};

const UDP: u8 = 17;
const ICMP: u8 = 58;
const ANY: Be128 = Be128::ANY;

fn host() -> Host {
    let mut host = Host::usual(64);
    host.with_ipv6();
    host
}

fn group(last: u8) -> Be128 {
    Be128::from_octets([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last])
}

fn datagram(port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    vec![0x30, 0x39, high, low, 0, 9, 0, 0, b'x']
}

fn run(host: &Host, hook: Hook, arrival: (u32, u32, u32), mut frame: Vec<u8>) -> Reason {
    let (ifindex, ingress_ifindex, mark) = arrival;
    let arrival = Arrival {
        ifindex,
        ingress_ifindex,
        mark,
        hash: 0,
        segment: 0,
    };
    host.run(hook, &mut frame, arrival).reason.unwrap()
}

/// Sends out of a container, by its own MAC address and to its bridge's.
fn sends(host: &Host, veth: u32, ends: (Be128, Be128), next: u8, body: &[u8]) -> Reason {
    let macs = (mac(host.devices[&veth].bridge), far_mac(veth));
    let frame = frame(macs, ends, next, body);
    run(host, Hook::ContainerIn, (veth, 0, 0), frame)
}

fn flags(host: &mut Host, bridge: u32, flags: u32) {
    host.networks.get_mut(&bridge).unwrap().flags = flags;
}

#[test]
fn container_reaches_its_network_and_the_host() {
    let host = host();
    let own = Be128::link_local(far_mac(APP_VETH));
    let gateway = Be128::link_local(mac(BRIDGE));
    for (src, dst, reason) in [
        (APP6, WEB6, Reason::Bridged),
        (APP6, group(1), Reason::Bridged),
        (own, Be128::link_local(far_mac(WEB_VETH)), Reason::Bridged),
        (APP6, GATEWAY6, Reason::ToHost),
        (own, gateway, Reason::ToHost),
        (APP6, HOST6, Reason::ToHost),
        (APP6, net(2, 1), Reason::ToHost),
        (APP6, FAR6, Reason::Isolated),
        (APP6, CLIENT6, Reason::Ipv6Forward),
        (APP6, net(77, 1), Reason::Ipv6Forward),
    ] {
        let got = sends(&host, APP_VETH, (src, dst), UDP, &datagram(80));
        assert_eq!(got, reason, "{src:?} to {dst:?}");
    }
}

#[test]
fn network_flags_hold_for_ipv6() {
    let mut host = host();
    let ends = [(APP6, WEB6), (APP6, GATEWAY6), (APP6, CLIENT6)];
    let link_local = (
        Be128::link_local(far_mac(APP_VETH)),
        Be128::link_local(far_mac(WEB_VETH)),
    );
    for (flag, expected) in [
        (
            network::ICC_DISABLED,
            [Reason::PeerBlocked, Reason::ToHost, Reason::Ipv6Forward],
        ),
        (
            network::INTERNAL,
            [Reason::Bridged, Reason::ToHost, Reason::Internal],
        ),
        (
            network::INTERNAL | network::ISOLATED,
            [Reason::Bridged, Reason::Internal, Reason::Internal],
        ),
    ] {
        flags(&mut host, BRIDGE, network::IPV6 | flag);
        for (ends, expected) in ends.into_iter().zip(expected) {
            let got = sends(&host, APP_VETH, ends, UDP, &datagram(80));
            assert_eq!(got, expected, "{flag} {ends:?}");
        }
        let expected = expected[0];
        let got = sends(&host, APP_VETH, link_local, UDP, &datagram(80));
        assert_eq!(got, expected);
    }
    // What asks for a sibling is a multicast: the sibling's own veth stops it, and not the gateway's.
    flags(&mut host, BRIDGE, network::IPV6 | network::ICC_DISABLED);
    let solicits = neighbour(135, WEB6, 1, far_mac(APP_VETH));
    let asks = frame(
        (mac(BRIDGE), far_mac(APP_VETH)),
        (APP6, group(1)),
        ICMP,
        &solicits,
    );
    let at = |ifindex, ingress_ifindex| (ifindex, ingress_ifindex, 0);
    let out = |at| run(&host, Hook::ContainerOut, at, asks.clone());
    assert_eq!(out(at(WEB_VETH, APP_VETH)), Reason::PeerBlocked);
    assert_eq!(out(at(WEB_VETH, 0)), Reason::FromHost);
    // Nobody has seen that port yet.
    assert_eq!(out(at(WEB_VETH, 99)), Reason::PeerBlocked);
    let got = run(&host, Hook::BridgeIn, at(BRIDGE, 0), asks.clone());
    assert_eq!(got, Reason::ToHost);
    flags(
        &mut host,
        BRIDGE,
        network::IPV6 | network::INTERNAL | network::ISOLATED,
    );
    let got = run(&host, Hook::BridgeIn, at(BRIDGE, 0), asks);
    assert_eq!(got, Reason::Internal);
}

/// A frame of a container has the container's own source address and is not for a bridge's group
/// address.
#[test]
fn frame_needs_own_source_and_no_group_target() {
    let mut host = host();
    let sends = |host: &Host, (to, from): ([u8; 6], [u8; 6]), dst| {
        let frame = frame((to, from), (APP6, dst), UDP, &datagram(80));
        run(host, Hook::ContainerIn, (APP_VETH, 0, 0), frame)
    };
    for from in [far_mac(WEB_VETH), mac(BRIDGE), [2, 0xaa, 0, 0, 0, 1]] {
        for dst in [WEB6, GATEWAY6, CLIENT6, group(1)] {
            let got = sends(&host, (mac(BRIDGE), from), dst);
            assert_eq!(got, Reason::SpoofedNeighbour, "{from:x?} to {dst:?}");
        }
    }
    // A bridge hands what is for its group to the host, past its own hook.
    for last in 0..16 {
        for dst in [GATEWAY6, group(1), Be128::link_local(mac(APP_VETH))] {
            let to = [0x01, 0x80, 0xc2, 0, 0, last];
            let got = sends(&host, (to, far_mac(APP_VETH)), dst);
            assert_eq!(got, Reason::OtherFrame, "{last} to {dst:?}");
        }
    }
    // Where other frames are allowed, it is still no station's.
    flags(&mut host, BRIDGE, network::IPV6 | network::OTHER_FRAMES);
    let to = [0x01, 0x80, 0xc2, 0, 0, 2];
    let macs = (to, far_mac(APP_VETH));
    assert_eq!(sends(&host, macs, group(1)), Reason::OtherFrame);
    let mut lldp = frame(macs, (APP6, group(1)), UDP, &datagram(80));
    lldp[12..14].copy_from_slice(&[0x88, 0xcc]);
    let got = run(&host, Hook::ContainerIn, (APP_VETH, 0, 0), lldp);
    assert_eq!(got, Reason::NotIp);
}

#[test]
fn network_without_ipv6_has_none() {
    let mut host = host();
    flags(&mut host, BRIDGE, network::MASQUERADE);
    let own = Be128::link_local(far_mac(APP_VETH));
    let all = group(1);
    for (src, dst) in [
        (APP6, WEB6),
        (own, all),
        (ANY, all),
        (own, GATEWAY6),
        (CLIENT6, HOST6),
    ] {
        let got = sends(&host, APP_VETH, (src, dst), UDP, &datagram(80));
        assert_eq!(got, Reason::NoIpv6);
        let frame = frame((mac(BRIDGE), far_mac(APP_VETH)), (src, dst), UDP, &[]);
        let out = run(&host, Hook::ContainerOut, (APP_VETH, 0, 0), frame.clone());
        assert_eq!(out, Reason::NoIpv6);
        for hook in [Hook::BridgeIn, Hook::BridgeOut] {
            assert_eq!(
                run(&host, hook, (BRIDGE, 0, 0), frame.clone()),
                Reason::NoIpv6
            );
        }
    }
}

#[test]
fn container_has_its_own_sources_only() {
    let mut host = host();
    let sibling = Be128::link_local(far_mac(WEB_VETH));
    let gateway = Be128::link_local(mac(BRIDGE));
    let docker = Be128::from_octets([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    let stable = Be128::from_octets([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 7, 7, 7, 7, 7, 7, 7, 7]);
    let forged = [
        (WEB6, Reason::SpoofedSource),
        (GATEWAY6, Reason::SpoofedSource),
        (net(1, 77), Reason::SpoofedSource),
        (FAR6, Reason::ForeignSource),
        (HOST6, Reason::ForeignSource),
        (CLIENT6, Reason::ForeignSource),
        (group(1), Reason::ForeignSource),
        (sibling, Reason::ForeignSource),
        (gateway, Reason::ForeignSource),
        (docker, Reason::ForeignSource),
        (ANY, Reason::SpoofedSource),
    ];
    host.devices.get_mut(&APP_VETH).unwrap().kind = device::NAMED_VETH;
    for dst in [WEB6, GATEWAY6, CLIENT6, group(1)] {
        for (src, reason) in forged {
            let got = sends(&host, APP_VETH, (src, dst), UDP, &datagram(80));
            assert_eq!(got, reason, "{src:?} to {dst:?}");
        }
    }
    let got = sends(&host, APP_VETH, (stable, GATEWAY6), UDP, &datagram(80));
    assert_eq!(got, Reason::ToHost);
    // Nobody knows yet whose veth it is: every address but those of others.
    host.devices.get_mut(&APP_VETH).unwrap().kind = device::VETH;
    host.endpoints6.remove(&APP_VETH);
    let bridge = BRIDGE;
    host.owners6.insert(OwnerKey6 { addr: APP6, bridge }, 0);
    let own = Be128::link_local(far_mac(APP_VETH));
    for src in [APP6, net(1, 77), own, stable] {
        let got = sends(&host, APP_VETH, (src, GATEWAY6), UDP, &datagram(80));
        assert_eq!(got, Reason::ToHost, "{src:?}");
    }
    for (src, reason) in [forged[0], forged[1], forged[3], forged[7], forged[8]] {
        let got = sends(&host, APP_VETH, (src, GATEWAY6), UDP, &datagram(80));
        assert_eq!(got, reason, "{src:?}");
    }
}

#[test]
fn forwarded_ipv6_gets_neither_in_nor_out() {
    let mut host = host();
    host.devices.remove(&model::host::VPN);
    let body = datagram(80);
    let inward = |dst| frame((mac(UPLINK), far_mac(UPLINK)), (CLIENT6, dst), UDP, &body);
    let outside = |host: &Host, dst| run(host, Hook::OutsideIn, (UPLINK, 0, 0), inward(dst));
    assert_eq!(outside(&host, WEB6), Reason::DirectRouting);
    assert_eq!(outside(&host, HOST6), Reason::ToHost);
    assert_eq!(outside(&host, GATEWAY6), Reason::ToHost);
    assert_eq!(outside(&host, net(50, 1)), Reason::ToHost);
    let stolen = frame((mac(UPLINK), far_mac(UPLINK)), (WEB6, HOST6), UDP, &body);
    let got = run(&host, Hook::OutsideIn, (UPLINK, 0, 0), stolen);
    assert_eq!(got, Reason::SpoofedSource);
    host.routes6.insert(net(51, 1), 99);
    assert_eq!(outside(&host, net(51, 1)), Reason::UnknownNetwork);
    host.routes6.insert(net(52, 1), model::host::SECOND);
    assert_eq!(outside(&host, net(52, 1)), Reason::NotIp);

    let packet = inward(WEB6);
    let at = |hook, ifindex, ingress_ifindex, mark| {
        run(
            &host,
            hook,
            (ifindex, ingress_ifindex, mark),
            packet.clone(),
        )
    };
    for (hook, ifindex) in [(Hook::BridgeOut, BRIDGE), (Hook::ContainerOut, WEB_VETH)] {
        assert_eq!(at(hook, ifindex, 0, 0), Reason::FromHost);
        assert_eq!(at(hook, ifindex, UPLINK, 0), Reason::DirectRouting);
        assert_eq!(at(hook, ifindex, OTHER_BRIDGE, 0), Reason::Isolated);
        assert_eq!(at(hook, ifindex, BRIDGE, 0), Reason::Isolated);
    }
    assert_eq!(at(Hook::BridgeOut, BRIDGE, 99, 0), Reason::UnknownNetwork);
    for (ingress_ifindex, mark, reason) in [
        (0, 0, Reason::NotIp),
        (1, 0, Reason::NotIp),
        (model::host::SECOND, 0, Reason::NotIp),
        (BRIDGE, 0, Reason::Ipv6Forward),
        (WEB_VETH, 0, Reason::Ipv6Forward),
        (99, 0, Reason::UnknownNetwork),
        // IPv4 that the host put into a tunnel.
        (BRIDGE, forwarder_common::mark::ROUTED, Reason::NotIp),
    ] {
        assert_eq!(at(Hook::OutsideOut, UPLINK, ingress_ifindex, mark), reason);
    }
    flags(&mut host, BRIDGE, network::IPV6 | network::INTERNAL);
    assert_eq!(outside(&host, WEB6), Reason::Internal);
    let got = run(&host, Hook::OutsideOut, (UPLINK, BRIDGE, 0), packet.clone());
    assert_eq!(got, Reason::Internal);
    let got = run(&host, Hook::BridgeOut, (BRIDGE, UPLINK, 0), packet);
    assert_eq!(got, Reason::Internal);
}

#[test]
fn bridge_hook_checks_veths_without_a_hook() {
    let host = host();
    for (src, dst, reason) in [
        (APP6, GATEWAY6, Reason::ToHost),
        (APP6, group(1), Reason::ToHost),
        (APP6, WEB6, Reason::Ipv6Forward),
        (APP6, FAR6, Reason::Isolated),
        (APP6, CLIENT6, Reason::Ipv6Forward),
        (GATEWAY6, HOST6, Reason::SpoofedSource),
        (FAR6, HOST6, Reason::ForeignSource),
    ] {
        let frame = frame((mac(BRIDGE), far_mac(9)), (src, dst), UDP, &datagram(80));
        let got = run(&host, Hook::BridgeIn, (BRIDGE, 0, 0), frame);
        assert_eq!(got, reason, "{src:?} to {dst:?}");
    }
    let advert = frame(
        (mac(BRIDGE), far_mac(9)),
        (APP6, group(1)),
        ICMP,
        &[134; 16],
    );
    let got = run(&host, Hook::BridgeIn, (BRIDGE, 0, 0), advert);
    assert_eq!(got, Reason::SpoofedNeighbour);
}

/// A container sends neighbour discovery with its own addresses only.
#[test]
fn neighbour_discovery_uses_own_addresses() {
    let mut host = host();
    let own = Be128::link_local(far_mac(APP_VETH));
    let (mine, theirs) = (far_mac(APP_VETH), far_mac(WEB_VETH));
    let all = group(1);
    let no_option = |kind: u8, target: Be128| neighbour(kind, target, 1, mine)[..24].to_vec();
    let honest = [
        (APP6, neighbour(135, WEB6, 1, mine)),
        (own, neighbour(135, GATEWAY6, 1, mine)),
        (APP6, neighbour(136, APP6, 2, mine)),
        (own, neighbour(136, APP6, 2, mine)),
        (own, neighbour(136, own, 2, mine)),
        (ANY, no_option(135, own)),
        (ANY, no_option(135, APP6)),
        (ANY, vec![133, 0, 0, 0, 0, 0, 0, 0]),
        (own, [&[133, 0, 0, 0, 0, 0, 0, 0, 1, 1][..], &mine].concat()),
        (ANY, vec![143, 0, 0, 0, 0, 0, 0, 0]),
        (own, vec![143, 0, 0, 0, 0, 0, 0, 0]),
        (APP6, vec![128, 0, 0, 0, 0, 1, 0, 1]),
    ];
    // Detection of duplicates with a nonce (RFC 7527).
    let nonce = [&no_option(135, own)[..], &[14, 1, 1, 2, 3, 4, 5, 6]].concat();
    let honest = honest.into_iter().chain([(ANY, nonce)]);
    for (src, body) in honest {
        let got = sends(&host, APP_VETH, (src, all), ICMP, &body);
        assert_eq!(got, Reason::Bridged, "{src:?} {body:?}");
    }
    let gateway = Be128::link_local(mac(BRIDGE));
    let lies = [
        (own, vec![134; 16]),
        (own, vec![137; 40]),
        (APP6, neighbour(136, WEB6, 2, mine)),
        (own, neighbour(136, GATEWAY6, 2, mine)),
        (own, neighbour(136, gateway, 2, mine)),
        (APP6, neighbour(136, APP6, 2, theirs)),
        (APP6, neighbour(135, WEB6, 1, theirs)),
        (APP6, neighbour(135, WEB6, 2, theirs)),
        (ANY, no_option(135, WEB6)),
        (ANY, no_option(135, GATEWAY6)),
        (
            own,
            [&[133, 0, 0, 0, 0, 0, 0, 0, 1, 1][..], &theirs].concat(),
        ),
        (own, vec![136, 0, 0, 0]),
        // An option that has no length, one that is cut, and too many.
        (
            APP6,
            [&no_option(136, APP6)[..], &[2, 0, 0, 0, 0, 0, 0, 0]].concat(),
        ),
        (APP6, [&no_option(136, APP6)[..], &[2, 1]].concat()),
        (
            APP6,
            [
                &no_option(136, APP6)[..],
                &[14, 1, 0, 0, 0, 0, 0, 0].repeat(5),
            ]
            .concat(),
        ),
    ];
    for (src, body) in lies {
        let got = sends(&host, APP_VETH, (src, all), ICMP, &body);
        assert_eq!(got, Reason::SpoofedNeighbour, "{src:?} {body:?}");
    }
    for (src, kind) in [(WEB6, 136), (gateway, 134), (gateway, 136), (ANY, 136)] {
        let got = sends(
            &host,
            APP_VETH,
            (src, all),
            ICMP,
            &neighbour(kind, WEB6, 2, mine),
        );
        let forged = [Reason::SpoofedSource, Reason::ForeignSource];
        assert!(forged.contains(&got), "{got:?}");
    }
    // From further away than a neighbour is.
    let macs = (mac(BRIDGE), mine);
    let mut far = frame(macs, (APP6, all), ICMP, &neighbour(136, APP6, 2, mine));
    far[21] = 64;
    let got = run(&host, Hook::ContainerIn, (APP_VETH, 0, 0), far);
    assert_eq!(got, Reason::SpoofedNeighbour);
    // Where the MAC address is not known it is the frame's.
    host.endpoints6.insert(
        APP_VETH,
        Endpoint6 {
            addr: APP6,
            ..Endpoint6::default()
        },
    );
    let says = |host: &Host, mac| {
        sends(
            host,
            APP_VETH,
            (APP6, all),
            ICMP,
            &neighbour(136, APP6, 2, mac),
        )
    };
    assert_eq!(says(&host, mine), Reason::Bridged);
    assert_eq!(says(&host, theirs), Reason::SpoofedNeighbour);
}

#[test]
fn extension_headers_hide_no_packet() {
    let host = host();
    let options = |next: u8| vec![next, 0, 1, 4, 0, 0, 0, 0];
    let is_fragment = |next: u8, field: u16| {
        let [high, low] = field.to_be_bytes();
        vec![next, 0, high, low, 0, 0, 0, 7]
    };
    let advert = [134; 16];
    let server = datagram(546);
    let send = |first: u8, headers: &[Vec<u8>], body: &[u8]| {
        let body = [&headers.concat()[..], body].concat();
        sends(&host, APP_VETH, (APP6, group(1)), first, &body)
    };
    for (first, kind) in [(0, 0), (60, 60), (43, 43)] {
        let _ = kind;
        assert_eq!(
            send(first, &[options(ICMP)], &advert),
            Reason::SpoofedNeighbour
        );
        assert_eq!(
            send(first, &[options(UDP)], &server),
            Reason::SpoofedNeighbour
        );
        assert_eq!(send(first, &[options(UDP)], &datagram(53)), Reason::Bridged);
    }
    let seven = vec![options(60); 6];
    let chain = [&seven[..], &[options(ICMP)]].concat();
    assert_eq!(send(60, &chain, &advert), Reason::SpoofedNeighbour);
    assert_eq!(send(60, &vec![options(60); 9], &advert), Reason::Ipv6Header);
    assert_eq!(
        send(51, &[vec![ICMP, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]], &advert),
        Reason::SpoofedNeighbour
    );
    assert_eq!(
        send(44, &[is_fragment(ICMP, 1)], &advert),
        Reason::SpoofedNeighbour
    );
    // A neighbour's message in fragments, and one that begins in the second.
    let asks = neighbour(135, WEB6, 1, far_mac(APP_VETH));
    assert_eq!(
        send(44, &[is_fragment(ICMP, 1)], &asks),
        Reason::SpoofedNeighbour
    );
    assert_eq!(send(44, &[is_fragment(ICMP, 0)], &asks), Reason::Bridged);
    assert_eq!(send(44, &[is_fragment(ICMP, 1)], &[]), Reason::Ipv6Header);
    assert_eq!(send(44, &[is_fragment(60, 1)], &[]), Reason::Ipv6Header);
    assert_eq!(
        send(44, &[is_fragment(UDP, 8 << 3)], &[7; 8]),
        Reason::Bridged
    );
    // Behind what is not read: by its addresses.
    assert_eq!(send(50, &[], &advert), Reason::Bridged);
    assert_eq!(send(59, &[], &[]), Reason::Bridged);
    let macs = (mac(BRIDGE), far_mac(APP_VETH));
    for cut in [14, 30, 53] {
        let mut short = frame(macs, (APP6, WEB6), UDP, &[]);
        short.truncate(cut);
        let got = run(&host, Hook::ContainerIn, (APP_VETH, 0, 0), short);
        assert_eq!(got, Reason::Ipv6Header, "{cut}");
    }
    let mut four = frame(macs, (APP6, WEB6), UDP, &datagram(80));
    four[14] = 0x45;
    let got = run(&host, Hook::ContainerIn, (APP_VETH, 0, 0), four);
    assert_eq!(got, Reason::Ipv6Header);
}

/// A link-local address of the host's counts on its own device only.
#[test]
fn host_link_local_address_is_per_device() {
    let mut host = host();
    // What is the other bridge's name is free on this one.
    let other = Be128::link_local(mac(OTHER_BRIDGE));
    let own = Be128::link_local(far_mac(APP_VETH));
    let got = sends(&host, APP_VETH, (own, other), UDP, &datagram(80));
    assert_eq!(got, Reason::Bridged);
    let ifindex = BRIDGE;
    host.locals6.insert(HostAddressKey6 {
        addr: other,
        ifindex,
    });
    let got = sends(&host, APP_VETH, (own, other), UDP, &datagram(80));
    assert_eq!(got, Reason::ToHost);
    let far = Be128::link_local(far_mac(FAR_VETH));
    let got = sends(&host, APP_VETH, (far, GATEWAY6), UDP, &datagram(80));
    assert_eq!(got, Reason::ToHost, "a name on another bridge");
}

/// Receives by the uplink.
fn receives(host: &Host, ends: (Be128, Be128), next: u8, body: &[u8]) -> Reason {
    let frame = frame((mac(UPLINK), far_mac(UPLINK)), ends, next, body);
    run(host, Hook::OutsideIn, (UPLINK, 0, 0), frame)
}

#[test]
fn outside_cannot_use_a_host_address() {
    let mut host = host();
    let own = Be128::link_local(mac(UPLINK));
    let elsewhere = Be128::link_local(mac(model::host::SECOND));
    for (addr, ifindex) in [(own, UPLINK), (elsewhere, model::host::SECOND)] {
        host.locals6.insert(HostAddressKey6 { addr, ifindex });
    }
    let loopback = Be128::from_octets([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    for src in [HOST6, GATEWAY6, own, loopback, group(1), WEB6] {
        for dst in [HOST6, net(52, 1), group(1), own] {
            let got = receives(&host, (src, dst), UDP, &datagram(80));
            assert_eq!(got, Reason::SpoofedSource, "{src:?} to {dst:?}");
        }
    }
    for src in [CLIENT6, elsewhere, Be128::link_local(far_mac(UPLINK)), ANY] {
        let got = receives(&host, (src, HOST6), UDP, &datagram(80));
        assert_eq!(got, Reason::ToHost, "{src:?}");
    }
    // A free address of a network is nobody's outside, unless a route leads to the LAN.
    let (free, on_lan) = (net(1, 99), net(1, 77));
    host.routes6.insert(free, BRIDGE);
    host.routes6.insert(on_lan, UPLINK);
    let got = |src| receives(&host, (src, HOST6), UDP, &datagram(80));
    assert_eq!(got(free), Reason::SpoofedSource);
    assert_eq!(got(on_lan), Reason::ToHost);
    // Who has the same address says so, and the kernel has to hear it.
    for src in [HOST6, own] {
        for kind in [135, 136] {
            let says = neighbour(kind, src, 2, far_mac(UPLINK));
            assert_eq!(
                receives(&host, (src, group(1)), ICMP, &says),
                Reason::ToHost
            );
            let macs = (mac(UPLINK), far_mac(UPLINK));
            let mut far = frame(macs, (src, group(1)), ICMP, &says);
            far[21] = 64;
            let got = run(&host, Hook::OutsideIn, (UPLINK, 0, 0), far);
            assert_eq!(got, Reason::SpoofedSource, "from further away");
        }
        for kind in [128, 133, 134, 137] {
            let says = neighbour(kind, src, 2, far_mac(UPLINK));
            let got = receives(&host, (src, group(1)), ICMP, &says);
            assert_eq!(got, Reason::SpoofedSource, "{kind}");
        }
    }
}

/// A list: who is named, and whether all others are let in.
fn list(host: &mut Host, list: u32, others: u32, named: &[(Be128, u8, u32)]) {
    for &(client, len, word) in named.iter().chain([&(ANY, 0, others)]) {
        host.ingress6
            .insert((IngressKey6 { list, client }, len), word);
    }
}

/// A port that docker-proxy serves by UDP.
fn publish(host: &mut Host, (addr, port): (Be128, u16), policy: u32, bridges: [u32; 2]) {
    let key = PortKey6 {
        addr,
        port: Be16::new(port),
        proto: 17,
    };
    host.published6.insert(key, Published6 { policy, bridges });
    host.settings.lists6 = 1;
}

const ALLOWED: u32 = 5;
const NETWORK: u32 = 6;

/// Port 80 lets in 9::/64 but for 9::7, port 81 of one address whom the containers' network lets in,
/// which is all but 9::3.
fn with_lists() -> Host {
    let mut host = host();
    let (allow, deny) = (ingress::ALLOW, ingress::DENY);
    let named = [(net(9, 0), 64, allow), (net(9, 7), 128, deny)];
    list(&mut host, ALLOWED, deny, &named);
    list(&mut host, NETWORK, allow, &[(net(9, 3), 128, deny)]);
    host.networks.get_mut(&BRIDGE).unwrap().policy = NETWORK;
    publish(&mut host, (ANY, 80), ALLOWED, [BRIDGE, 0]);
    publish(&mut host, (HOST6, 81), 0, [OTHER_BRIDGE, BRIDGE]);
    host
}

#[test]
fn lists_of_a_published_port_hold_for_ipv6() {
    let mut host = with_lists();
    let own = Be128::link_local(mac(UPLINK));
    for (src, port, reason) in [
        (CLIENT6, 80, Reason::ToHost),
        (net(9, 7), 80, Reason::Policy),
        (net(8, 2), 80, Reason::Policy),
        (own, 80, Reason::Policy),
        (net(9, 3), 80, Reason::Policy),
        (net(9, 3), 81, Reason::Policy),
        (net(8, 2), 81, Reason::ToHost),
        (net(8, 2), 82, Reason::ToHost),
    ] {
        let got = receives(&host, (src, HOST6), UDP, &datagram(port));
        assert_eq!(got, reason, "{src:?} asks {port}");
    }
    // Wherever the kernel takes it in: a group, a link-local address, a range that is routed to it.
    host.routes6.insert(net(52, 1), model::host::SECOND);
    for (dst, reason) in [
        (group(1), Reason::Policy),
        (own, Reason::Policy),
        (GATEWAY6, Reason::Policy),
        (net(50, 1), Reason::Policy),
        (net(52, 1), Reason::NotIp),
    ] {
        let got = receives(&host, (net(8, 2), dst), UDP, &datagram(80));
        assert_eq!(got, reason, "{dst:?}");
    }
    let got = receives(&host, (net(9, 3), net(50, 1)), UDP, &datagram(81));
    assert_eq!(got, Reason::ToHost, "published at another address");
    let by_tcp = [&datagram(80)[..], &[0; 12]].concat();
    let got = receives(&host, (net(8, 2), HOST6), 6, &by_tcp);
    assert_eq!(got, Reason::ToHost, "published for UDP");
    let got = receives(&host, (net(8, 2), HOST6), ICMP, &[128, 0, 0, 0, 0, 80]);
    assert_eq!(got, Reason::ToHost);
    // A list that is not there lets in nobody.
    publish(&mut host, (ANY, 83), 99, [0, 0]);
    let got = receives(&host, (CLIENT6, HOST6), UDP, &datagram(83));
    assert_eq!(got, Reason::Policy);
    host.settings.lists6 = 0;
    let got = receives(&host, (CLIENT6, HOST6), UDP, &datagram(83));
    assert_eq!(got, Reason::ToHost);
}

#[test]
fn lists_hold_for_containers_by_ipv6() {
    let mut host = with_lists();
    list(&mut host, NETWORK, ingress::DENY, &[]);
    let asks = |host: &Host, veth, src, port| {
        let bridge = host.devices[&veth].bridge;
        let frame = frame(
            (mac(bridge), far_mac(veth)),
            (src, HOST6),
            UDP,
            &datagram(port),
        );
        let at_bridge = run(host, Hook::BridgeIn, (bridge, 0, 0), frame);
        let at_veth = sends(host, veth, (src, HOST6), UDP, &datagram(port));
        assert_eq!(at_bridge, at_veth);
        at_veth
    };
    // A network's list is not for its own containers; a port's is for everybody.
    assert_eq!(asks(&host, APP_VETH, APP6, 81), Reason::ToHost);
    assert_eq!(asks(&host, FAR_VETH, FAR6, 81), Reason::Policy);
    assert_eq!(asks(&host, APP_VETH, APP6, 80), Reason::Policy);
    assert_eq!(asks(&host, APP_VETH, APP6, 82), Reason::ToHost);
    let to_all = (APP6, group(1));
    assert_eq!(
        sends(&host, APP_VETH, to_all, UDP, &datagram(80)),
        Reason::Bridged,
        "siblings hear it"
    );
    let macs = ([0x33, 0x33, 0, 0, 0, 1], far_mac(APP_VETH));
    let frame = frame(macs, to_all, UDP, &datagram(80));
    let got = run(&host, Hook::BridgeIn, (BRIDGE, 0, 0), frame);
    assert_eq!(got, Reason::Policy, "the host does not");
}

#[test]
fn lists_find_the_port_behind_extensions() {
    let host = with_lists();
    let receives = |first: u8, headers: &[Vec<u8>], body: &[u8]| {
        let body = [&headers.concat()[..], body].concat();
        receives(&host, (net(8, 2), HOST6), first, &body)
    };
    let options = |next: u8| vec![next, 0, 1, 4, 0, 0, 0, 0];
    let is_fragment = |next: u8, field: u16| {
        let [high, low] = field.to_be_bytes();
        vec![next, 0, high, low, 0, 0, 0, 7]
    };
    let (listed, other) = (datagram(80), datagram(82));
    for first in [0, 43, 60] {
        let route = vec![UDP, 0, 4, 0, 0, 0, 0, 0];
        let header = if first == 43 { route } else { options(UDP) };
        let header = [header];
        assert_eq!(receives(first, &header, &listed), Reason::Policy);
        assert_eq!(receives(first, &header, &other), Reason::ToHost);
    }
    let authenticated = [vec![UDP, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]];
    assert_eq!(receives(51, &authenticated, &listed), Reason::Policy);
    assert_eq!(
        receives(44, &[is_fragment(UDP, 1)], &listed),
        Reason::Policy
    );
    assert_eq!(receives(44, &[is_fragment(UDP, 1)], &other), Reason::ToHost);
    // A head without its ports, and what stands behind too much.
    assert_eq!(
        receives(44, &[is_fragment(UDP, 1)], &[]),
        Reason::Ipv6Header
    );
    assert_eq!(
        receives(44, &[is_fragment(UDP, 1)], &[48, 57, 0]),
        Reason::Ipv6Header
    );
    assert_eq!(receives(44, &[is_fragment(60, 1)], &[]), Reason::Ipv6Header);
    assert_eq!(
        receives(60, &vec![options(60); 9], &listed),
        Reason::Ipv6Header
    );
    // Without a head it is nothing.
    assert_eq!(
        receives(44, &[is_fragment(UDP, 8)], &listed),
        Reason::ToHost
    );
    // It would still go on to another of the host's addresses.
    let route = vec![
        UDP, 2, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(receives(43, &[route], &other), Reason::Ipv6Header);
}

#[test]
fn lists_do_not_read_past_the_packet() {
    let host = with_lists();
    let macs = (mac(UPLINK), far_mac(UPLINK));
    let head = [17, 0, 0, 1, 0, 0, 0, 7];
    let mut padded = frame(macs, (net(8, 2), HOST6), 44, &head);
    padded.extend(datagram(82));
    let got = run(&host, Hook::OutsideIn, (UPLINK, 0, 0), padded.clone());
    assert_eq!(got, Reason::Ipv6Header, "the kernel cuts it off");
    padded[19] += 9;
    let got = run(&host, Hook::OutsideIn, (UPLINK, 0, 0), padded);
    assert_eq!(got, Reason::ToHost);
}

#[test]
fn allowed_sources_hold_for_ipv6() {
    let mut host = host();
    host.devices.get_mut(&APP_VETH).unwrap().kind = device::NAMED_VETH;
    host.devices.get_mut(&WEB_VETH).unwrap().kind = device::NAMED_VETH;
    let (vpn, every) = (net(7, 0), net(6, 0));
    for (device, source, word) in [
        (BRIDGE, vpn, allowed::ONE),
        (APP_VETH, vpn, allowed::ONE),
        (BRIDGE, every, allowed::EACH),
    ] {
        host.allowed6
            .insert((AllowedKey6 { device, source }, 64), word);
    }
    for (veth, src, reason) in [
        (APP_VETH, net(7, 9), Reason::ToHost),
        (WEB_VETH, net(7, 9), Reason::ForeignSource),
        (FAR_VETH, net(7, 9), Reason::ForeignSource),
        (APP_VETH, net(6, 9), Reason::ToHost),
        (WEB_VETH, net(6, 9), Reason::ToHost),
        (FAR_VETH, net(6, 9), Reason::ForeignSource),
        (APP_VETH, net(8, 9), Reason::ForeignSource),
    ] {
        let got = sends(&host, veth, (src, HOST6), UDP, &datagram(80));
        assert_eq!(got, reason, "{src:?} by {veth}");
    }
    // At the bridge it is not known who sends.
    for (src, reason) in [
        (net(7, 9), Reason::ToHost),
        (net(8, 9), Reason::ForeignSource),
    ] {
        let frame = frame((mac(BRIDGE), far_mac(9)), (src, HOST6), UDP, &datagram(80));
        let got = run(&host, Hook::BridgeIn, (BRIDGE, 0, 0), frame);
        assert_eq!(got, reason, "{src:?}");
    }
    // It is a neighbour by such an address too, and nothing makes the host's its own.
    let says = |veth, target| {
        let body = neighbour(136, target, 2, far_mac(veth));
        let own = Be128::link_local(far_mac(veth));
        sends(&host, veth, (own, group(1)), ICMP, &body)
    };
    assert_eq!(says(APP_VETH, net(7, 9)), Reason::Bridged);
    assert_eq!(says(WEB_VETH, net(7, 9)), Reason::SpoofedNeighbour);
    let source = ANY;
    let device = BRIDGE;
    host.allowed6
        .insert((AllowedKey6 { device, source }, 0), allowed::EACH);
    for src in [HOST6, GATEWAY6, Be128::link_local(mac(BRIDGE))] {
        let got = sends(&host, APP_VETH, (src, WEB6), UDP, &datagram(80));
        assert!(
            matches!(got, Reason::SpoofedSource | Reason::ForeignSource),
            "{got:?}"
        );
    }
}
