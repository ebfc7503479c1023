// SPDX-License-Identifier: MIT OR Apache-2.0
//! Fills the model's tables as an agent would: devices, networks, containers, ports, routes.

use forwarder_common::abi::{
    Device, Endpoint, Network, PortKey, Published, ServerKey, device, network,
};
use forwarder_common::environment::Route;
use forwarder_common::family::{Be16, Be32, V4};
use forwarder_common::reason::Path;

use super::frames::{Spec, ip};
use super::{Arrival, Carried, Hook, Host, Outcome};

/// The devices of most tests: an uplink, a second one, a VPN without Ethernet, two networks.
pub const UPLINK: u32 = 2;
pub const SECOND: u32 = 3;
pub const VPN: u32 = 4;
pub const BRIDGE: u32 = 10;
pub const OTHER_BRIDGE: u32 = 11;
pub const WEB_VETH: u32 = 20;
pub const APP_VETH: u32 = 21;
pub const FAR_VETH: u32 = 22;

/// The host's address on its uplink.
pub const HOST: Be32 = ip(198, 18, 1, 1);
/// A client on the LAN, which is the default gateway too.
pub const CLIENT: Be32 = ip(198, 18, 1, 2);
/// A host behind the gateway.
pub const REMOTE: Be32 = ip(198, 19, 1, 2);
pub const GATEWAY: Be32 = ip(172, 17, 0, 1);
/// A container with a published port.
pub const WEB: Be32 = ip(172, 17, 0, 2);
/// Another container of the same network.
pub const APP: Be32 = ip(172, 17, 0, 3);
/// A container whose veth has no hook yet.
pub const BARE: Be32 = ip(172, 17, 0, 4);
/// A container of the other network.
pub const FAR: Be32 = ip(172, 18, 0, 2);

/// The MAC address of a device of the host.
pub const fn mac(ifindex: u32) -> [u8; 6] {
    [2, 0, 0, 0, 0, ifindex as u8]
}

/// The MAC address of the other end of a device.
pub const fn far_mac(ifindex: u32) -> [u8; 6] {
    [2, 0, 0, 0, 1, ifindex as u8]
}

impl Host {
    /// The usual host: `WEB` is published as port 8080, TCP, UDP and SCTP, on any address.
    pub fn usual(flows: u32) -> Self {
        let mut host = Self::new(flows);
        host.outside(UPLINK, HOST, 24, 1500);
        host.outside(SECOND, ip(198, 18, 2, 1), 24, 1280);
        host.outside(VPN, ip(198, 18, 3, 1), 24, 1400);
        host.devices.insert(
            VPN,
            Device {
                kind: device::OUTSIDE,
                ..Device::default()
            },
        );
        host.bridge(BRIDGE, GATEWAY, 16, network::MASQUERADE);
        host.bridge(OTHER_BRIDGE, ip(172, 18, 0, 1), 16, network::MASQUERADE);
        host.container(BRIDGE, WEB_VETH, WEB);
        host.container(BRIDGE, APP_VETH, APP);
        host.container(BRIDGE, 0, BARE);
        host.container(OTHER_BRIDGE, FAR_VETH, FAR);
        for proto in [6, 17, 132] {
            host.publish((Be32::default(), 8080, proto), (WEB, 80));
            host.publish((Be32::default(), 8081, proto), (BARE, 80));
        }
        host.route((Be32::default(), 0), UPLINK, CLIENT, 1500);
        host.ports.insert(WEB_VETH);
        host.wait(1_000);
        host
    }

    /// Adds an outside device with its address, subnet and MTU.
    pub fn outside(&mut self, ifindex: u32, addr: Be32, len: u8, mtu: u32) {
        let mac = mac(ifindex);
        let device = Device {
            kind: device::OUTSIDE,
            bridge: 0,
            mac,
            ethernet: 1,
            ..Device::default()
        };
        self.devices.insert(ifindex, device);
        self.nics.insert(ifindex, mac);
        self.locals.insert(addr);
        self.sources.insert((ifindex, Be32::default(), 0), addr);
        self.route((addr, len), ifindex, Be32::default(), mtu);
    }

