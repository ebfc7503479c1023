// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who reaches a container: gateway modes, trusted devices, lists of clients, links.

use forwarder_common::abi::{LinkKey, PortKey, TrustKey, ingress, network};
use forwarder_common::family::{Be16, Be32, V4};
use forwarder_common::mark;
use forwarder_common::reason::Reason;
use forwarder_testkit::model::frames::{ACK, SYN, Spec, cut, ip};
use forwarder_testkit::model::host::{
    APP, APP_VETH, BRIDGE, CLIENT, FAR, FAR_VETH, GATEWAY, HOST, OTHER_BRIDGE, REMOTE, SECOND,
    UPLINK, WEB, WEB_VETH, far_mac, mac,
};
use forwarder_testkit::model::{Arrival, Hook, Host};

/// The other network's gateway.
const FAR_GATEWAY: Be32 = ip(172, 18, 0, 1);

/// A host whose container `WEB` may be asked by its own address and published port, 80.
fn host(flags: u32) -> Host {
    let mut host = Host::usual(64);
    host.networks.get_mut(&BRIDGE).unwrap().flags = flags;
    host.publish((WEB, 80, 17), (WEB, 80));
    host.publish((WEB, 80, 6), (WEB, 80));
    host
}

/// `WEB`'s own port 80.
fn port(proto: u16) -> PortKey<V4> {
    PortKey {
        addr: WEB,
        port: Be16::new(80),
        proto,
    }
}

fn reasons(host: &Host, specs: &[Spec]) -> Vec<Reason> {
    let reason = |spec| host.by_uplink(spec).0.reason.unwrap();
    specs.iter().map(reason).collect()
}

/// A published port, another one, a ping, and a protocol without ports, straight to `WEB`.
fn straight() -> [Spec; 4] {
    let mut other = Spec::udp((CLIENT, 0), (WEB, 0));
    other.tuple.proto = 47;
    [
        Spec::udp((CLIENT, 40_000), (WEB, 80)),
        Spec::udp((CLIENT, 40_000), (WEB, 81)),
        Spec::ping(CLIENT, WEB, 7),
        other,
    ]
}

/// A network's gateway mode decides which containers and ports are reached by direct routing.
#[test]
fn gateway_mode_decides_direct_routing() {
    use Reason::{DirectRouting as No, Forwarded as Yes, Routed};
    let nat = network::MASQUERADE;
    for (flags, expected) in [
        (nat, [No, No, No, No]),
        (nat | network::DIRECT, [Yes, No, No, No]),
        (network::ROUTED, [Yes, No, Yes, No]),
        (nat | network::UNPROTECTED, [Yes, Yes, Yes, Routed]),
        (nat | network::UNPROTECTED | network::INTERNAL, [No; 4]),
    ] {
        assert_eq!(reasons(&host(flags), &straight()), expected, "{flags:#x}");
    }
}

#[test]
fn trusted_device_reaches_published_ports_only() {
    let mut host = host(network::MASQUERADE);
    let (bridge, ifindex) = (BRIDGE, SECOND);
    host.trusted.insert(TrustKey { bridge, ifindex });
    let from = |ifindex| {
        let arrival = Arrival {
            ifindex,
            ..Arrival::default()
        };
        straight().map(|spec| {
            let spec = spec.between(mac(ifindex), far_mac(ifindex));
            host.run(Hook::OutsideIn, &mut spec.build(), arrival).reason
        })
    };
    let refused = Some(Reason::DirectRouting);
    assert_eq!(from(UPLINK), [refused; 4]);
    let [port, others @ ..] = from(SECOND);
    assert_eq!((port, others), (Some(Reason::Forwarded), [refused; 3]));
}

