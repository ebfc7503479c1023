// SPDX-License-Identifier: MIT OR Apache-2.0
//! Devices, addresses and routes of our network namespace, from the kernel's netlink notifications.
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use forwarder_state::host_state::{Address, Link, LinkLayer, Mac, Peer, Update};
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use rtnetlink::packet_core::{NLM_F_REPLACE, NetlinkPayload};
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::nsid::NsidAttribute;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{MulticastGroup, RouteMessageBuilder};
use tokio::sync::Notify;
use tokio::sync::mpsc::Sender;

use super::routes::Routes;
use crate::sys::netlink::Notices;
use crate::sys::netns::Namespaces;

const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Nsid,
];

/// Follows the kernel until `updates` is closed. An error means that netlink itself is unusable.
///
/// If the kernel drops notifications because the reader was too slow, everything starts again on a
/// new socket: the notifications in the old one are older than the lost ones and must not be
/// applied after a dump.
///
/// `subscribed` is notified each time: namespace numbers that others read before may have become
/// invalid without a notification.
pub async fn watch(subscribed: &Notify, updates: &Sender<Update>) -> Result<()> {
    let namespaces = Namespaces::open()?;
    loop {
        follow(&namespaces, subscribed, updates).await?;
        if updates.is_closed() {
            return Ok(());
        }
        tracing::warn!(
            "netlink: the kernel dropped notifications, reading all devices and addresses again"
        );
        if updates.send(Update::Overrun).await.is_err() {
            return Ok(());
        }
    }
}

/// Further reads that notifications require; done once no further notification waits.
#[derive(Default)]
struct Due {
    addresses: bool,
    /// All routes must be read again, after a change that the kernel does not report route by
    /// route.
    reread: bool,
    /// A route has changed.
    routes: bool,
}

/// Subscribes, reads everything, then follows. Returns when notifications were lost or the receiver
/// is closed.
async fn follow(
    namespaces: &Namespaces,
    subscribed: &Notify,
    updates: &Sender<Update>,
) -> Result<()> {
    let mut notices = Notices::of(&GROUPS)?;
    let mut links = Vec::new();
    let mut dump = Box::pin(namespaces.route().link().get().execute());
    while let Some(message) = dump
        .try_next()
        .await
        .context("cannot list the network devices")?
    {
        links.push(complete(namespaces, link(&message)).await);
    }
    let mut due = Due {
        addresses: true,
        reread: true,
        routes: true,
    };
    let mut routes = Routes::default();
    let mut closed = updates.send(Update::Links(links)).await.is_err();
    subscribed.notify_one();
    while !closed && !updates.is_closed() {
        // Takes the next notification, or does the pending reads as soon as none waits.
        let next = match notices.stream.next().now_or_never() {
            Some(next) => next,
            None => {
                let due = std::mem::take(&mut due);
                closed = settle(namespaces, updates, due, &mut routes).await?;
                tokio::select! {
                    next = notices.stream.next() => next,
                    () = updates.closed() => return Ok(()),
                }
            }
        };
        let Some((message, _)) = next else {
            return Ok(());
        };
        let update = match message.payload {
            NetlinkPayload::Overrun(_) => return Ok(()),
            NetlinkPayload::InnerMessage(notice) => {
                follow_routes(&mut routes, &notice, message.header.flags, &mut due);
                read(namespaces, notice, &mut due).await
            }
            _ => None,
        };
        if let Some(update) = update {
            closed |= updates.send(update).await.is_err();
        }
    }
    Ok(())
}

/// Sends the pending updates. Returns whether the receiver is closed.
async fn settle(
    namespaces: &Namespaces,
    updates: &Sender<Update>,
    due: Due,
    routes: &mut Routes,
) -> Result<bool> {
    let mut closed = false;
    if due.addresses {
        let dump = namespaces.route().address().get().execute();
        let messages: Vec<_> = dump
            .try_collect()
            .await
            .context("cannot list the addresses")?;
        let list = messages.iter().filter_map(address).collect();
        closed |= updates.send(Update::Addresses(list)).await.is_err();
    }
    if due.reread {
        *routes = read_routes(namespaces).await?;
    }
    if due.routes {
        let update = Update::RouteChanged(Box::new(routes.summary()));
        closed |= updates.send(update).await.is_err();
    }
    Ok(closed)
}

/// Reads all IPv4 routes; keeps the relevant ones.
async fn read_routes(namespaces: &Namespaces) -> Result<Routes> {
    let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let mut dump = namespaces.route().route().get(all).execute();
    let mut routes = Routes::default();
    while let Some(route) = dump.try_next().await.context("cannot list the routes")? {
        routes.add(&route, false);
    }
    Ok(routes)
}

