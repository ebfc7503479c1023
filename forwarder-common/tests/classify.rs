// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a container's packet may say before it gets anywhere, and a new flow's source from outside.

use forwarder_common::abi::{allowed, device, network};
use forwarder_common::environment::Route;
use forwarder_common::family::{Address as _, Be32};
use forwarder_common::mark;
use forwarder_common::reason::Reason;
use forwarder_common::wire::proto;
use forwarder_testkit::model::frames::{Spec, ip};
use forwarder_testkit::model::host::{
    APP, APP_VETH, BARE, BRIDGE, CLIENT, GATEWAY, HOST, OTHER_BRIDGE, REMOTE, UPLINK, WEB,
    WEB_VETH, far_mac,
};
use forwarder_testkit::model::{Arrival, Hook, Host};

fn udp(src: Be32, dst: Be32) -> Spec {
    Spec::udp((src, 5000), (dst, 8080))
}

/// What becomes of a container's packet by its veth.
fn by_veth(host: &Host, spec: &Spec) -> Option<Reason> {
    host.by_veth(WEB_VETH, spec).0.reason
}

/// A packet with an unreadable transport header is judged by its network header.
#[test]
fn unreadable_transport_uses_network_header() {
    let host = Host::usual(64);
    let reason = |src, dst| {
        let macs = (host.devices[&WEB_VETH].mac, far_mac(WEB_VETH));
        let mut frame = udp(src, dst).between(macs.0, macs.1).build();
        // TCP of 16 bytes.
        frame[14 + 9] = proto::TCP as u8;
        let arrival = Arrival {
            ifindex: WEB_VETH,
            ..Arrival::default()
        };
        host.run(Hook::ContainerIn, &mut frame, arrival).reason
    };
    assert_eq!(reason(WEB, REMOTE), Some(Reason::InvalidHeader));
    assert_eq!(reason(APP, REMOTE), Some(Reason::SpoofedSource));
    assert_eq!(reason(ip(10, 0, 0, 1), REMOTE), Some(Reason::ForeignSource));
    assert_eq!(reason(WEB, ip(172, 18, 0, 2)), Some(Reason::Isolated));
    assert_eq!(reason(WEB, GATEWAY), Some(Reason::ToHost));
}

#[test]
fn internal_network_lets_no_source_out() {
    let mut host = Host::usual(64);
    host.networks.get_mut(&BRIDGE).unwrap().flags |= network::INTERNAL;
    for (src, reason) in [
        (WEB, Reason::Internal),
        (APP, Reason::SpoofedSource),
        (HOST, Reason::SpoofedSource),
        (ip(10, 0, 0, 1), Reason::ForeignSource),
        (Be32::ANY, Reason::ForeignSource),
    ] {
        assert_eq!(by_veth(&host, &udp(src, REMOTE)), Some(reason), "{src:?}");
    }
}

/// A container whose veth is known cannot send with the address of one whose veth is not known yet.
#[test]
fn known_container_cannot_pass_as_unknown() {
    let mut host = Host::usual(64);
    let to_lan = |host: &Host, src| by_veth(host, &udp(src, REMOTE));
    // The floor: whose veth is not known yet, and who may be behind this one.
    assert_eq!(to_lan(&host, BARE), Some(Reason::Forwarded));
    host.devices.get_mut(&WEB_VETH).unwrap().kind = device::NAMED_VETH;
    assert_eq!(to_lan(&host, BARE), Some(Reason::SpoofedSource));
    assert_eq!(by_veth(&host, &udp(BARE, APP)), Some(Reason::SpoofedSource));
    assert_eq!(to_lan(&host, WEB), Some(Reason::Forwarded));
}

#[test]
fn icc_false_holds_with_and_without_a_hook() {
    let mut host = Host::usual(64);
    host.networks.get_mut(&BRIDGE).unwrap().flags |= network::ICC_DISABLED;
    let sends = |to: [u8; 6]| {
        let mut frame = udp(WEB, BARE).between(to, far_mac(WEB_VETH)).build();
        let arrival = Arrival {
            ifindex: WEB_VETH,
            ..Arrival::default()
        };
        host.run(Hook::ContainerIn, &mut frame, arrival).reason
    };
    // To one without a hook, and what all hear, the host as well.
    assert_eq!(sends(far_mac(0)), Some(Reason::PeerBlocked));
    assert_eq!(sends([0xff; 6]), Some(Reason::Bridged));
    // From one without a hook, and what the host forwards.
    let hears = |ingress_ifindex| {
        let mut frame = udp(BARE, WEB).build();
        let arrival = Arrival {
            ifindex: WEB_VETH,
            ingress_ifindex,
            ..Arrival::default()
        };
        host.run(Hook::ContainerOut, &mut frame, arrival).reason
    };
    assert_eq!(hears(99), Some(Reason::PeerBlocked));
    assert_eq!(hears(UPLINK), Some(Reason::Bridged));
    assert_eq!(hears(0), Some(Reason::FromHost));
}