#[test]
fn direct_routed_packets_are_not_rewritten() {
    let host = host(network::ROUTED);
    let there = Spec::udp((CLIENT, 40_000), (WEB, 80));
    let (_, packet) = host.by_uplink(&there);
    assert_eq!(packet[12..20], there.packet()[12..20]);
    let back = Spec::udp((WEB, 80), (CLIENT, 40_000));
    let (outcome, packet) = host.by_veth(WEB_VETH, &back);
    assert_eq!(outcome.reason, Some(Reason::Forwarded));
    assert_eq!(packet[12..20], back.packet()[12..20]);
}

/// Packets of a protocol without flows are routed past the guards in both directions.
#[test]
fn portless_packets_pass_both_guards() {
    let mut host = host(network::UNPROTECTED);
    let [.., other] = straight();
    let (outcome, _) = host.by_uplink(&other);
    assert_eq!(outcome.mark, mark::ROUTED);
    let inward = host.to_bridge(BRIDGE, UPLINK, outcome, &other.packet());
    assert_eq!(
        (inward.0.reason, inward.0.mark),
        (Some(Reason::Admitted), 0)
    );
    let unmarked = host.to_bridge(BRIDGE, UPLINK, 0, &other.packet()).0.reason;
    assert_eq!(unmarked, Some(Reason::DirectRouting));

    let mut outward = Spec::udp((WEB, 0), (REMOTE, 0));
    outward.tuple.proto = 136;
    let (outcome, packet) = host.by_veth(WEB_VETH, &outward);
    assert_eq!(outcome.reason, Some(Reason::Routed));
    let (outcome, _) = host.to_outside(BRIDGE, outcome, &packet);
    assert_eq!(outcome.reason, Some(Reason::Admitted));
    let (outcome, _) = host.to_outside(BRIDGE, 0, &packet);
    assert_eq!(outcome.reason, Some(Reason::Untranslated));
    host.networks.get_mut(&BRIDGE).unwrap().flags |= network::MASQUERADE;
    let (outcome, _) = host.by_veth(WEB_VETH, &outward);
    assert_eq!(outcome.reason, Some(Reason::Protocol));
    let (outcome, _) = host.to_outside(BRIDGE, 0, &packet);
    assert_eq!(outcome.reason, Some(Reason::Untranslated));
}

/// A container of the same network is reached through the gateway too, if it is reached at all.
#[test]
fn sibling_is_reached_through_the_gateway() {
    let mut host = host(network::MASQUERADE);
    let spec = Spec::udp((APP, 5000), (WEB, 53));
    let (outcome, _) = host.by_veth(APP_VETH, &spec);
    assert_eq!(
        (outcome.reason, outcome.mark),
        (Some(Reason::Routed), mark::ROUTED)
    );
    let (passed, packet) = host.by_bridge(BRIDGE, outcome, &spec);
    assert_eq!(passed.reason, Some(Reason::Admitted));
    let (done, after) = host.to_bridge(BRIDGE, BRIDGE, passed, &packet);
    assert_eq!((done.reason, done.mark), (Some(Reason::Admitted), 0));
    assert_eq!(after, spec.packet());
    // With somebody else's address, or where containers are kept apart, not.
    let spoofed = Spec::udp((GATEWAY, 5000), (WEB, 53));
    let reason = |host: &Host, spec: &Spec| host.by_veth(APP_VETH, spec).0.reason;
    assert_eq!(reason(&host, &spoofed), Some(Reason::SpoofedSource));
    host.networks.get_mut(&BRIDGE).unwrap().flags |= network::ICC_DISABLED;
    assert_eq!(reason(&host, &spec), Some(Reason::PeerBlocked));
}

