// SPDX-License-Identifier: MIT OR Apache-2.0
//! The first invariant: whatever is sent in whatever order, no frame that leaves by an outside
//! device carries a container's source, outside or inside an ICMP error.

use forwarder_common::environment::{Configuration as _, Route};
use forwarder_common::family::Be32;
use forwarder_common::mark;
use forwarder_testkit::model::frames::{ACK, FIN, SYN, Spec, TIME_EXCEEDED, UNREACHABLE, ip};
use forwarder_testkit::model::host::{
    APP, APP_VETH, BARE, BRIDGE, CLIENT, FAR, FAR_VETH, HOST, OTHER_BRIDGE, REMOTE, WEB, WEB_VETH,
    mac,
};
use forwarder_testkit::model::{self, Arrival, Hook, Host, Outcome, Target};
use forwarder_testkit::rng::Rng;
use proptest::prelude::*;

/// What left by outside devices.
#[derive(Default)]
struct Wire(Vec<Vec<u8>>);

fn address(packet: &[u8], at: usize) -> Option<Be32> {
    let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
    Some(Be32::from_octets(bytes))
}

/// Where the transport header begins.
fn l4(packet: &[u8]) -> usize {
    usize::from(packet[0] & 15) * 4
}

fn is_error(packet: &[u8]) -> bool {
    packet[9] == 1 && matches!(packet.get(l4(packet)), Some(3 | 4 | 5 | 11 | 12))
}

/// Whether the kernel's IP layer would forward it.
fn is_sound(packet: &[u8]) -> bool {
    let ihl = usize::from(packet[0] & 15) * 4;
    let len = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    packet[0] >> 4 == 4 && ihl >= 20 && len >= ihl && len <= packet.len()
}

/// The kernel's way for a packet that a hook passed on: by the bridge, its routing, and out.
fn carry_on(host: &Host, outcome: &Outcome, packet: Vec<u8>, bridge: Option<u32>, wire: &mut Wire) {
    if let Some(Target::Neighbour(..)) = outcome.target {
        let (out, packet) = host.to_outside(APP_VETH, *outcome, &packet);
        if out.passes() {
            wire.0.push(packet);
        }
        return;
    }
    if !outcome.passes() || !is_sound(&packet) {
        return;
    }
    let (mut tag, mut packet) = (*outcome, packet);
    if let Some(bridge) = bridge {
        let arrival = Arrival {
            ifindex: bridge,
            mark: tag.mark,
            hash: tag.hash,
            ..Arrival::default()
        };
        let (seen, after) = host.raw(Hook::BridgeIn, &packet, arrival);
        if let Some(Target::Neighbour(..)) = seen.target {
            return carry_on(host, &seen, after, None, wire);
        }
        if !seen.passes() {
            return;
        }
        (tag, packet) = (seen, after);
    }
    let Some(dst) = address(&packet, 16) else {
        return;
    };
    if host.is_local(dst) || dst.octets()[0] >= 224 {
        return;
    }
    if packet[8] <= 1 && is_error(&packet) {
        // No error about an error (RFC 1122 section 3.2.2).
        return;
    }
    if packet[8] <= 1 {
        // The host's own answer. About a packet that was not translated, it tells nothing new.
        if let Some(src) = address(&packet, 12).filter(|&src| host.subnet(src).is_none()) {
            let error = Spec::error(TIME_EXCEEDED, HOST, src, &packet, 548).packet();
            let (out, error) = host.to_outside(0, 0, &error);
            if out.passes() && mark::kind(tag.mark) != mark::NONE {
                wire.0.push(error);
            }
        }
        return;
    }
    let ingress_ifindex = bridge.unwrap_or(model::host::UPLINK);
    let tuple = forwarder_common::abi::Tuple {
        dst,
        ..Default::default()
    };
    match forwarder_common::environment::Routes::route(host, ingress_ifindex, &tuple) {
        Route::Forward { ifindex, .. } if host.networks.contains_key(&ifindex) => {
            host.to_bridge(ifindex, ingress_ifindex, tag, &packet);
        }
        Route::Forward { .. } => {
            let (out, packet) = host.to_outside(ingress_ifindex, tag, &packet);
            if out.passes() {
                wire.0.push(packet);
            }
        }
        Route::Kernel => {}
    }
}