#[test]
fn allowed_source_stays_untranslated() {
    let mut host = Host::usual(64);
    for veth in [WEB_VETH, APP_VETH] {
        host.devices.get_mut(&veth).unwrap().kind = device::NAMED_VETH;
    }
    let (client, other) = (ip(10, 8, 0, 7), ip(10, 9, 0, 7));
    let range = (ip(10, 8, 0, 0), 24);
    for (device, word) in [
        (WEB_VETH, allowed::ONE),
        (BRIDGE, allowed::ONE),
        (allowed::ROUTES, BRIDGE),
    ] {
        host.allowed.insert((device, range.0, range.1), word);
    }
    host.route(range, BRIDGE, WEB, 1500);
    let (outcome, packet) = host.by_veth(WEB_VETH, &udp(client, REMOTE));
    assert_eq!(outcome.reason, Some(Reason::Forwarded));
    assert_eq!(packet[12..16], client.octets());
    assert_eq!(by_veth(&host, &udp(client, HOST)), Some(Reason::Forwarded));
    assert_eq!(
        by_veth(&host, &udp(other, REMOTE)),
        Some(Reason::ForeignSource)
    );
    let by_sibling = host.by_veth(APP_VETH, &udp(client, REMOTE)).0.reason;
    assert_eq!(by_sibling, Some(Reason::SpoofedSource), "in its flow");
    // A sibling's packet to it returns to the bridge, one from outside goes there.
    let to = host.by_veth(APP_VETH, &udp(APP, client)).0;
    assert_eq!((to.reason, to.mark), (Some(Reason::Routed), mark::ROUTED));
    let to = host.by_uplink(&udp(CLIENT, client)).0;
    assert_eq!(to.reason, Some(Reason::NotHooked));
    // Not where the kernel routes it elsewhere: there it is a packet like any other.
    host.route(range, UPLINK, CLIENT, 1500);
    let (outcome, packet) = host.by_veth(APP_VETH, &udp(APP, client));
    assert_eq!(outcome.reason, Some(Reason::Forwarded));
    assert_eq!(packet[12..16], HOST.octets());
    // All of a network's may, where the network says so.
    host.allowed
        .insert((BRIDGE, range.0, range.1), allowed::EACH);
    let by_sibling = host.by_veth(APP_VETH, &udp(client, REMOTE)).0.reason;
    assert_eq!(by_sibling, Some(Reason::Forwarded));
}

#[test]
fn source_of_a_new_flow_is_verified_once() {
    let mut host = Host::usual(64);
    for src in [
        HOST,
        GATEWAY,
        WEB,
        APP,
        ip(172, 17, 0, 99),
        ip(224, 0, 0, 1),
        ip(0, 1, 2, 3),
        ip(240, 0, 0, 1),
        ip(255, 255, 255, 255),
    ] {
        let outcome = host.by_uplink(&udp(src, HOST)).0;
        assert_eq!(outcome.reason, Some(Reason::SpoofedSource), "{src:?}");
        assert_eq!(host.index.borrow().len(), 0, "{src:?} leaves a flow");
    }
    let elsewhere = (ip(10, 1, 0, 0), 16);
    host.route(elsewhere, OTHER_BRIDGE, Be32::ANY, 1500);
    host.routes.insert((ip(10, 2, 0, 0), 16), Route::Kernel);
    let (aside, nowhere) = (ip(10, 1, 0, 1), ip(10, 2, 0, 1));
    for (flags, expected) in [
        (0, [true, true]),
        (device::flag::REVERSE_LOOSE, [true, false]),
        (device::flag::REVERSE_STRICT, [false, false]),
    ] {
        host.devices.get_mut(&UPLINK).unwrap().flags = flags;
        for (src, arrives) in [aside, nowhere].into_iter().zip(expected) {
            let src = ip(10, src.octets()[1], flags as u8, 1);
            let reason = host.by_uplink(&udp(src, HOST)).0.reason;
            let expected = if arrives {
                Reason::Forwarded
            } else {
                Reason::SpoofedSource
            };
            assert_eq!(reason, Some(expected), "{src:?}, flags {flags}");
        }
        let client = host.by_uplink(&udp(ip(203, 0, 113, flags as u8 + 1), HOST));
        assert_eq!(client.0.reason, Some(Reason::Forwarded), "flags {flags}");
    }
    // A client of the LAN with an address in a network's range.
    host.route((ip(172, 17, 5, 0), 24), UPLINK, Be32::ANY, 1500);
    let client = host.by_uplink(&udp(ip(172, 17, 5, 9), HOST)).0.reason;
    assert_eq!(client, Some(Reason::Forwarded));
}

/// A packet of a bridge that has no mark does not leave the host.
#[test]
fn unmarked_packet_of_a_bridge_is_dropped() {
    let host = Host::usual(64);
    let packet = |src| udp(src, REMOTE).build().split_off(14);
    for src in [WEB, ip(10, 0, 0, 1), CLIENT] {
        for ingress_ifindex in [BRIDGE, WEB_VETH] {
            let outcome = host.to_outside(ingress_ifindex, 0, &packet(src)).0;
            assert_eq!(outcome.reason, Some(Reason::Untranslated), "{src:?}");
        }
    }
    let own = host.to_outside(0, 0, &packet(HOST)).0;
    assert_eq!(own.reason, Some(Reason::FromHost));
    let leaves = host.to_outside(BRIDGE, mark::LEAVES, &packet(CLIENT)).0;
    assert_eq!((leaves.reason, leaves.mark), (Some(Reason::Admitted), 0));
}

#[test]
fn dhcp_server_is_silent_and_client_asks() {
    let mut host = Host::usual(64);
    let all = ip(255, 255, 255, 255);
    let server = Spec::udp((WEB, 67), (all, 68));
    let client = Spec::udp((Be32::ANY, 68), (all, 67));
    assert_eq!(by_veth(&host, &server), Some(Reason::DhcpServer));
    assert_eq!(by_veth(&host, &client), Some(Reason::ToHost));
    host.networks.get_mut(&BRIDGE).unwrap().flags |= network::OTHER_FRAMES;
    assert_eq!(by_veth(&host, &server), Some(Reason::ToHost));
}