#[test]
fn other_networks_reach_what_outside_reaches() {
    let asked = Spec::tcp((FAR, 40_000), (WEB, 80), SYN);
    let reason = |host: &Host, spec: &Spec| host.by_veth(FAR_VETH, spec).0.reason;
    let nat = host(network::MASQUERADE);
    assert_eq!(reason(&nat, &asked), Some(Reason::Isolated));
    let mut routed = host(network::ROUTED);
    let closed = Spec::tcp((FAR, 40_000), (WEB, 81), SYN);
    assert_eq!(reason(&routed, &closed), Some(Reason::Isolated));
    let (outcome, packet) = routed.by_veth(FAR_VETH, &asked);
    assert_eq!(outcome.reason, Some(Reason::Forwarded));
    let src = ip(packet[12], packet[13], packet[14], packet[15]);
    assert_eq!(src, GATEWAY, "its network is masqueraded");
    let flags = &mut routed.networks.get_mut(&OTHER_BRIDGE).unwrap().flags;
    *flags = network::ROUTED;
    let again = Spec::tcp((FAR, 40_001), (WEB, 80), SYN);
    let (outcome, packet) = routed.by_veth(FAR_VETH, &again);
    assert_eq!(outcome.reason, Some(Reason::Forwarded));
    let src = ip(packet[12], packet[13], packet[14], packet[15]);
    assert_eq!(src, FAR, "its network is not");
    let flags = &mut routed.networks.get_mut(&OTHER_BRIDGE).unwrap().flags;
    *flags = network::ROUTED | network::INTERNAL;
    let third = Spec::tcp((FAR, 40_002), (WEB, 80), SYN);
    assert_eq!(reason(&routed, &third), Some(Reason::Isolated));
}

/// A network may have a source address of its own.
#[test]
fn network_has_its_own_source_address() {
    let mut host = Host::usual(64);
    let own = ip(198, 18, 1, 77);
    host.networks.get_mut(&BRIDGE).unwrap().source = own;
    let source_of = |host: &Host, to| {
        let (outcome, packet) = host.by_veth(APP_VETH, &Spec::udp((APP, 5000), to));
        assert_eq!(outcome.reason, Some(Reason::Forwarded));
        ip(packet[12], packet[13], packet[14], packet[15])
    };
    assert_eq!(source_of(&host, (REMOTE, 53)), own);
    // Its way out is looked up anew, and it lives.
    host.settings.route_generation += 1;
    assert_eq!(source_of(&host, (REMOTE, 53)), own);
    host.publish((HOST, 443, 17), (FAR, 443));
    assert_eq!(source_of(&host, (HOST, 443)), own, "by another network");
    assert_eq!(source_of(&host, (HOST, 8080)), GATEWAY, "by its own");
    assert_ne!(FAR_GATEWAY, own);
}

/// An isolated network and the host do not reach each other.
#[test]
fn isolated_network_and_host_are_separated() {
    let host = host(network::INTERNAL | network::ISOLATED);
    let to_host = Spec::udp((APP, 1), (GATEWAY, 53));
    let (outcome, _) = host.by_veth(APP_VETH, &to_host);
    assert_eq!(outcome.reason, Some(Reason::Internal));
    let from_host = Spec::udp((GATEWAY, 1), (APP, 53)).packet();
    let (outcome, _) = host.to_bridge(BRIDGE, 0, 0, &from_host);
    assert_eq!(outcome.reason, Some(Reason::Internal));
}

/// A list that lets in one address only.
fn only(host: &mut Host, list: u32, addr: Be32) {
    host.ingress
        .insert((list, Be32::default(), 0), ingress::DENY);
    host.ingress.insert((list, addr, 32), ingress::ALLOW);
}