/// One of the packets that anybody might send, with anything wrong with it.
fn send(rng: &mut Rng, host: &Host, wire: &mut Wire) {
    let port = |rng: &mut Rng| rng.pick(&[80, 5000, 5001, 8080, 8081, 40_000]);
    let inside = rng.pick(&[(WEB_VETH, WEB), (APP_VETH, APP), (FAR_VETH, FAR), (0, BARE)]);
    let outward = !rng.once_in(3);
    let (src, dst) = if outward {
        let src = if rng.once_in(8) { WEB } else { inside.1 };
        (
            src,
            rng.pick(&[REMOTE, CLIENT, HOST, WEB, FAR, ip(198, 18, 2, 9)]),
        )
    } else {
        (
            rng.pick(&[REMOTE, CLIENT]),
            rng.pick(&[HOST, HOST, ip(198, 18, 2, 1), WEB]),
        )
    };
    let (from, to) = ((src, port(rng)), (dst, port(rng)));
    let mut spec = match rng.below(8) {
        0..3 => Spec::udp(from, to),
        3..6 => Spec::tcp(from, to, rng.pick(&[SYN, ACK, SYN | ACK, FIN | ACK])),
        6 => Spec::ping(src, dst, from.1),
        _ => {
            let inner = if outward {
                Spec::udp((dst, to.1), (src, from.1))
            } else {
                Spec::udp((HOST, to.1), (src, from.1))
            };
            Spec::error(
                UNREACHABLE,
                src,
                dst,
                &inner.packet(),
                rng.pick(&[20, 28, 36, 100]),
            )
        }
    };
    match rng.below(8) {
        0 => spec = spec.hops(1),
        1 => spec = spec.options(),
        2 => spec = spec.payload(1600),
        3 => spec = spec.fragment(rng.pick(&[0x2000, 0x2001, 0x0001])),
        _ => {}
    }
    let mut packet = spec.packet();
    match rng.below(8) {
        // Wrong or missing beyond the IP header, which the kernel's IP layer does not look at.
        0 => {
            let len = l4(&packet) + rng.below(packet.len() - l4(&packet) + 1);
            packet.truncate(len);
            packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        }
        1 if packet.len() > 33 => packet[32] = rng.wide() as u8,
        2 => packet[9] = rng.pick(&[1, 6, 17, 47, 132]),
        _ => {}
    }
    if !outward {
        let arrival = Arrival {
            ifindex: model::host::UPLINK,
            ..Arrival::default()
        };
        let (outcome, packet) = host.raw(Hook::OutsideIn, &packet, arrival);
        return carry_on(host, &outcome, packet, None, wire);
    }
    let bridge = if inside.1 == FAR {
        OTHER_BRIDGE
    } else {
        BRIDGE
    };
    if inside.0 == 0 {
        let untouched = Outcome {
            reason: None,
            mark: 0,
            hash: 0,
            target: None,
        };
        return carry_on(host, &untouched, packet, Some(bridge), wire);
    }
    let mut frame = [&mac(bridge)[..], &mac(inside.0), &[0x08, 0x00], &packet].concat();
    let arrival = Arrival {
        ifindex: inside.0,
        ..Arrival::default()
    };
    let outcome = host.run(Hook::ContainerIn, &mut frame, arrival);
    carry_on(host, &outcome, frame.split_off(14), Some(bridge), wire);
}

/// What happens beside packets.
fn disturb(rng: &mut Rng, host: &mut Host) {
    match rng.below(4) {
        0 => {
            let slot = host.endpoint_slots[&rng.pick(&[WEB, APP, FAR])];
            host.endpoints[slot as usize].generation += 1;
        }
        1 => host.mappings.values_mut().for_each(|it| *it += 1),
        2 => host.wait(rng.below(9_000) as u32),
        _ => host.settings.route_generation += 1,
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None, cases: 300, ..ProptestConfig::default()
    })]

    /// No packet of a container leaves untranslated.
    #[test]
    fn container_packets_never_leak(seed in any::<u64>()) {
        let mut rng = Rng::new(seed);
        let mut host = Host::usual(64);
        let mut wire = Wire::default();
        for _ in 0..200 {
            if rng.once_in(30) {
                disturb(&mut rng, &mut host);
            }
            send(&mut rng, &host, &mut wire);
        }
        for packet in wire.0 {
            let src = address(&packet, 12).unwrap();
            prop_assert!(host.subnet(src).is_none(), "left with {:?}: {:02x?}", src.octets(), packet);
            let quoted = address(&packet, l4(&packet) + 24).filter(|_| is_error(&packet));
            if let Some(quoted) = quoted {
                // It quotes what was sent to a container: to the host's address, as the sender knows.
                prop_assert!(host.subnet(quoted).is_none(), "inside an error: {:02x?}", packet);
            }
        }
    }
}