/// Applies a notification about routes.
fn follow_routes(routes: &mut Routes, notice: &RouteNetlinkMessage, flags: u16, due: &mut Due) {
    match notice {
        RouteNetlinkMessage::NewRoute(message) => {
            routes.add(message, flags & NLM_F_REPLACE != 0);
            due.routes |= leads_away(message);
        }
        RouteNetlinkMessage::DelRoute(message) => {
            routes.remove(message);
            due.routes |= leads_away(message);
        }
        RouteNetlinkMessage::NewLink(message)
            if !message.header.flags.contains(LinkFlags::Up)
                && message.header.interface_family == AddressFamily::Unspec =>
        {
            due.routes |= routes.lose(message.header.index, false);
        }
        RouteNetlinkMessage::DelLink(message)
            if message.header.interface_family == AddressFamily::Unspec =>
        {
            due.routes |= routes.lose(message.header.index, true);
        }
        // The kernel removes routes that have the address as their source without a notification.
        RouteNetlinkMessage::DelAddress(message)
            if message.header.family == AddressFamily::Inet =>
        {
            (due.reread, due.routes) = (true, true);
        }
        _ => {}
    }
}

async fn read(
    namespaces: &Namespaces,
    notice: RouteNetlinkMessage,
    due: &mut Due,
) -> Option<Update> {
    match notice {
        // Notifications of other families come from the bridge about its ports: there, "deleted"
        // means unplugged.
        RouteNetlinkMessage::NewLink(message)
            if message.header.interface_family == AddressFamily::Unspec =>
        {
            Some(Update::Link(complete(namespaces, link(&message)).await))
        }
        RouteNetlinkMessage::DelLink(message)
            if message.header.interface_family == AddressFamily::Unspec =>
        {
            Some(Update::LinkGone(message.header.index))
        }
        RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => {
            due.addresses = true;
            None
        }
        RouteNetlinkMessage::DelNsId(message) => {
            message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    NsidAttribute::Id(id) if *id >= 0 => Some(Update::NetnsGone(*id)),
                    _ => None,
                })
        }
        _ => None,
    }
}

/// Whether a route can carry forwarded packets. Routes to IPv6 link-local and multicast addresses
/// cannot; they come and go with every device.
fn leads_away(message: &RouteMessage) -> bool {
    !message.attributes.iter().any(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet6(to)) => {
            to.is_unicast_link_local() || to.is_multicast()
        }
        _ => false,
    })
}

/// Adds what only the peer of a veth can tell.
async fn complete(namespaces: &Namespaces, mut link: Link) -> Link {
    if let Some(Peer {
        index,
        netns: Some(netns),
        ..
    }) = link.peer
        && let Some(far) = namespaces.link(netns, index).await
    {
        // The number may have become another namespace's. A device counts only if it says that it
        // is our peer.
        let far = self::link(&far);
        if far.peer.is_some_and(|back| back.index == link.index) {
            link.peer = Some(Peer {
                index,
                netns: Some(netns),
                name: Some(far.name),
                mac: far.mac,
            });
        }
    }
    link
}

fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        layer: layer(message.header.link_layer_type),
        ..Link::default()
    };
    let (mut far, mut netns) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(master) => link.master = Some(*master).filter(|&m| m != 0),
            LinkAttribute::Address(bytes) => link.mac = Mac::try_from(bytes.as_slice()).ok(),
            LinkAttribute::Link(index) => far = Some(*index).filter(|&i| i != 0),
            LinkAttribute::LinkNetNsId(id) => netns = Some(*id).filter(|&id| id >= 0),
            LinkAttribute::LinkInfo(infos) => {
                let kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
                link.kind = kind.unwrap_or_default();
            }
            _ => {}
        }
    }
    if link.kind == "veth" {
        link.peer = far.map(|index| Peer {
            index,
            netns,
            ..Peer::default()
        });
    }
    link
}

/// Returns the link layer, as the kernel's `dev_is_mac_header_xmit` decides it for a redirect.
fn layer(kind: LinkLayerType) -> LinkLayer {
    match kind {
        LinkLayerType::Ether => LinkLayer::Ethernet,
        LinkLayerType::Loopback => LinkLayer::Loopback,
        LinkLayerType::None
        | LinkLayerType::Void
        | LinkLayerType::Rawip
        | LinkLayerType::Ppp
        | LinkLayerType::Tunnel
        | LinkLayerType::Tunnel6
        | LinkLayerType::Sit
        | LinkLayerType::Ipgre
        | LinkLayerType::Ip6gre => LinkLayer::Raw,
        other => LinkLayer::Other(other.into()),
    }
}