#[test]
fn client_list_denies_clients() {
    let mut host = Host::usual(64);
    only(&mut host, 5, REMOTE);
    for published in host.published.values_mut() {
        published.policy = 5;
    }
    let ask = |client| Spec::tcp((client, 40_000), (HOST, 8080), SYN);
    assert_eq!(
        reasons(&host, &[ask(CLIENT), ask(REMOTE)]),
        [Reason::Policy, Reason::Forwarded]
    );
    let (outcome, _) = host.by_veth(APP_VETH, &ask(APP));
    assert_eq!(outcome.reason, Some(Reason::Policy), "of its own network");

    let mut host = Host::usual(64);
    only(&mut host, 6, REMOTE);
    host.networks.get_mut(&BRIDGE).unwrap().policy = 6;
    assert_eq!(
        reasons(&host, &[ask(CLIENT), ask(REMOTE)]),
        [Reason::Policy, Reason::Forwarded]
    );
    let (outcome, _) = host.by_veth(APP_VETH, &ask(APP));
    let own = Some(Reason::Forwarded);
    assert_eq!(outcome.reason, own, "the network's list is for others");
    let (outcome, _) = host.by_veth(FAR_VETH, &ask(FAR));
    assert_eq!(outcome.reason, Some(Reason::Policy));
    // A list that is not there lets nobody in.
    host.networks.get_mut(&BRIDGE).unwrap().policy = 99;
    let another = Spec::tcp((REMOTE, 40_001), (HOST, 8080), SYN);
    assert_eq!(reasons(&host, &[another]), [Reason::Policy]);
}

#[test]
fn client_list_holds_for_portless_packets() {
    let mut host = host(network::UNPROTECTED);
    let [.., other] = straight();
    assert_eq!(
        reasons(&host, std::slice::from_ref(&other)),
        [Reason::Routed]
    );
    only(&mut host, 6, REMOTE);
    host.networks.get_mut(&BRIDGE).unwrap().policy = 6;
    assert_eq!(reasons(&host, &[other]), [Reason::Policy]);
}

#[test]
fn tiny_first_fragment_gets_past_no_list() {
    for (flags, defrag_loopback) in [network::ROUTED, network::UNPROTECTED]
        .into_iter()
        .flat_map(|flags| [(flags, 0), (flags, 90)])
    {
        let mut host = host(flags);
        host.settings.defrag_loopback = defrag_loopback;
        only(&mut host, 5, REMOTE);
        for proto in [6, 17] {
            host.published.get_mut(&port(proto)).unwrap().policy = 5;
        }
        let arrives = |is_fragment: &[u8]| {
            let arrival = Arrival {
                ifindex: UPLINK,
                ..Arrival::default()
            };
            host.raw(Hook::OutsideIn, is_fragment, arrival).0.reason
        };
        let syn = Spec::tcp((CLIENT, 40_000), (WEB, 80), SYN).packet();
        for length in [8, 16] {
            let first = cut(&syn, length, 7).swap_remove(0);
            assert_eq!(arrives(&first), Some(Reason::DirectRouting), "{length}");
            // What the frame has behind it looks like the rest of the header.
            let padded = [&first[..], &syn[20 + length..]].concat();
            assert_eq!(arrives(&padded), Some(Reason::DirectRouting), "{length}");
        }
        let udp = Spec::udp((CLIENT, 40_000), (WEB, 80)).payload(64).packet();
        let first = cut(&udp, 16, 7).swap_remove(0);
        assert_eq!(
            arrives(&first),
            Some(Reason::Policy),
            "{flags} {defrag_loopback}"
        );
    }
}

/// A network that the agent has not told of is guarded.
#[test]
fn unknown_network_is_guarded() {
    const NOBODYS: u32 = 77;
    let mut host = Host::usual(64);
    let made_unnoticed = ip(172, 30, 0, 0);
    let behind = ip(192, 168, 7, 0);
    let elsewhere = ip(198, 19, 7, 0);
    host.route((made_unnoticed, 16), NOBODYS, Be32::default(), 1500);
    host.route((behind, 24), SECOND, Be32::default(), 1500);
    host.route((elsewhere, 24), NOBODYS, Be32::default(), 1500);
    for (addr, reason) in [
        (ip(172, 30, 0, 2), Reason::UnknownNetwork),
        (ip(192, 168, 7, 2), Reason::NotOurs),
        (ip(198, 19, 7, 2), Reason::UnknownNetwork),
    ] {
        let spec = Spec::udp((CLIENT, 40_000), (addr, 80));
        assert_eq!(
            reasons(&host, std::slice::from_ref(&spec)),
            [reason],
            "{addr:?}"
        );
        // Cut within its transport header, which the kernel does not ask for.
        let mut cut = spec.packet()[..26].to_vec();
        cut[2..4].copy_from_slice(&26_u16.to_be_bytes());
        let judged = match reason {
            Reason::NotOurs => Reason::Truncated,
            refused => refused,
        };
        let arrival = Arrival {
            ifindex: UPLINK,
            ..Arrival::default()
        };
        let outcome = host.raw(Hook::OutsideIn, &cut, arrival).0;
        assert_eq!(outcome.reason, Some(judged), "{addr:?}");
    }
}

