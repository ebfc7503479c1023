// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lists of clients of ports that are published on IPv6 addresses of the host.
//!
//! docker-proxy serves such a port and connects to the container with an address of the host. The
//! client is therefore visible only before the host receives the packet. Each packet is checked,
//! not each flow, so a changed list takes effect at once.

use super::Host6;
use super::header::{header, upper};
use crate::abi::{IngressKey6, PortKey6, Published6, ingress};
use crate::family::{Be16, Be128};
use crate::meta::Meta;
use crate::reason::Reason;
use crate::wire::proto;

/// The verdict on a packet to the host if ports have lists of clients: [`Reason::ToHost`], unless a
/// list refuses its source or its destination port cannot be read.
#[inline(always)]
pub fn ask_lists<T: Host6>(host: &T, meta: &Meta) -> Reason {
    let Some(header) = header(host, meta) else {
        return Reason::Ipv6Header;
    };
    let Some(upper) = upper(host, meta, &header) else {
        return Reason::Ipv6Header;
    };
    // A later fragment is useless without the first one, which is checked.
    if upper.later || !has_ports(upper.proto) {
        return Reason::ToHost;
    }
    let Some(port) = upper.load::<Be16>(host, 2) else {
        return Reason::Ipv6Header;
    };
    if upper.detours {
        return Reason::Ipv6Header;
    }
    let key = |addr| PortKey6 {
        addr,
        port,
        proto: upper.proto as u16,
    };
    let at_address = host.published(&key(header.dst));
    match at_address.or_else(|| host.published(&key(Be128::ANY))) {
        Some(published) if !is_welcome(host, meta, &published, header.src) => Reason::Policy,
        _ => Reason::ToHost,
    }
}

#[inline(always)]
fn has_ports(number: u8) -> bool {
    matches!(number as u32, proto::TCP | proto::UDP | proto::SCTP)
}

/// Whether the list of the port and those of its container's networks allow a client. A network's
/// list is not checked for containers of the network itself.
#[inline(always)]
fn is_welcome<T: Host6>(host: &T, meta: &Meta, published: &Published6, client: Be128) -> bool {
    let from = host.device(meta.ifindex).map_or(0, |device| device.bridge);
    let mut welcome = is_listed(host, published.policy, client);
    for bridge in published.bridges {
        if bridge != from {
            welcome &= is_listed(host, host.network_policy(bridge), client);
        }
    }
    welcome
}

/// Whether a list allows a client; list 0 allows every client.
#[inline(always)]
fn is_listed<T: Host6>(host: &T, list: u32, client: Be128) -> bool {
    list == 0 || host.ingress(&IngressKey6 { list, client }) == ingress::ALLOW
}
