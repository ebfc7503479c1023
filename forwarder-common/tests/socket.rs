// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where a socket of the host's is pointed: what it asks for decides, and nothing else. Which packets
//! find a socket.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use forwarder_common::abi::{Peer, PortKey, PortKey6, PortRange, Published, Settings};
use forwarder_common::family::{Address as _, Be16, Be32, Be128, V4, Wide};
use forwarder_common::socket::{self, Bind, LOOPBACK6, Lookup};
use forwarder_common::wire::proto;
use proptest::prelude::*;

const OWN: Be32 = Be32::from_octets([198, 18, 1, 1]);
const CONTAINER: Be32 = Be32::from_octets([172, 17, 0, 2]);

type Ports = BTreeMap<PortKey<V4>, Published<V4>>;

/// One TCP port 8080 published at each of these addresses, to container ports 80, 81, …
fn ports(at: &[Be32]) -> Ports {
    let row = |(n, &addr): (usize, &Be32)| {
        let key = PortKey {
            addr,
            port: Be16::new(8080),
            proto: proto::TCP as u16,
        };
        let published = Published {
            addr: CONTAINER,
            port: Be16::new(80 + n as u16),
            ..Published::default()
        };
        (key, published)
    };
    at.iter().enumerate().map(row).collect()
}

fn peer(addr: Wide, port: u16) -> Peer {
    Peer {
        addr,
        port: Be16::new(port),
        proto: proto::TCP as u16,
    }
}

fn target(ports: &Ports, asked: &Peer) -> Option<Peer> {
    socket::target::<V4>(asked, |addr| addr == OWN, |key| ports.get(key).copied())
}

/// The container port that is reached, or 0.
fn reached(ports: &Ports, addr: Be32) -> u16 {
    target(ports, &peer(addr.widen(), 8080)).map_or(0, |peer| {
        assert_eq!(peer.addr, CONTAINER.widen());
        assert_eq!(peer.proto, proto::TCP as u16);
        peer.port.get()
    })
}

fn wide(text: &str) -> Wide {
    let octets = text.parse::<Ipv6Addr>().unwrap().octets();
    [0, 4, 8, 12].map(|at| Be32::from_octets([0, 1, 2, 3].map(|n| octets[at + n])))
}

#[test]
fn both_families_share_one_address_form() {
    assert_eq!(OWN.widen(), wide("::ffff:198.18.1.1"));
    assert_eq!(Be32::narrow(wide("::ffff:198.18.1.1")), Some(OWN));
    for other in ["::1", "::", "::198.18.1.1", "fe80::1", "64:ff9b::c612:101"] {
        assert_eq!(Be32::narrow(wide(other)), None, "{other}");
    }
    assert_eq!(LOOPBACK6, wide("::1"));
}

/// A port that is published at any address is at all of the host's own.
#[test]
fn port_at_any_address_is_at_all_host_addresses() {
    let ports = ports(&[Be32::ANY]);
    for own in [
        OWN,
        Be32::LOOPBACK,
        Be32::from_octets([127, 1, 2, 3]),
        Be32::ANY,
    ] {
        assert_eq!(reached(&ports, own), 80, "{own:?}");
    }
    for loopback in ["::1", "::"] {
        let target = target(&ports, &peer(wide(loopback), 8080));
        assert_eq!(target, Some(peer(CONTAINER.widen(), 80)), "{loopback}");
    }
}

#[test]
fn port_at_one_address_is_at_no_other() {
    let two = Be32::from_octets([127, 0, 0, 2]);
    let ports = ports(&[OWN, two]);
    assert_eq!([OWN, two].map(|addr| reached(&ports, addr)), [80, 81]);
    let others = [Be32::LOOPBACK, Be32::ANY, Be32::from_octets([127, 0, 0, 3])];
    assert_eq!(others.map(|addr| reached(&ports, addr)), [0; 3]);
    assert_eq!(target(&ports, &peer(LOOPBACK6, 8080)), None);
    // To connect to nowhere is to connect to 127.0.0.1.
    assert_eq!(reached(&self::ports(&[Be32::LOOPBACK]), Be32::ANY), 80);
}

#[test]
fn specific_address_precedes_any() {
    let ports = ports(&[Be32::ANY, OWN]);
    assert_eq!(reached(&ports, OWN), 81);
    assert_eq!(reached(&ports, Be32::LOOPBACK), 80);
}

#[test]
fn loopback_source_cannot_leave() {
    for stays in ["::1", "::ffff:127.0.0.1", "::ffff:127.9.9.9"] {
        assert!(!socket::may_leave(wide(stays)), "{stays}");
    }
    for goes in [
        "::",
        "::ffff:0.0.0.0",
        "::ffff:198.18.1.1",
        "fd00::1",
        "::7f00:1",
    ] {
        assert!(socket::may_leave(wide(goes)), "{goes}");
    }
}

/// What becomes of a user's request to bind, by default.
fn bind(addr: &str, port: u16, proto: u32, user: u32) -> Bind {
    let settings = Settings {
        reserved_ports: PortRange {
            first: 61_000,
            last: 65_095,
        },
        unprivileged_port_start: 1024,
        ..Settings::default()
    };
    let wanted = Peer {
        addr: wide(addr),
        port: Be16::new(port),
        proto: proto as u16,
    };
    socket::bind(&wanted, user, &settings)
}