/// A list of clients that changes is asked again about flows that exist.
#[test]
fn changed_client_list_is_asked_for_old_flows() {
    let mut host = Host::usual(64);
    let request = Spec::udp((CLIENT, 40_000), (HOST, 8080));
    let answer = Spec::udp((WEB, 80), (CLIENT, 40_000));
    let outward = Spec::udp((APP, 5000), (REMOTE, 53));
    let both = |host: &Host| {
        let out = host.by_veth(APP_VETH, &outward).0.reason.unwrap();
        assert_eq!(out, Reason::Forwarded, "what containers open is not asked");
        let back = host.by_veth(WEB_VETH, &answer).0.reason.unwrap();
        (host.by_uplink(&request).0.reason.unwrap(), back)
    };
    host.by_uplink(&request);
    assert_eq!(both(&host), (Reason::Forwarded, Reason::Forwarded));
    only(&mut host, 5, REMOTE);
    for published in host.published.values_mut() {
        published.policy = 5;
    }
    assert_eq!(both(&host), (Reason::Forwarded, Reason::Forwarded));
    host.settings.policy = 1;
    assert_eq!(both(&host), (Reason::Policy, Reason::Policy));
    // XDP leaves it to the hook behind.
    let arrival = Arrival {
        ifindex: UPLINK,
        ..Arrival::default()
    };
    let frame = request.clone().between(mac(UPLINK), far_mac(UPLINK));
    let uplink = host.run(Hook::Uplink, &mut frame.build(), arrival);
    assert_eq!(uplink.reason, None);
    // Let in again, it goes on as the flow that it was.
    host.ingress.insert((5, CLIENT, 32), ingress::ALLOW);
    host.settings.policy = 2;
    assert_eq!(both(&host), (Reason::Forwarded, Reason::Forwarded));
}

#[test]
fn link_opens_the_childs_port_to_the_parent() {
    let mut host = host(network::MASQUERADE | network::ICC_DISABLED);
    let (parent, child) = (APP, WEB);
    host.links.insert(LinkKey {
        parent,
        child,
        port: Be16::new(5432),
        proto: 6,
    });
    for (from, spec, reason) in [
        (
            APP_VETH,
            Spec::tcp((APP, 40_000), (WEB, 5432), SYN),
            Reason::Bridged,
        ),
        (
            WEB_VETH,
            Spec::tcp((WEB, 5432), (APP, 40_000), SYN | ACK),
            Reason::Bridged,
        ),
        (
            APP_VETH,
            Spec::tcp((APP, 40_000), (WEB, 5433), SYN),
            Reason::PeerBlocked,
        ),
        (
            WEB_VETH,
            Spec::tcp((WEB, 40_000), (APP, 5432), SYN),
            Reason::PeerBlocked,
        ),
        (
            APP_VETH,
            Spec::udp((APP, 40_000), (WEB, 5432)),
            Reason::PeerBlocked,
        ),
        (APP_VETH, Spec::ping(APP, WEB, 7), Reason::PeerBlocked),
    ] {
        let arrival = Arrival {
            ingress_ifindex: from,
            ..Arrival::default()
        };
        let outcome = host.run(Hook::ContainerOut, &mut spec.build(), arrival);
        assert_eq!(outcome.reason, Some(reason), "{:?}", spec.tuple);
    }
}