    /// Adds a Docker network.
    pub fn bridge(&mut self, ifindex: u32, gateway: Be32, len: u8, flags: u32) {
        let mac = mac(ifindex);
        let device = Device {
            kind: device::BRIDGE,
            bridge: ifindex,
            mac,
            ethernet: 1,
            ..Device::default()
        };
        self.devices.insert(ifindex, device);
        self.nics.insert(ifindex, mac);
        let default_endpoint = self.insert_endpoint(Endpoint {
            bridge: ifindex,
            mtu: 1500,
            ..Endpoint::default()
        });
        self.networks.insert(
            ifindex,
            Network {
                flags,
                default_endpoint,
                gateway,
                source: Be32::default(),
                policy: 0,
            },
        );
        self.subnets.insert((gateway, len), ifindex);
        self.locals.insert(gateway);
        self.route((gateway, len), ifindex, Be32::default(), 1500);
    }

    /// Adds a container to a network; returns its slot. A veth of 0 is one without hooks.
    pub fn container(&mut self, bridge: u32, veth: u32, addr: Be32) -> u32 {
        let mut macs = [0; 12];
        macs[..6].copy_from_slice(&far_mac(veth));
        macs[6..].copy_from_slice(&mac(bridge));
        let endpoint = Endpoint {
            ifindex: veth,
            bridge,
            mtu: 1500,
            addr,
            macs,
            generation: 0,
        };
        let slot = self.insert_endpoint(endpoint);
        self.endpoint_slots.insert(addr, slot);
        if veth != 0 {
            let device = Device {
                kind: device::VETH,
                bridge,
                mac: mac(bridge),
                ethernet: 1,
                station: far_mac(veth),
                ..Device::default()
            };
            self.devices.insert(veth, device);
            self.nics.insert(veth, mac(veth));
        }
        slot
    }

    fn insert_endpoint(&mut self, endpoint: Endpoint<V4>) -> u32 {
        let unused = |endpoint: &Endpoint<_>| endpoint.generation == 0;
        // Slot 0 is outside.
        let slot = 1 + self.endpoints[1..].iter().position(unused).unwrap();
        self.endpoints[slot] = Endpoint {
            generation: 100 + slot as u32,
            ..endpoint
        };
        slot as u32
    }

    /// Publishes a port; returns the slot of its mapping.
    pub fn publish(&mut self, at: (Be32, u16, u16), to: (Be32, u16)) -> u32 {
        let mapping = self.mappings.keys().max().unwrap_or(&0) + 1;
        let key = PortKey {
            addr: at.0,
            port: Be16::new(at.1),
            proto: at.2,
        };
        let published = Published {
            mapping,
            policy: 0,
            addr: to.0,
            port: Be16::new(to.1),
            reserved: 0,
        };
        self.published.insert(key, published);
        self.mappings.insert(mapping, 7);
        mapping
    }

    /// Sets the host port under which a container's port is published.
    pub fn seen_as(&mut self, at: Be32, from: (Be32, u16, u16), port: u16) {
        let key = ServerKey {
            at,
            addr: from.0,
            port: Be16::new(from.1),
            proto: from.2,
        };
        self.seen_as.insert(key, u32::from(port));
    }

    /// Adds a route; through the gateway 0 the destination is on the link.
    pub fn route(&mut self, to: (Be32, u8), ifindex: u32, next_hop: Be32, mtu: u32) {
        self.routes.insert(
            to,
            Route::Forward {
                ifindex,
                next_hop,
                mtu,
            },
        );
    }

    /// Adds a socket of the host.
    pub fn socket(&mut self, addr: Be32, port: u16, proto: u16) {
        self.sockets.insert(PortKey {
            addr,
            port: Be16::new(port),
            proto,
        });
    }

