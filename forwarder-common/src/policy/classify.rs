// SPDX-License-Identifier: MIT OR Apache-2.0
//! Classifies a container's packet: what a container may send, checked before anything else. The
//! network header decides, because the kernel forwards by it; what follows it need not be valid.

use crate::abi::{AllowedKey, Device, Network, allowed, device, network};
use crate::conntrack::flow;
use crate::context::PacketContext;
use crate::environment::{Configuration, ReversePath, Route, Routes, SkbOutput};
use crate::family::{Address, Family, V4};
use crate::mark;
use crate::meta::Side;
use crate::nat;
use crate::policy::{access, ipv6, owner, sender};
use crate::reason::Reason;
use crate::subprograms::Tracking;
use crate::wire::frame::Frame;
use crate::wire::proto;

/// Offset of the source address in an Ethernet header.
pub(crate) const SOURCE_MAC: usize = 6;
/// The first five bytes of a virtual router's MAC address (RFC 9568 section 7.3).
const VIRTUAL_ROUTER: [u8; 5] = [0, 0, 0x5e, 0, 1];
/// The ports of DHCP servers and clients (RFC 2131).
const DHCP: [u16; 2] = [67, 68];

/// Whether a frame from a container's veth may have this source MAC address. While the container is
/// not known, any address but its gateway's is allowed.
#[inline(always)]
pub(crate) fn is_station(device: &Device, mac: [u8; 6]) -> bool {
    if device.station == [0; 6] {
        return mac != device.mac;
    }
    let [a, b, c, d, e, _] = mac;
    mac == device.station
        || device.flags & device::flag::VIRTUAL_ROUTER != 0 && [a, b, c, d, e] == VIRTUAL_ROUTER
}

/// Whether the sender behind a device may use a source besides its own address.
#[inline(always)]
pub(crate) fn is_allowed<F: Family, T: Configuration<F>>(
    tables: &T,
    side: Side,
    ifindex: u32,
    bridge: u32,
    source: F::Addr,
) -> bool {
    let word = |device| tables.allowed(AllowedKey { device, source });
    let of_network = word(bridge);
    match side {
        Side::Defragmented => of_network != 0,
        Side::Veth => of_network == allowed::EACH || of_network != 0 && word(ifindex) != 0,
        _ => of_network == allowed::EACH,
    }
}

/// Whether an endpoint is behind the device that a hook is attached to.
#[inline(always)]
pub(crate) fn is_behind<F: Family, T: Configuration<F>>(
    tables: &T,
    side: Side,
    ifindex: u32,
    endpoint: &crate::abi::Endpoint<F>,
) -> bool {
    if side as u8 == Side::Defragmented as u8 {
        return endpoint.bridge == ifindex;
    }
    if endpoint.ifindex != 0 {
        return side as u8 == Side::Veth as u8 && endpoint.ifindex == ifindex;
    }
    match side {
        Side::Bridge => endpoint.bridge == ifindex,
        // Who is known does not pass for one whose veth is yet to be found.
        _ => tables.device(ifindex).is_some_and(|device| {
            device.bridge == endpoint.bridge
                && (device.kind != device::NAMED_VETH || endpoint.addr == F::Addr::ANY)
        }),
    }
}

/// Why the sender behind a device may not use an address. `None` if the address is its endpoint's
/// own, or one that it is allowed to use, or, while the device's endpoint is not known, a free one
/// of the network.
#[inline(always)]
pub(crate) fn disowns<F: Family, T: Configuration<F>>(
    tables: &T,
    side: Side,
    ifindex: u32,
    device: &Device,
    addr: F::Addr,
) -> Option<Reason> {
    let foreign = match tables.endpoint_slot(addr) {
        Some(slot) => match tables.endpoint(slot) {
            Some(endpoint) if is_behind(tables, side, ifindex, endpoint) => return None,
            Some(_) => Reason::SpoofedSource,
            None => return Some(Reason::NoEndpoint),
        },
        // The bridge's own address, and other addresses of the host.
        None if tables.is_local(addr) => return Some(Reason::SpoofedSource),
        // A port that leads to no container may have any host behind it.
        None if device.kind == device::PORT => return None,
        None if tables.subnet(addr) != Some(device.bridge) => Reason::ForeignSource,
        // The default endpoint is for containers that are not known yet, not for known ones that
        // take a free address.
        None if device.kind == device::NAMED_VETH => Reason::SpoofedSource,
        None => return None,
    };
    if is_allowed(tables, side, ifindex, device.bridge, addr) {
        None
    } else {
        Some(foreign)
    }
}

