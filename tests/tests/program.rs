// SPDX-License-Identifier: MIT OR Apache-2.0
//! The loaded programs, one packet at a time (`BPF_PROG_TEST_RUN`): what goes in, what comes out,
//! the verdict, the mark and the reason, written out by hand.

#[expect(
    dead_code,
    reason = "the table needs less of the fixtures than there is"
)]
mod fixtures;

use std::net::UdpSocket;

use anyhow::{Context as _, Result, ensure};
use forwarder::datapath::{View, now};
use forwarder_common::abi::REPLY;
use forwarder_common::family::Be32;
use forwarder_common::mark;
use forwarder_common::reason::Reason;
use forwarder_testkit::model::frames::{ACK, RST, SYN, Spec, TIME_EXCEEDED, ip};
use forwarder_testkit::model::host::{
    APP, APP_VETH, BARE, BRIDGE, CLIENT, FAR, GATEWAY, HOST, REMOTE, UPLINK, WEB, WEB_VETH,
    far_mac, mac,
};
use forwarder_testkit::model::{Arrival, Hook, Host};

use fixtures::{Fixtures, Loaded, routes};

const PASS: i32 = -1;
const DROP: i32 = 2;
const REDIRECT: i32 = 7;
const XDP_PASS: i32 = 2;
const XDP_REDIRECT: i32 = 4;

/// A packet's mark.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Mark {
    /// Exactly this one.
    Is(u32),
    /// The one that leads to the flow that was handed on last.
    Flow,
}
use Mark::{Flow, Is};

const NONE: Mark = Is(0);
const DONE: Mark = Is(mark::DONE);

/// A hook on a device; where it is an egress hook, the device that the packet came by.
type Place = (Hook, u32, u32);
const OUTSIDE: Place = (Hook::OutsideIn, UPLINK, 0);
const XDP: Place = (Hook::Uplink, UPLINK, 0);
const LEAVING: Place = (Hook::OutsideOut, UPLINK, BRIDGE);
const OWN: Place = (Hook::OutsideOut, UPLINK, 0);
const FROM_WEB: Place = (Hook::ContainerIn, WEB_VETH, 0);
const FROM_APP: Place = (Hook::ContainerIn, APP_VETH, 0);
const FROM_BARE: Place = (Hook::BridgeIn, BRIDGE, 0);
const TO_BRIDGE: Place = (Hook::BridgeOut, BRIDGE, UPLINK);
const HAIRPIN: Place = (Hook::BridgeOut, BRIDGE, BRIDGE);
const SWITCHED: Place = (Hook::ContainerOut, APP_VETH, WEB_VETH);

/// What is expected: verdict, reason (none where XDP leaves a packet alone), and mark.
type Expected = (i32, Option<Reason>, Mark);

/// What comes out.
enum Out {
    /// The same bytes.
    Same,
    /// This packet.
    Like(Spec),
    /// This packet, from the bridge to the container behind a veth.
    Into(u32, Spec),
}
use Out::{Into, Like, Same};

fn udp(src: (Be32, u16), dst: (Be32, u16)) -> Spec {
    Spec::udp(src, dst)
}

fn tcp(src: (Be32, u16), dst: (Be32, u16), flags: u8) -> Spec {
    Spec::tcp(src, dst, flags)
}

const fn forwarded(mark: Mark) -> Expected {
    (REDIRECT, Some(Reason::Forwarded), mark)
}

const fn passed(reason: Reason, mark: Mark) -> Expected {
    (PASS, Some(reason), mark)
}

const fn dropped(reason: Reason) -> Expected {
    (DROP, Some(reason), NONE)
}