#[test]
fn reserved_ports_are_for_root_only() {
    use Bind::{Announce, Proceed, Refuse};
    for (port, user) in [
        (60_999, Proceed),
        (61_000, Refuse),
        (65_095, Refuse),
        (65_096, Proceed),
    ] {
        for addr in ["::ffff:0.0.0.0", "::ffff:198.18.1.1", "::"] {
            for proto in [proto::TCP, proto::UDP] {
                assert_eq!(bind(addr, port, proto, 1000), user, "{addr}:{port}");
            }
            assert_eq!(bind(addr, port, proto::TCP, 0), Proceed);
            assert_eq!(bind(addr, port, proto::UDP, 0), Announce);
        }
        // Where no answer to a container comes.
        for addr in ["::ffff:127.0.0.1", "::ffff:127.9.9.9", "::1", "fe80::1"] {
            assert_eq!(bind(addr, port, proto::UDP, 1000), Proceed, "{addr}:{port}");
            assert_eq!(bind(addr, port, proto::UDP, 0), Proceed, "{addr}:{port}");
        }
    }
    // Port 0 is the kernel's to draw.
    assert_eq!(bind("::", 0, proto::UDP, 0), Proceed);
    assert_eq!(bind("::", 61_000, 132, 1000), Proceed);
}

#[test]
fn privileged_binds_are_announced() {
    assert_eq!(bind("::", 53, proto::UDP, 1000), Bind::Announce);
    assert_eq!(bind("::", 1024, proto::UDP, 1000), Bind::Proceed);
    assert_eq!(bind("::", 1024, proto::UDP, 0), Bind::Announce);
}

#[test]
fn reservation_can_be_off() {
    let wanted = peer(OWN.widen(), 61_000);
    for port in [0, 61_000] {
        let wanted = Peer {
            port: Be16::new(port),
            ..wanted
        };
        assert_eq!(
            socket::bind(&wanted, 1000, &Settings::default()),
            Bind::Proceed
        );
    }
}

proptest! {
    #[test]
    fn foreign_address_is_not_taken(words: [u32; 4], port: u16, mapped: bool) {
        let ports = ports(&[Be32::ANY]);
        let addr = Be32::new(words[3]);
        let addr = if mapped { addr.widen() } else { words.map(Be32::new) };
        prop_assume!(!socket::is_loopback6(addr));
        let own = Be32::narrow(addr).is_some_and(|v4| {
            v4 == OWN || v4 == Be32::ANY || v4.is_loopback()
        });
        let found = target(&ports, &peer(addr, port)).is_some();
        prop_assert_eq!(found, own && port == 8080);
    }

    /// A socket that is redirected to a container is not redirected again.
    #[test]
    fn redirected_socket_is_not_redirected_again(own: u32, container: u32, port: u16) {
        // A second instance of the programs on one call finds nothing left to do.
        let (own, container) = (Be32::new(own), Be32::new(container));
        prop_assume!(own != container && !container.is_loopback() && container != Be32::ANY);
        let ports: Ports = [(
            PortKey { addr: Be32::ANY, port: Be16::new(port), proto: 6 },
            Published { addr: container, port: Be16::new(port), ..Published::default() },
        )].into();
        let point = |asked: &Peer| {
            socket::target::<V4>(asked, |addr| addr == own, |key| ports.get(key).copied())
        };
        let once = point(&peer(own.widen(), port));
        prop_assert_eq!(once, Some(peer(container.widen(), port)));
        prop_assert_eq!(once.and_then(|peer| point(&peer)), None);
    }

    #[test]
    fn transports_are_distinguished(proto: u16) {
        let ports = ports(&[Be32::ANY]);
        let asked = Peer { proto, ..peer(OWN.widen(), 8080) };
        prop_assert_eq!(target(&ports, &asked).is_some(), proto == 6);
    }
}

/// Device 2 has an entry; 8080/tcp is published at the host's own address and at every IPv6 one,
/// 8081/tcp at every IPv4 one and at fd00::1.
fn is_served(ingress_ifindex: u32, remote: Wide, local: Wide, port: u16) -> bool {
    let v6 = |text| Be128::from_words(wide(text));
    let v4 = [(OWN, 8080), (Be32::ANY, 8081)];
    let v6 = [(Be128::ANY, 8080), (v6("fd00::1"), 8081)];
    socket::may_be_served(
        ingress_ifindex,
        || Lookup {
            remote,
            local: peer(local, port),
        },
        |ifindex| ifindex == 2,
        |key| {
            v4.iter().any(|&(addr, port)| {
                *key == PortKey {
                    addr,
                    port: Be16::new(port),
                    proto: 6,
                }
            })
        },
        |key| {
            v6.iter().any(|&(addr, port)| {
                *key == PortKey6 {
                    addr,
                    port: Be16::new(port),
                    proto: 6,
                }
            })
        },
    )
}

#[test]
fn unseen_device_finds_no_published_port() {
    let client = Be32::from_octets([198, 18, 9, 2]).widen();
    let other = Be32::from_octets([198, 18, 9, 1]).widen();
    let (client6, own6, other6) = (wide("fd00:9::2"), wide("fd00::1"), wide("fd00::2"));
    let closed = [
        (client, OWN.widen(), 8080),
        (client, OWN.widen(), 8081),
        (client, other, 8081),
        (client6, own6, 8080),
        (client6, other6, 8080),
        (client6, own6, 8081),
    ];
    let open = [
        (client, other, 8080),
        (client, OWN.widen(), 9000),
        (client6, other6, 8081),
        (client6, own6, 9000),
        // The host itself, by an address of such a device.
        (other, other, 8081),
        (own6, own6, 8080),
    ];
    for (remote, local, port) in closed {
        assert!(!is_served(3, remote, local, port), "{local:?} {port}");
    }
    for (remote, local, port) in open {
        assert!(is_served(3, remote, local, port), "{local:?} {port}");
    }
    for (remote, local, port) in closed.into_iter().chain(open) {
        for ifindex in [0, 1, 2] {
            assert!(is_served(ifindex, remote, local, port));
        }
    }
}