/// Whether host and containers of a network may not reach each other.
#[inline(always)]
pub fn is_isolated<F: Family, T: Configuration<F>>(tables: &T, bridge: u32) -> bool {
    tables
        .network(bridge)
        .is_some_and(|network| network.flags & network::ISOLATED != 0)
}

/// The verdict on a container's frame that is neither IP nor ARP: VLAN-tagged, of an unknown
/// EtherType, or to a bridge's group address.
#[inline(always)]
pub fn other_frame<F: Family, T: Configuration<F>>(tables: &T, ifindex: u32) -> Reason {
    let Some(device) = tables.device(ifindex) else {
        return Reason::NotIp;
    };
    match tables.network(device.bridge) {
        Some(network) if !may_send_others(&device, &network) => Reason::OtherFrame,
        _ => Reason::NotIp,
    }
}

/// The verdict on a container's frame to a bridge's group address. The kernel hands such a frame to
/// the host by the veth, past the bridge's hook, so no IP packet may be in it: no station sends one.
#[inline(always)]
pub fn group_frame<F: Family, T: Configuration<F>>(
    tables: &T,
    ifindex: u32,
    ethertype: u16,
) -> Reason {
    match other_frame(tables, ifindex) {
        Reason::NotIp
            if matches!(ethertype, V4::ETHERTYPE | ipv6::ETHERTYPE)
                && tables.device(ifindex).is_some() =>
        {
            Reason::OtherFrame
        }
        reason => reason,
    }
}

/// Whether a device may send such frames: if its network allows them, or if the device leads to a
/// LAN.
#[inline(always)]
fn may_send_others<F: Family>(device: &Device, network: &Network<F>) -> bool {
    network.flags & network::OTHER_FRAMES != 0 || device.kind == device::PORT
}