/// The table: each row finds the flows that those above it made.
#[rustfmt::skip]
fn table() -> Vec<(&'static str, Place, Mark, Spec, Expected, Out)> {
    let c = (CLIENT, 40_000);
    let (host, web, app) = ((HOST, 8080), (WEB, 80), (APP, 5000));
    let (dns, own, gateway) = ((REMOTE, 53), (HOST, 5000), (GATEWAY, 5000));
    let unresolved = (ip(198, 19, 2, 2), 53);
    let router = ip(198, 19, 9, 9);
    let quote = |spec: Spec, length| Spec::error(TIME_EXCEEDED, router, HOST, &spec.packet(), length);
    vec![
        // UDP to a published port.
        ("a first packet to a published port, for XDP", XDP, NONE, udp(c, host), (XDP_PASS, None, NONE), Same),
        ("a first packet to a published port", OUTSIDE, NONE, udp(c, host), forwarded(NONE), Into(WEB_VETH, udp(c, web).hops(63))),
        ("the next one, for XDP", XDP, NONE, udp(c, host), (XDP_REDIRECT, Some(Reason::Forwarded), NONE), Into(WEB_VETH, udp(c, web).hops(63))),
        ("its reply", FROM_WEB, NONE, udp(web, c), forwarded(DONE), Like(udp(host, c).hops(63))),
        ("its reply, leaving", LEAVING, DONE, udp(host, c).hops(63), passed(Reason::Admitted, NONE), Same),
        ("at its last hop", OUTSIDE, NONE, udp(c, host).hops(1), passed(Reason::HopLimit, Flow), Like(udp(c, web).hops(1))),
        ("the same, towards the bridge", TO_BRIDGE, Flow, udp(c, web), passed(Reason::Admitted, NONE), Same),
        ("the host's word about it", OWN, NONE, Spec::error(TIME_EXCEEDED, HOST, CLIENT, &udp(c, web).packet(), 100), passed(Reason::HostError, NONE), Like(Spec::error(TIME_EXCEEDED, HOST, CLIENT, &udp(c, host).packet(), 100))),
        ("its reply with options", FROM_WEB, NONE, udp(web, c).options(), passed(Reason::Options, Flow), Same),
        ("the same, on the bridge", (Hook::BridgeIn, BRIDGE, 0), Flow, udp(web, c).options(), passed(Reason::Admitted, Flow), Same),
        ("the same, leaving", LEAVING, Flow, udp(web, c).options(), passed(Reason::Completed, NONE), Like(udp(host, c).options())),
        ("its reply from somebody else", FROM_APP, NONE, udp(web, c), dropped(Reason::SpoofedSource), Same),
        // A container to the outside, and back.
        ("a query", FROM_APP, NONE, udp(app, dns), forwarded(DONE), Like(udp(own, dns).hops(63))),
        ("its answer", OUTSIDE, NONE, udp(dns, own), forwarded(NONE), Into(APP_VETH, udp(dns, app).hops(63))),
        ("its answer, for XDP: the far end takes no frames", XDP, NONE, udp(dns, own), (XDP_PASS, None, NONE), Same),
        ("a query without checksum", FROM_APP, NONE, Spec { unsummed: true, ..udp(app, dns) }, forwarded(DONE), Like(Spec { unsummed: true, ..udp(own, dns).hops(63) })),
        ("a query that is too big", FROM_APP, NONE, udp(app, dns).payload(1600), passed(Reason::TooBig, Flow), Same),
        ("its head, leaving", LEAVING, Flow, udp(app, dns).payload(1400).fragment(0x2000), passed(Reason::Completed, NONE), Like(udp(own, dns).payload(1400).fragment(0x2000))),
        ("its tail, leaving", LEAVING, Flow, udp(app, dns).fragment(0x00b0), passed(Reason::Completed, NONE), Like(udp(own, dns).fragment(0x00b0))),
        ("an error about it", OUTSIDE, NONE, quote(udp(own, dns), 28), (REDIRECT, Some(Reason::IcmpError), NONE), Into(APP_VETH, Spec { hops: 63, ..Spec::error(TIME_EXCEEDED, router, APP, &udp(app, dns).packet(), 28) })),
        ("an error about nothing of ours", OUTSIDE, NONE, quote(udp((HOST, 9), dns), 28), passed(Reason::ToHost, NONE), Same),
        ("a next hop that nobody resolved yet", FROM_APP, NONE, udp(app, unresolved), forwarded(DONE), Like(udp((ip(198, 18, 2, 1), 5000), unresolved).hops(63))),
        ("again", FROM_APP, NONE, udp(app, unresolved), forwarded(DONE), Like(udp((ip(198, 18, 2, 1), 5000), unresolved).hops(63))),
        ("a ping", FROM_APP, NONE, Spec::ping(APP, REMOTE, 7), forwarded(DONE), Like(Spec::ping(HOST, REMOTE, 7).hops(63))),
        ("its answer", OUTSIDE, NONE, Spec::pong(REMOTE, HOST, 7), forwarded(NONE), Into(APP_VETH, Spec::pong(REMOTE, APP, 7).hops(63))),
        ("an answer to nobody", OUTSIDE, NONE, Spec::pong(REMOTE, HOST, 8), passed(Reason::ToHost, NONE), Same),
        // TCP.
        ("a SYN", OUTSIDE, NONE, tcp(c, host, SYN), forwarded(NONE), Into(WEB_VETH, tcp(c, web, SYN).hops(63))),
        ("a SYN-ACK", FROM_WEB, NONE, tcp(web, c, SYN | ACK), forwarded(DONE), Like(tcp(host, c, SYN | ACK).hops(63))),
        ("an ACK", OUTSIDE, NONE, tcp(c, host, ACK), forwarded(NONE), Into(WEB_VETH, tcp(c, web, ACK).hops(63))),
        ("an ACK, for XDP", XDP, NONE, tcp(c, host, ACK), (XDP_PASS, None, NONE), Same),
        ("a SYN-ACK the wrong way", OUTSIDE, NONE, tcp(c, host, SYN | ACK), dropped(Reason::TcpState), Same),
        ("a reset of nothing", OUTSIDE, NONE, tcp((CLIENT, 1), host, RST), dropped(Reason::NoFlow), Same),
        // Hairpins.
        ("a hairpin", FROM_APP, NONE, tcp(app, host, SYN), forwarded(NONE), Into(WEB_VETH, tcp(gateway, web, SYN).hops(63))),
        ("its answer", FROM_WEB, NONE, tcp(web, gateway, SYN | ACK), forwarded(NONE), Into(APP_VETH, tcp(host, app, SYN | ACK).hops(63))),
        ("a hairpin with options", FROM_APP, NONE, tcp(app, host, ACK).options(), passed(Reason::Options, Flow), Like(tcp(app, web, ACK).options())),
        ("the same, towards the bridge", HAIRPIN, Flow, tcp(app, web, ACK).options(), passed(Reason::Completed, NONE), Like(tcp(gateway, web, ACK).options())),
        // By the bridge.
        ("a container without a hook", FROM_BARE, NONE, udp((BARE, 9), dns), forwarded(DONE), Like(udp((HOST, 9), dns).hops(63))),
        ("its answer", OUTSIDE, NONE, udp(dns, (HOST, 9)), passed(Reason::NotHooked, Flow), Like(udp(dns, (BARE, 9)))),
        ("a container that nobody knows", FROM_BARE, NONE, udp((ip(172, 17, 0, 99), 10), dns), forwarded(DONE), Like(udp((HOST, 10), dns).hops(63))),
        ("to the host", FROM_APP, NONE, udp(app, (HOST, 22)), passed(Reason::ToHost, Is(mark::HOST)), Same),
        ("to a neighbour", FROM_APP, NONE, udp(app, web), passed(Reason::Routed, Is(mark::ROUTED)), Same),
        ("the same, switched", SWITCHED, NONE, udp(web, app), passed(Reason::Bridged, NONE), Same),
        // Refused.
        ("a spoofed source", FROM_APP, NONE, udp((WEB, 1), dns), dropped(Reason::SpoofedSource), Same),
        ("a foreign source", FROM_APP, NONE, udp((ip(10, 0, 0, 1), 1), dns), dropped(Reason::ForeignSource), Same),
        ("loopback", FROM_APP, NONE, udp((ip(127, 0, 0, 1), 1), dns), dropped(Reason::Loopback), Same),
        ("another network", FROM_APP, NONE, udp(app, (FAR, 1)), dropped(Reason::Isolated), Same),
        ("a fragment", FROM_APP, NONE, udp(app, dns).fragment(0x2000), dropped(Reason::Fragment), Same),
        ("a fragment for a published port", OUTSIDE, NONE, udp(c, host).fragment(0x2000), dropped(Reason::Fragment), Same),
        ("straight to a container", OUTSIDE, NONE, udp(c, web), dropped(Reason::DirectRouting), Same),
        ("the same, towards the bridge", TO_BRIDGE, NONE, udp(c, web), dropped(Reason::DirectRouting), Same),
        ("a container's source, leaving", LEAVING, NONE, udp((APP, 1), dns), dropped(Reason::Untranslated), Same),
        ("the same without all of its header", LEAVING, NONE, stump(APP), dropped(Reason::Untranslated), Same),
        ("from a network that nobody knows", (Hook::OutsideOut, UPLINK, 99), NONE, udp((ip(172, 20, 0, 2), 1), dns), dropped(Reason::UnknownNetwork), Same),
        ("out by no route", FROM_APP, NONE, udp(app, (ip(198, 19, 5, 1), 1)), passed(Reason::NoRoute, NONE), Same),
        ("out by a device that nobody knows", FROM_APP, NONE, udp(app, (ip(198, 19, 6, 1), 1)), dropped(Reason::DeviceUnknown), Same),
    ]
}

