// SPDX-License-Identifier: MIT OR Apache-2.0
//! Any packets at any hooks of a small host, in any order: the tables stay whole, what is refused is
//! unchanged, and no container's source leaves untranslated.

use arbitrary::{Result, Unstructured};
use forwarder_common::abi::device;
use forwarder_common::family::{Be32, V4};
use forwarder_common::mark;
use forwarder_common::reason::Path;
use forwarder_common::wire::frame::Frame;
use forwarder_common::wire::header::Ip as _;
use forwarder_common::wire::proto;
use forwarder_testkit::model::frames::{Spec, UNREACHABLE};
use forwarder_testkit::model::host::{
    APP, APP_VETH, BARE, BRIDGE, CLIENT, FAR, FAR_VETH, GATEWAY, HOST, OTHER_BRIDGE, REMOTE,
    SECOND, UPLINK, VPN, WEB, WEB_VETH, mac,
};
use forwarder_testkit::model::{Arrival, Hook, Host, Outcome, Target};

/// Few enough that the ring, the sweep and exhaustion are met.
const FLOWS: u32 = 32;
const HOOKS: [Hook; 11] = [
    Hook::OutsideIn,
    Hook::OutsideInRaw,
    Hook::OutsideOut,
    Hook::OutsideOutRaw,
    Hook::ContainerIn,
    Hook::ContainerOut,
    Hook::FollowedIn,
    Hook::FollowedOut,
    Hook::BridgeIn,
    Hook::BridgeOut,
    Hook::Uplink,
];
const DEVICES: [u32; 9] = [
    UPLINK,
    SECOND,
    VPN,
    BRIDGE,
    OTHER_BRIDGE,
    WEB_VETH,
    APP_VETH,
    FAR_VETH,
    0,
];
const ADDRESSES: [Be32; 8] = [HOST, CLIENT, REMOTE, GATEWAY, WEB, APP, BARE, FAR];
const PORTS: [u16; 8] = [80, 8080, 8081, 1000, 300, 5000, 5001, 40_000];

/// Runs the target.
///
/// # Panics
/// When a promise does not hold.
pub fn run(bytes: &[u8]) {
    let mut host = Host::usual(FLOWS);
    let mut input = Unstructured::new(bytes);
    while !input.is_empty() && step(&mut host, &mut input).is_ok() {}
}

fn step(host: &mut Host, input: &mut Unstructured<'_>) -> Result<()> {
    host.wait(u32::from(input.arbitrary::<u8>()?).pow(2));
    let hook = *input.choose(&HOOKS)?;
    let arrival = Arrival {
        ifindex: *input.choose(&DEVICES)?,
        ingress_ifindex: *input.choose(&DEVICES)?,
        mark: any_mark(input)?,
        hash: mark::encode_hash(
            input.int_in_range(0..=FLOWS)?,
            input.arbitrary::<bool>()?.into(),
            false,
        ),
        segment: if input.ratio(1, 8)? { 1400 } else { 0 },
    };
    let raw = matches!(hook, Hook::OutsideInRaw | Hook::OutsideOutRaw);
    let packet = packet(input)?;
    let mut frame = packet;
    if !raw {
        let link = [&mac(arrival.ifindex)[..], &[2; 6], &[0x08, 0x00]].concat();
        frame.splice(..0, link);
    }
    let before = frame.clone();
    let outcome = host.run(hook, &mut frame, arrival);
    host.check();
    let answered = host.answer.take().is_some();
    if outcome
        .reason
        .is_some_and(|reason| reason.path() == Path::Drop)
        && !answered
    {
        assert_eq!(frame, before, "refused, but changed: {outcome:?}");
    }
    let leaves = matches!(hook, Hook::OutsideOut | Hook::OutsideOutRaw) && outcome.passes();
    if !answered && (leaves || matches!(outcome.target, Some(Target::Neighbour(..)))) {
        assert_translated(host, &frame[if raw { 0 } else { 14 }..], &outcome, arrival);
    }
    Ok(())
}

/// What is done already goes out as it is: the hook that did it has answered for it.
fn assert_translated(host: &Host, packet: &[u8], outcome: &Outcome, arrival: Arrival) {
    let mut packet = packet.to_vec();
    let Ok(header) = V4::header(&Frame::new(&mut packet), 0) else {
        return;
    };
    let is_leaving = outcome.target.is_none();
    let done = is_leaving
        && arrival.ingress_ifindex != 0
        && matches!(mark::kind(arrival.mark), mark::DONE | mark::LEAVES);
    // Whose it is, the device says by which it came; of the host's own packets, a container's name.
    let from = host.devices.get(&arrival.ingress_ifindex);
    let of_others =
        from.is_some_and(|device| matches!(device.kind, device::OUTSIDE | device::OTHER));
    let inside = if is_leaving && of_others {
        false
    } else if is_leaving && arrival.ingress_ifindex == 0 {
        host.endpoint_slots.contains_key(&header.src)
    } else {
        host.subnets
            .keys()
            .any(|&(base, len)| (base.get() ^ header.src.get()) >> (32 - u32::from(len)) == 0)
    };
    let own = host.locals.contains(&header.src);
    assert!(
        done || own || !inside,
        "leaves untranslated: {outcome:?} {:?}",
        header.src.octets()
    );
}

/// Marks: none mostly, else anything, which those that lead to flows are among.
fn any_mark(input: &mut Unstructured<'_>) -> Result<u32> {
    if input.ratio(3, 4)? {
        Ok(0)
    } else {
        input.arbitrary()
    }
}

/// A packet of the host's world, sometimes damaged; sometimes nothing but bytes.
fn packet(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    if input.ratio(1, 16)? {
        let len = input.int_in_range(0..=80)?;
        return Ok(input.bytes(len)?.to_vec());
    }
    let mut packet = spec(input)?.packet();
    // Without bytes left every chance comes true.
    while !input.is_empty() && input.ratio(1, 8)? {
        let at = input.choose_index(packet.len())?;
        packet[at] = input.arbitrary()?;
    }
    if input.ratio(1, 16)? {
        packet.truncate(input.choose_index(packet.len())?);
    }
    Ok(packet)
}

fn spec(input: &mut Unstructured<'_>) -> Result<Spec> {
    let end = |input: &mut Unstructured<'_>| -> Result<(Be32, u16)> {
        Ok((*input.choose(&ADDRESSES)?, *input.choose(&PORTS)?))
    };
    let (from, to) = (end(input)?, end(input)?);
    let mut spec = match input.int_in_range(0..=6)? {
        0 | 1 => Spec::udp(from, to),
        2 | 3 => Spec::tcp(from, to, input.arbitrary::<u8>()? & 0x17),
        4 => Spec::ping(from.0, to.0, from.1),
        5 => Spec::pong(from.0, to.0, to.1),
        _ => {
            let quoted = if input.arbitrary()? {
                Spec::udp(to, end(input)?)
            } else {
                Spec::tcp(to, end(input)?, 0x10)
            };
            let length = input.int_in_range(0..=60)?;
            Spec::error(UNREACHABLE, from.0, to.0, &quoted.packet(), length)
        }
    };
    if input.ratio(1, 8)? {
        spec = spec.fragment(input.arbitrary()?);
    }
    if input.ratio(1, 8)? {
        spec = spec.hops(input.int_in_range(0..=2)?);
    }
    if input.ratio(1, 8)? {
        spec = spec.options();
    }
    if spec.tuple.proto == proto::UDP && input.ratio(1, 4)? {
        spec.unsummed = true;
    }
    Ok(spec)
}