impl<F: Family, T: Tracking<F> + Routes<F> + SkbOutput<F>> PacketContext<'_, F, T> {
    /// Checks a container's packet by its frame and its network header: the verdict, or `None` if
    /// the packet is to leave its network.
    #[inline(always)]
    pub fn classify(&self) -> Option<Reason> {
        let tables = self.tables;
        let packet = self.packet;
        let (src, dst) = (packet.tuple.src, packet.tuple.dst);
        if src.is_loopback() || dst.is_loopback() {
            return Some(Reason::Loopback);
        }
        let Some(device) = tables.device(self.meta.ifindex) else {
            return Some(Reason::NotOurs);
        };
        let Some(network) = tables.network(device.bridge) else {
            return Some(Reason::NotOurs);
        };
        let at_veth = self.side as u8 == Side::Veth as u8;
        if at_veth && !sends_as_itself(&self.frame, &device) {
            return Some(Reason::SpoofedNeighbour);
        }
        let unroutable = dst.is_unroutable();
        let client = !packet.later_fragment
            && packet.tuple.proto == proto::UDP
            && packet.tuple.sport.get() == DHCP[1]
            && packet.tuple.dport.get() == DHCP[0];
        // A DHCP client that asks for an address has none yet.
        if !(client && unroutable && src == F::Addr::ANY)
            && let Some(reason) = disowns(tables, self.side, self.meta.ifindex, &device, src)
        {
            return Some(reason);
        }
        let server = !packet.later_fragment
            && packet.tuple.proto == proto::UDP
            && packet.tuple.sport.get() == DHCP[0]
            && packet.tuple.dport.get() == DHCP[1];
        if server && !may_send_others(&device, &network) {
            return Some(Reason::DhcpServer);
        }
        if at_veth && let Some(reason) = self.bridged(&device, &network) {
            return Some(reason);
        }
        // An isolated network allows only what the bridge switches.
        if network.flags & network::ISOLATED != 0 {
            return Some(Reason::Internal);
        }
        if unroutable {
            return Some(Reason::ToHost);
        }
        let internal = network.flags & network::INTERNAL != 0;
        if tables.is_local(dst) {
            let published = packet.unassembled
                || !packet.later_fragment
                    && nat::published(tables, dst, packet.tuple.dport, packet.tuple.proto)
                        .is_some();
            if published && !internal {
                return None;
            }
            if at_veth {
                tables.mark(mark::HOST);
            }
            return Some(Reason::ToHost);
        }
        let routes = AllowedKey {
            device: allowed::ROUTES,
            source: dst,
        };
        match owner::network_of(tables, device.bridge, &packet.tuple) {
            Some(bridge) if bridge == device.bridge => Some(self.detour(&network)),
            Some(_) if internal => Some(Reason::Isolated),
            Some(bridge) if tables.network(bridge).is_none() => Some(Reason::Isolated),
            None if tables.allowed(routes) == device.bridge && self.stays_at(device.bridge) => {
                Some(self.detour(&network))
            }
            None if internal => Some(Reason::Internal),
            Some(_) | None => None,
        }
    }

    /// The verdict on a frame that is not for the gateway. The hook of the receiver's veth checks the
    /// same, but that veth may have no hook yet.
    #[inline(always)]
    fn bridged(&self, device: &Device, network: &Network<F>) -> Option<Reason> {
        let to = self.frame.read::<[u8; 6]>(0);
        if to == Some(device.mac) {
            return None;
        }
        let to_group = to.is_some_and(|[first, ..]| first & 1 != 0);
        let blocked = network.flags & network::ICC_DISABLED != 0
            && !to_group
            && !access::is_linked(self.tables, self.packet);
        Some(if blocked {
            Reason::PeerBlocked
        } else {
            Reason::Bridged
        })
    }

    /// Whether the kernel routes the packet back to the bridge from which it comes.
    #[inline(always)]
    fn stays_at(&self, bridge: u32) -> bool {
        match self.tables.route(bridge, &self.packet.tuple) {
            Route::Forward { ifindex, .. } => ifindex == bridge,
            Route::Kernel => false,
        }
    }

    /// To a neighbour through the gateway, as from a container that has a route for its own address
    /// only: what the neighbour could be sent directly passes.
    #[inline(always)]
    pub(crate) fn detour(&self, network: &Network<F>) -> Reason {
        if network.flags & network::ICC_DISABLED != 0
            && !access::is_linked(self.tables, self.packet)
        {
            return Reason::PeerBlocked;
        }
        self.tables.mark(mark::ROUTED);
        Reason::Routed
    }

    /// Whether the kernel would accept the source of a new flow from outside: it is not the host's,
    /// and a route leads back to it if the device demands that (`rp_filter`) or if the source may
    /// be a container's. If not, the flow that was just created ends, and the reason is returned.
    #[inline(always)]
    pub fn verify_source(&self) -> Option<Reason> {
        if self.is_plausible() {
            return None;
        }
        if let Some(hit) = flow::find(self.tables, &self.packet.tuple) {
            flow::end(self.tables, &hit);
        }
        Some(Reason::SpoofedSource)
    }

    #[inline(always)]
    pub(crate) fn is_plausible(&self) -> bool {
        let tables = self.tables;
        let src = self.packet.tuple.src;
        if sender::is_martian(tables, src) {
            return false;
        }
        let flags = tables
            .device(self.meta.ifindex)
            .map_or(0, |device| device.flags);
        // An address in the range of a Docker network may be the LAN's: in that case a route leads
        // back to the LAN.
        let strict = flags & device::flag::REVERSE_STRICT != 0 || tables.subnet(src).is_some();
        if !strict && flags & device::flag::REVERSE_LOOSE == 0 {
            return true;
        }
        match tables.reverse_path(&self.packet.tuple) {
            ReversePath::Device(ifindex) => !strict || ifindex == self.meta.ifindex,
            ReversePath::None => false,
            ReversePath::Unknown => tables.endpoint_slot(src).is_none(),
        }
    }
}

/// Whether a frame from a container's veth has a MAC address of the container as source.
#[inline(always)]
pub(crate) fn sends_as_itself(frame: &Frame<'_>, device: &Device) -> bool {
    match frame.read::<[u8; 6]>(SOURCE_MAC) {
        Some(mac) => is_station(device, mac),
        None => false,
    }
}
