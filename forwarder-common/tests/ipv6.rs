//! What a container may send and get by IPv6, hook by hook.

#[expect(dead_code, reason = "each subject needs its part of the model")]
mod model;

use forwarder_common::abi::{Endpoint6, LocalKey6, OwnerKey6, device, network};
use forwarder_common::family::Be128;
use forwarder_common::reason::Reason;
use model::host::{APP_VETH, BRIDGE, FAR_VETH, OTHER_BRIDGE, UPLINK, WEB_VETH, far_mac, mac};
use model::ipv6::{APP6, CLIENT6, FAR6, GATEWAY6, HOST6, WEB6, frame, neighbour, net};
use model::{Arrival, Hook, Host};

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
    let (ifindex, came_by, mark) = arrival;
    let arrival = Arrival {
        ifindex,
        came_by,
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
            network::NO_PEERS,
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
    flags(&mut host, BRIDGE, network::IPV6 | network::NO_PEERS);
    let solicits = neighbour(135, WEB6, 1, far_mac(APP_VETH));
    let asks = frame(
        (mac(BRIDGE), far_mac(APP_VETH)),
        (APP6, group(1)),
        ICMP,
        &solicits,
    );
    let at = |ifindex, came_by| (ifindex, came_by, 0);
    let out = |at| run(&host, Hook::ContainerOut, at, asks.clone());
    assert_eq!(out(at(WEB_VETH, APP_VETH)), Reason::PeerBlocked);
    assert_eq!(out(at(WEB_VETH, 0)), Reason::FromHost);
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
fn nothing_forwarded_gets_in_or_out() {
    let mut host = host();
    host.devices.remove(&model::host::VPN);
    let body = datagram(80);
    let inward = |dst| frame((mac(UPLINK), far_mac(UPLINK)), (CLIENT6, dst), UDP, &body);
    let outside = |host: &Host, dst| run(host, Hook::OutsideIn, (UPLINK, 0, 0), inward(dst));
    assert_eq!(outside(&host, WEB6), Reason::DirectRouting);
    assert_eq!(outside(&host, HOST6), Reason::NotIp);
    assert_eq!(outside(&host, GATEWAY6), Reason::NotIp);
    assert_eq!(outside(&host, net(50, 1)), Reason::NotIp);
    let stolen = frame((mac(UPLINK), far_mac(UPLINK)), (WEB6, HOST6), UDP, &body);
    let got = run(&host, Hook::OutsideIn, (UPLINK, 0, 0), stolen);
    assert_eq!(got, Reason::SpoofedSource);
    host.routes6.insert(net(51, 1), 99);
    assert_eq!(outside(&host, net(51, 1)), Reason::UnknownNetwork);
    host.routes6.insert(net(52, 1), model::host::SECOND);
    assert_eq!(outside(&host, net(52, 1)), Reason::NotIp);

    let packet = inward(WEB6);
    let at =
        |hook, ifindex, came_by, mark| run(&host, hook, (ifindex, came_by, mark), packet.clone());
    for (hook, ifindex) in [(Hook::BridgeOut, BRIDGE), (Hook::ContainerOut, WEB_VETH)] {
        assert_eq!(at(hook, ifindex, 0, 0), Reason::FromHost);
        assert_eq!(at(hook, ifindex, UPLINK, 0), Reason::DirectRouting);
        assert_eq!(at(hook, ifindex, OTHER_BRIDGE, 0), Reason::Isolated);
        assert_eq!(at(hook, ifindex, BRIDGE, 0), Reason::Isolated);
    }
    assert_eq!(at(Hook::BridgeOut, BRIDGE, 99, 0), Reason::UnknownNetwork);
    for (came_by, mark, reason) in [
        (0, 0, Reason::NotIp),
        (1, 0, Reason::NotIp),
        (model::host::SECOND, 0, Reason::NotIp),
        (BRIDGE, 0, Reason::Ipv6Forward),
        (WEB_VETH, 0, Reason::Ipv6Forward),
        (99, 0, Reason::UnknownNetwork),
        // IPv4 that the host put into a tunnel.
        (
            BRIDGE,
            forwarder_common::pipeline::mark::ROUTED,
            Reason::NotIp,
        ),
    ] {
        assert_eq!(at(Hook::OutsideOut, UPLINK, came_by, mark), reason);
    }
    flags(&mut host, BRIDGE, network::IPV6 | network::INTERNAL);
    assert_eq!(outside(&host, WEB6), Reason::Internal);
    let got = run(&host, Hook::OutsideOut, (UPLINK, BRIDGE, 0), packet.clone());
    assert_eq!(got, Reason::Internal);
    let got = run(&host, Hook::BridgeOut, (BRIDGE, UPLINK, 0), packet);
    assert_eq!(got, Reason::Internal);
}

#[test]
fn bridge_judges_veths_without_a_hook() {
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

#[test]
fn neighbour_speaks_in_its_own_names() {
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
fn extension_headers_hide_nothing() {
    let host = host();
    let options = |next: u8| vec![next, 0, 1, 4, 0, 0, 0, 0];
    let piece = |next: u8, field: u16| {
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
        send(44, &[piece(ICMP, 1)], &advert),
        Reason::SpoofedNeighbour
    );
    // A neighbour's message in fragments, and one that begins in the second.
    let asks = neighbour(135, WEB6, 1, far_mac(APP_VETH));
    assert_eq!(send(44, &[piece(ICMP, 1)], &asks), Reason::SpoofedNeighbour);
    assert_eq!(send(44, &[piece(ICMP, 0)], &asks), Reason::Bridged);
    assert_eq!(send(44, &[piece(ICMP, 1)], &[]), Reason::Ipv6Header);
    assert_eq!(send(44, &[piece(60, 1)], &[]), Reason::Ipv6Header);
    assert_eq!(send(44, &[piece(UDP, 8 << 3)], &[7; 8]), Reason::Bridged);
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

#[test]
fn link_local_address_of_the_host_counts_on_its_device() {
    let mut host = host();
    // What is the other bridge's name is free on this one.
    let other = Be128::link_local(mac(OTHER_BRIDGE));
    let own = Be128::link_local(far_mac(APP_VETH));
    let got = sends(&host, APP_VETH, (own, other), UDP, &datagram(80));
    assert_eq!(got, Reason::Bridged);
    let ifindex = BRIDGE;
    host.locals6.insert(LocalKey6 {
        addr: other,
        ifindex,
    });
    let got = sends(&host, APP_VETH, (own, other), UDP, &datagram(80));
    assert_eq!(got, Reason::ToHost);
    let far = Be128::link_local(far_mac(FAR_VETH));
    let got = sends(&host, APP_VETH, (far, GATEWAY6), UDP, &datagram(80));
    assert_eq!(got, Reason::ToHost, "a name on another bridge");
}