/// A UDP packet that ends within its header.
fn stump(src: Be32) -> Spec {
    let whole = udp((src, 1), (REMOTE, 53));
    let tuple = forwarder_common::abi::Tuple {
        proto: 253,
        ..whole.tuple
    };
    Spec {
        tuple,
        ..whole.payload(4)
    }
}

/// The frame of a packet at a place.
fn frame(spec: &Spec, (hook, ifindex, _): Place) -> Vec<u8> {
    let to = if hook == Hook::ContainerIn {
        mac(BRIDGE)
    } else {
        mac(ifindex)
    };
    let mut frame = spec.clone().between(to, far_mac(ifindex)).build();
    if spec.tuple.proto == 253 {
        frame[14 + 9] = 17;
        // The header's checksum covers the protocol.
        let sum = u16::from_be_bytes([frame[24], frame[25]]).wrapping_add(253 - 17);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    frame
}

/// Runs a test in the fixtures' namespace, over the usual world.
fn on_fixtures(
    label: &str,
    flows: u32,
    test: impl FnOnce(&mut Loaded, &mut Host, &View) -> Result<()> + Send,
) -> Result<()> {
    let fixtures = Fixtures::new(label)?;
    let (bpffs, netns) = (fixtures.bpffs(), fixtures.space().path().to_owned());
    fixtures.space().enter(|| {
        let mut kernel = Loaded::open(&bpffs, &netns, flows)?;
        let mut host = Host::usual(flows);
        routes(&mut host);
        host.settings.heartbeat = now();
        kernel.mirror(&host)?;
        test(&mut kernel, &mut host, &View::open(&bpffs)?)
    })?
}

#[test]
fn packets_are_forwarded_as_in_the_table() -> Result<()> {
    on_fixtures("program", 256, |kernel, _, view| {
        let mut flow = 0;
        for (name, place, mark, spec, (code, reason, marked), out) in table() {
            let before = view.reasons()?;
            let input = frame(&spec, place);
            let (mark, hash) = match mark {
                Is(mark) => (mark, 0),
                Flow => (mark::FLOW, flow),
            };
            let (hook, ifindex, ingress_ifindex) = place;
            let arrival = Arrival {
                ifindex,
                ingress_ifindex,
                mark,
                hash,
                segment: 0,
            };
            let simulated = kernel.run(hook, &input, arrival).context(name)?;
            let after = view.reasons()?;
            let counted: Vec<_> = after
                .iter()
                .zip(&before)
                .filter(|(now, then)| now.1 > then.1)
                .map(|(&(reason, _), _)| reason)
                .collect();
            assert_eq!(counted, Vec::from_iter(reason), "{name}: reason");
            assert_eq!(simulated.code, code, "{name}: verdict");
            let expected = match out {
                Same => input,
                Like(spec) => frame(&spec, place),
                Into(veth, spec) => {
                    let mut bytes = frame(&spec, place);
                    bytes[..12].copy_from_slice(&[far_mac(veth), mac(BRIDGE)].concat());
                    bytes
                }
            };
            assert_eq!(simulated.frame, expected, "{name}: frame");
            match marked {
                Is(mark) => assert_eq!(simulated.mark, mark, "{name}: mark"),
                Flow => {
                    ensure!(
                        simulated.mark == mark::FLOW,
                        "{name}: mark {:#x}",
                        simulated.mark
                    );
                    flow = if hash == 0 {
                        let led = kernel.raw.encode_hash(&spec.tuple);
                        led.with_context(|| format!("{name}: no flow"))?
                    } else {
                        hash
                    };
                }
            }
        }
        Ok(())
    })
}

#[test]
fn malformed_frames_pass_unchanged() -> Result<()> {
    on_fixtures("malformed", 64, |kernel, _, view| {
        let whole = udp((CLIENT, 40_000), (HOST, 8080));
        let mut frames: Vec<_> = (34..42)
            .map(|len| frame(&whole, OUTSIDE)[..len].to_vec())
            .collect();
        for (at, byte) in [(14, 0x65), (14, 0x44), (14, 0x4f), (17, 19), (17, 27)] {
            let mut frame = frame(&whole, OUTSIDE);
            frame[at] = byte;
            frames.push(frame);
        }
        let count = |view: &View| -> Result<u64> {
            let unread = [Reason::Malformed, Reason::Truncated];
            let reasons = view.reasons()?;
            Ok(reasons
                .iter()
                .filter(|(reason, _)| unread.contains(reason))
                .map(|it| it.1)
                .sum())
        };
        let before = count(view)?;
        for input in &frames {
            let arrival = Arrival {
                ifindex: UPLINK,
                ..Arrival::default()
            };
            let simulated = kernel.run(Hook::OutsideIn, input, arrival)?;
            assert_eq!((simulated.code, &simulated.frame), (PASS, input));
        }
        assert_eq!(count(view)? - before, frames.len() as u64);
        Ok(())
    })
}

#[test]
fn port_of_a_socket_is_not_taken() -> Result<()> {
    on_fixtures("socket", 64, |kernel, host, _| {
        let socket = UdpSocket::bind("198.18.1.1:5000")?;
        let query = udp((APP, 5000), (REMOTE, 53));
        let arrival = Arrival {
            ifindex: APP_VETH,
            ..Arrival::default()
        };
        kernel.run(Hook::ContainerIn, &frame(&query, FROM_APP), arrival)?;
        let port = kernel
            .raw
            .port_of(&query.tuple)
            .context("no flow was made")?;
        assert!(port != 5000 && port >= 1024, "{port}");
        drop(socket);
        // On the host, the model draws a port by the same rules.
        host.socket(HOST, 5000, 17);
        host.by_veth(APP_VETH, &query);
        let drawn = host.flow_of(&query.tuple).context("no flow")?.0.tuples[REPLY].get();
        assert_ne!(drawn.dport.get(), 5000);
        Ok(())
    })
}

#[test]
fn first_flow_survives_the_second() -> Result<()> {
    on_fixtures("first", 64, |kernel, _, view| {
        let arrival = Arrival {
            ifindex: APP_VETH,
            ..Arrival::default()
        };
        for port in 1..=16 {
            let query = udp((APP, 5000 + port), (REMOTE, 53));
            kernel.run(Hook::ContainerIn, &frame(&query, FROM_APP), arrival)?;
            assert_eq!(view.flows(now()).len(), usize::from(port));
        }
        Ok(())
    })
}