    /// Sends a packet in on the uplink; returns its outcome and the packet afterwards.
    pub fn by_uplink(&self, spec: &Spec) -> (Outcome, Vec<u8>) {
        let macs = (mac(UPLINK), far_mac(UPLINK));
        self.send(
            Hook::OutsideIn,
            spec,
            macs,
            Arrival {
                ifindex: UPLINK,
                ..Arrival::default()
            },
        )
    }

    /// Sends a packet out of a container, on its veth.
    pub fn by_veth(&self, veth: u32, spec: &Spec) -> (Outcome, Vec<u8>) {
        let macs = (self.devices[&veth].mac, far_mac(veth));
        self.send(
            Hook::ContainerIn,
            spec,
            macs,
            Arrival {
                ifindex: veth,
                ..Arrival::default()
            },
        )
    }

    /// Sends a packet out of a bridge, behind any veth: as the bridge's own hook sees it.
    pub fn by_bridge(
        &self,
        bridge: u32,
        carried: impl Into<Carried>,
        spec: &Spec,
    ) -> (Outcome, Vec<u8>) {
        let Carried(mark, hash) = carried.into();
        let arrival = Arrival {
            ifindex: bridge,
            mark,
            hash,
            ..Arrival::default()
        };
        self.send(
            Hook::BridgeIn,
            spec,
            (mac(bridge), far_mac(bridge)),
            arrival,
        )
    }

    /// Lets the kernel send a packet out on the uplink that arrived on `ingress_ifindex`.
    pub fn to_outside(
        &self,
        ingress_ifindex: u32,
        carried: impl Into<Carried>,
        packet: &[u8],
    ) -> (Outcome, Vec<u8>) {
        let way = (Hook::OutsideOut, UPLINK);
        self.sends(way, ingress_ifindex, carried.into(), packet)
    }

    /// Lets the kernel send a packet out on a bridge that arrived on `ingress_ifindex`.
    pub fn to_bridge(
        &self,
        bridge: u32,
        ingress_ifindex: u32,
        carried: impl Into<Carried>,
        packet: &[u8],
    ) -> (Outcome, Vec<u8>) {
        let way = (Hook::BridgeOut, bridge);
        self.sends(way, ingress_ifindex, carried.into(), packet)
    }

    fn sends(
        &self,
        (hook, ifindex): (Hook, u32),
        ingress_ifindex: u32,
        Carried(mark, hash): Carried,
        packet: &[u8],
    ) -> (Outcome, Vec<u8>) {
        let arrival = Arrival {
            ifindex,
            ingress_ifindex,
            mark,
            hash,
            segment: 0,
        };
        self.raw(hook, packet, arrival)
    }

    /// Runs a hook on a packet behind an Ethernet header; returns the packet without it.
    pub fn raw(&self, hook: Hook, packet: &[u8], arrival: Arrival) -> (Outcome, Vec<u8>) {
        let mut frame = [&[0; 12][..], &[0x08, 0x00], packet].concat();
        frame[..6].copy_from_slice(&mac(arrival.ifindex));
        let outcome = self.run(hook, &mut frame, arrival);
        self.check_some();
        (outcome, frame.split_off(14))
    }

    fn send(
        &self,
        hook: Hook,
        spec: &Spec,
        (to, from): ([u8; 6], [u8; 6]),
        arrival: Arrival,
    ) -> (Outcome, Vec<u8>) {
        let mut frame = spec.clone().between(to, from).build();
        let before = frame.clone();
        let outcome = self.run(hook, &mut frame, arrival);
        self.check_some();
        if let Some(answer) = self.answer.take() {
            frame = answer;
        } else if outcome
            .reason
            .is_some_and(|reason| reason.path() == Path::Drop)
        {
            assert_eq!(frame, before, "refused, but changed: {outcome:?}");
        }
        (outcome, frame.split_off(14))
    }
}