fn address(message: &AddressMessage) -> Option<Address> {
    let find = |local: bool| {
        message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Local(address) if local => Some(*address),
                AddressAttribute::Address(address) if !local => Some(*address),
                _ => None,
            })
    };
    let local: Option<IpAddr> = find(true);
    let named = find(false);
    let address = local.or(named)?;
    Some(Address {
        link: message.header.index,
        address,
        peer: named.filter(|&named| named != address),
        prefix_len: message.header.prefix_len,
        scope: message.header.scope.into(),
        secondary: message.header.flags.contains(AddressHeaderFlags::Secondary),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_route::address::AddressScope;
    use rtnetlink::packet_route::link::InfoKind;

    fn link_message(layer: LinkLayerType, attributes: &[LinkAttribute]) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = 6;
        message.header.link_layer_type = layer;
        message.header.flags = LinkFlags::Up | LinkFlags::Running;
        message.attributes = attributes.to_vec();
        message
    }

    #[test]
    fn host_end_of_a_veth_is_read() {
        let message = link_message(
            LinkLayerType::Ether,
            &[
                LinkAttribute::IfName("veth376f2ed".to_owned()),
                LinkAttribute::Mtu(1500),
                LinkAttribute::Address(vec![2, 0x42, 0, 0, 0, 1]),
                LinkAttribute::Link(5),
                LinkAttribute::LinkNetNsId(0),
                LinkAttribute::Controller(3),
                LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]),
            ],
        );
        let expected = Link {
            index: 6,
            name: "veth376f2ed".to_owned(),
            kind: "veth".to_owned(),
            master: Some(3),
            up: true,
            mtu: 1500,
            mac: Some([2, 0x42, 0, 0, 0, 1]),
            layer: LinkLayer::Ethernet,
            peer: Some(Peer {
                index: 5,
                netns: Some(0),
                name: None,
                mac: None,
            }),
        };
        assert_eq!(link(&message), expected);
    }

    #[test]
    fn only_a_veth_has_a_peer() {
        let kind = |kind| LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]);
        let vlan = link_message(
            LinkLayerType::Ether,
            &[LinkAttribute::Link(2), kind(InfoKind::Vlan)],
        );
        assert_eq!(link(&vlan).peer, None, "IFLA_LINK is the device below");
        let loose = link_message(
            LinkLayerType::Ether,
            &[LinkAttribute::Link(0), kind(InfoKind::Veth)],
        );
        assert_eq!(link(&loose).peer, None);
    }

    #[test]
    fn messages_are_framed() {
        for (kind, expected) in [
            (LinkLayerType::Ether, LinkLayer::Ethernet),
            (LinkLayerType::Loopback, LinkLayer::Loopback),
            (LinkLayerType::None, LinkLayer::Raw),
            (LinkLayerType::Tunnel, LinkLayer::Raw),
            (LinkLayerType::Infiniband, LinkLayer::Other(32)),
        ] {
            assert_eq!(link(&link_message(kind, &[])).layer, expected);
        }
    }

    /// The local address of a point-to-point link is the host's.
    #[test]
    fn point_to_point_local_address_is_ours() {
        let (ours, theirs) = (IpAddr::from([198, 18, 0, 1]), IpAddr::from([198, 18, 0, 2]));
        let mut message = AddressMessage::default();
        message.header.index = 9;
        message.header.prefix_len = 32;
        message.header.scope = AddressScope::Link;
        message.header.flags = AddressHeaderFlags::Secondary;
        message.attributes = vec![
            AddressAttribute::Address(theirs),
            AddressAttribute::Local(ours),
        ];
        let expected = Address {
            link: 9,
            address: ours,
            peer: Some(theirs),
            prefix_len: 32,
            scope: 253,
            secondary: true,
        };
        assert_eq!(address(&message), Some(expected));
        message.attributes.pop();
        assert_eq!(
            address(&message).map(|a| (a.address, a.peer)),
            Some((theirs, None)),
            "IPv6 names only the address"
        );
    }

    /// Routes that come with every device are ignored.
    #[test]
    fn automatic_routes_are_ignored() {
        let to = |to: &str| {
            let mut message = RouteMessage::default();
            message.attributes.push(RouteAttribute::Destination(
                to.parse::<IpAddr>().unwrap().into(),
            ));
            message
        };
        assert!(
            leads_away(&to("198.18.0.0"))
                && leads_away(&to("2001:db8::"))
                && leads_away(&RouteMessage::default())
        );
        assert!(!leads_away(&to("fe80::")) && !leads_away(&to("ff00::")));
    }
}
