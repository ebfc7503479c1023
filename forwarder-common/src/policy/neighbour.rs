// SPDX-License-Identifier: MIT OR Apache-2.0
//! ARP from a container (RFC 826): a container may ask and answer with its own addresses only.
//!
//! Otherwise a container could take its neighbours' or its gateway's packets by announcing their IP
//! addresses at its own MAC address. Stock Docker allows that.

use bytemuck::{Pod, Zeroable};

use crate::abi::network;
use crate::environment::{Configuration, SkbOutput};
use crate::family::{Be16, Be32, V4};
use crate::mark;
use crate::meta::{Meta, Side};
use crate::policy::classify::{SOURCE_MAC, disowns, is_station};
use crate::reason::Reason;
use crate::wire::frame::Frame;

/// An ARP message for Ethernet and IPv4.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arp {
    hardware: Be16,
    protocol: Be16,
    lengths: [u8; 2],
    operation: Be16,
    sender_mac: [u8; 6],
    sender: [u8; 4],
    target_mac: [u8; 6],
    target: [u8; 4],
}

const ETHERNET: u16 = 1;
const IPV4: u16 = 0x0800;
const LENGTHS: [u8; 2] = [6, 4];
const REQUEST: u16 = 1;
const REPLY: u16 = 2;

/// The verdict on an ARP frame from a container: it passes as [`Reason::NotIp`] if its source MAC
/// address and its sender address are the container's own. A probe (RFC 5227) has no sender
/// address; its target has to be the container's own.
#[inline(always)]
pub fn arp<T: Configuration<V4> + SkbOutput<V4>>(
    frame: Frame<'_>,
    meta: &Meta,
    tables: &T,
    side: Side,
) -> Reason {
    let Some(device) = tables.device(meta.ifindex) else {
        return Reason::NotOurs;
    };
    let Some(network) = tables.network(device.bridge) else {
        return Reason::NotOurs;
    };
    let isolated = network.flags & network::ISOLATED != 0;
    let at_bridge = side as u8 == Side::Bridge as u8;
    if isolated && at_bridge {
        return Reason::Internal;
    }
    if at_bridge && meta.mark == mark::HOST {
        tables.mark(0);
        return Reason::NotIp;
    }
    let (Some(source), Some(message)) = (
        frame.read::<[u8; 6]>(SOURCE_MAC),
        frame.read::<Arp>(meta.l3 as usize),
    ) else {
        return Reason::SpoofedNeighbour;
    };
    let operation = message.operation.get();
    if message.hardware.get() != ETHERNET
        || message.protocol.get() != IPV4
        || message.lengths != LENGTHS
        || operation != REQUEST && operation != REPLY
        || message.sender_mac != source
        || !at_bridge && !is_station(&device, source)
    {
        return Reason::SpoofedNeighbour;
    }
    let target = Be32::from_octets(message.target);
    let name = match message.sender {
        [0, 0, 0, 0] => target,
        sender => Be32::from_octets(sender),
    };
    if disowns(tables, side, meta.ifindex, &device, name).is_some() {
        return Reason::SpoofedNeighbour;
    }
    // In an isolated network a container must not resolve addresses of the host.
    if isolated && (tables.is_local(target) || tables.subnet(target) != Some(device.bridge)) {
        return Reason::Internal;
    }
    if !at_bridge {
        tables.mark(mark::HOST);
    }
    Reason::NotIp
}
