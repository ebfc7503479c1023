// SPDX-License-Identifier: MIT OR Apache-2.0
//! Creates flows: checks a packet that has no flow, and makes a flow for it if it may have one.

use super::route::source;
use crate::abi::{End, FlowState, Network, Published, Tuple, device, network};
use crate::conntrack::flow::{self, Hit, Plan};
use crate::conntrack::{quota, sctp};
use crate::context::PacketContext;
use crate::environment::Route;
use crate::family::{Address, Family};
use crate::mark;
use crate::meta::Side;
use crate::nat::{self, Owner};
use crate::policy::access::{DirectAccess, is_welcome};
use crate::policy::owner::{self, Destination};
use crate::reason::Reason;
use crate::subprograms::Steps;
use crate::tracking::tcp as tcp_state;
use crate::tracking::tcp::Opening;
use crate::wire::header::Ip;
use crate::wire::parse::Class;
use crate::wire::proto;

/// A container that opens a flow out of its network.
struct Client<F: Family> {
    /// Its endpoint.
    end: End,
    /// Its network's bridge.
    bridge: u32,
    /// Its network.
    network: Network<F>,
}

/// Where a container's packet goes that leaves the container's network.
enum Bound<F: Family> {
    /// Outside.
    Outside,
    /// To an address of the host at which the port is published.
    Published,
    /// To a container's own address in another network, without translation of the destination.
    DirectAccess(u32, Network<F>),
}

/// The steps for packets without a flow.
impl<F: Ip, T: Steps<F>> PacketContext<'_, F, T> {
    /// Creates a flow for the packet. `None` if a flow exists now, else the verdict on the packet.
    #[inline(always)]
    pub fn create_flow(&self) -> Option<Reason> {
        if !self.tables.is_armed() {
            return Some(Reason::Unarmed);
        }
        let refusal = match self.side {
            Side::Outside => self.create_inbound(),
            Side::Veth | Side::Bridge | Side::Defragmented => match self.leaving() {
                None => Err(Reason::NoEndpoint),
                Some((client, Bound::DirectAccess(bridge, network))) => {
                    self.create_direct(Some(&client), bridge, &network, [0; 6])
                }
                Some((client, _)) if !self.may_have_flow(&client) => {
                    Err(self.without_flow(&client))
                }
                Some((client, Bound::Published)) => self.create_published(Some(&client), [0; 6]),
                Some((client, Bound::Outside)) => self.create_outbound(&client),
            },
        };
        refusal.err()
    }

    /// Whether a container's packet can have a flow. A packet without ports has one only if it is
    /// masqueraded; no port can be published for it.
    #[inline(always)]
    fn may_have_flow(&self, client: &Client<F>) -> bool {
        match self.packet.class {
            Class::Flow => true,
            Class::Portless => client.network.flags & network::MASQUERADE != 0,
            _ => false,
        }
    }

    /// The verdict on a container's packet that cannot have a flow: it leaves unchanged if its
    /// network is not masqueraded, and is dropped if it is.
    #[inline(always)]
    fn without_flow(&self, client: &Client<F>) -> Reason {
        if client.network.flags & network::MASQUERADE == 0 {
            self.tables.mark(mark::LEAVES);
            return Reason::Routed;
        }
        match self.packet.class {
            Class::Unreadable => Reason::InvalidHeader,
            Class::IcmpError => Reason::IcmpStray,
            Class::Fragment => Reason::Fragment,
            Class::Flow | Class::Portless | Class::Other => Reason::Protocol,
        }
    }

    /// From outside to a published port, or to a container's own address.
    #[inline(always)]
    fn create_inbound(&self) -> Result<(), Reason> {
        let packet = self.packet;
        let dst = packet.tuple.dst;
        // The kernel's own loopback check comes later than the redirect and would be bypassed.
        if packet.tuple.src.is_loopback() || dst.is_loopback() {
            return Err(Reason::Loopback);
        }
        let mac = self
            .tables
            .device(self.meta.ifindex)
            .map_or([0; 6], |device| device.mac);
        if !self.tables.is_local(dst) {
            let bridge = match owner::destination(self.tables, self.meta.ifindex, &packet.tuple) {
                Destination::Network(bridge) => bridge,
                Destination::Unknown => return Err(Reason::UnknownNetwork),
                Destination::Outside | Destination::Kernel => return Err(Reason::NotOurs),
            };
            let network = self.tables.network(bridge).ok_or(Reason::DirectRouting)?;
            return self.create_direct(None, bridge, &network, mac);
        }
        match packet.class {
            Class::Flow => {}
            // A fragment of a flow or to a published port: without defragmentation by the
            // forwarder, the host must not reassemble it for itself.
            Class::Fragment
                if !packet.later_fragment
                    && self.tables.settings().defrag_loopback == 0
                    && self.is_translated() =>
            {
                return Err(Reason::Fragment);
            }
            _ => return Err(Reason::ToHost),
        }
        self.create_published(None, mac)
    }

    /// Whether a first fragment from outside would need translation: it belongs to a flow, or is
    /// for a published port.
    #[inline(always)]
    fn is_translated(&self) -> bool {
        let tuple = &self.packet.tuple;
        let translates = |hit: Hit<'_, F>| {
            let [asked, answer] = &hit.flow.tuples;
            asked.get() != answer.get().reversed()
        };
        flow::find(self.tables, tuple).is_some_and(translates)
            || nat::published(self.tables, tuple.dst, tuple.dport, tuple.proto).is_some()
    }

    /// To a published port: the destination becomes the container.
    #[inline(always)]
    fn create_published(
        &self,
        client: Option<&Client<F>>,
        uplink_mac: [u8; 6],
    ) -> Result<(), Reason> {
        let tables = self.tables;
        let tuple = &self.packet.tuple;
        let published =
            nat::published(tables, tuple.dst, tuple.dport, tuple.proto).ok_or(Reason::ToHost)?;
        let slot = tables
            .endpoint_slot(published.addr)
            .ok_or(Reason::NoEndpoint)?;
        self.create_to_endpoint(client, slot, &published, uplink_mac)
    }

    /// To a container's own address, if its network allows direct access.
    #[inline(always)]
    fn create_direct(
        &self,
        client: Option<&Client<F>>,
        bridge: u32,
        network: &Network<F>,
        uplink_mac: [u8; 6],
    ) -> Result<(), Reason> {
        let tables = self.tables;
        let Tuple { dst, dport, .. } = self.packet.tuple;
        let refused = if client.is_some() {
            Reason::Isolated
        } else {
            Reason::DirectRouting
        };
        let (mapping, policy) = match self.direct_access(bridge, network) {
            DirectAccess::Closed => return Err(refused),
            DirectAccess::Flow { mapping, policy } => (mapping, policy),
            // A packet without a flow cannot be masqueraded.
            DirectAccess::Unnamed { .. }
                if client.is_some_and(|c| c.network.flags & network::MASQUERADE != 0) =>
            {
                return Err(refused);
            }
            DirectAccess::Unnamed { policy }
                if !is_welcome(tables, &self.packet.tuple, policy, 0, bridge) =>
            {
                return Err(Reason::Policy);
            }
            DirectAccess::Unnamed { .. } => {
                tables.mark(mark::ROUTED);
                return Err(Reason::Routed);
            }
        };
        let slot = match tables.endpoint_slot(dst) {
            Some(slot) => slot,
            None if self.is_routed_to(bridge) => network.default_endpoint,
            None => return Err(Reason::NoEndpoint),
        };
        let published = Published {
            mapping,
            policy,
            addr: dst,
            port: dport,
            reserved: 0,
        };
        self.create_to_endpoint(client, slot, &published, uplink_mac)
    }

    /// To the endpoint in a slot, reached through `published`. To the server, a client that is a
    /// container of a masqueraded network has the address of the server's own gateway, as with
    /// Docker 29 and with docker-proxy, or the source address that is configured for the client's
    /// network. A container of a network without masquerade keeps its own address.
    #[inline(always)]
    fn create_to_endpoint(
        &self,
        client: Option<&Client<F>>,
        slot: u32,
        published: &Published<F>,
        uplink_mac: [u8; 6],
    ) -> Result<(), Reason> {
        let tables = self.tables;
        let tuple = &self.packet.tuple;
        // Read the policy generation before the lists are checked: what the lists say belongs to
        // this generation or to a later one.
        let policy = tables.settings().policy;
        if !self.may_open() {
            return Err(Reason::NoFlow);
        }
        let endpoint = tables.endpoint(slot).ok_or(Reason::NoEndpoint)?;
        let from = client.map_or(0, |client| client.bridge);
        if !is_welcome(tables, tuple, published.policy, from, endpoint.bridge) {
            return Err(Reason::Policy);
        }
        let seen_as = match client {
            None => tuple.src,
            Some(Client {
                bridge, network, ..
            }) if *bridge != endpoint.bridge => {
                if network.flags & network::MASQUERADE == 0 {
                    tuple.src
                } else if network.source != F::Addr::ANY {
                    network.source
                } else {
                    self.gateway(endpoint.bridge)?
                }
            }
            Some(_) => self.gateway(endpoint.bridge)?,
        };
        let plan = Plan {
            original: *tuple,
            to: End {
                slot,
                generation: endpoint.generation,
            },
            from: client.map_or(End::OUTSIDE, |client| client.end),
            mapping: published.mapping,
            mapping_generation: tables.mapping(published.mapping),
            uplink_mac,
            policy,
        };
        let reply = Tuple {
            src: published.addr,
            dst: seen_as,
            sport: published.port,
            dport: tuple.sport,
            proto: tuple.proto,
        };
        let owner = if seen_as == tuple.src {
            Owner::Remote
        } else {
            Owner::Host
        };
        self.make(&plan, reply, owner)
    }

    /// The address of a network's bridge.
    #[inline(always)]
    fn gateway(&self, bridge: u32) -> Result<F::Addr, Reason> {
        let network = self.tables.network(bridge).ok_or(Reason::NoEndpoint)?;
        Ok(network.gateway)
    }

    /// From a container to the outside.
    #[inline(always)]
    fn create_outbound(&self, client: &Client<F>) -> Result<(), Reason> {
        let tables = self.tables;
        let tuple = &self.packet.tuple;
        if !self.may_open() {
            return Err(Reason::NoFlow);
        }
        let Route::Forward {
            ifindex, next_hop, ..
        } = tables.route(client.bridge, tuple)
        else {
            return Err(Reason::NoRoute);
        };
        let device = tables.device(ifindex).ok_or(Reason::DeviceUnknown)?;
        if device.bridge == client.bridge {
            // Through a router on the container's own bridge.
            return Err(self.detour(&client.network));
        }
        if device.kind != device::OUTSIDE {
            return Err(Reason::Isolated);
        }
        let (source, owner) = if client.network.flags & network::MASQUERADE != 0 {
            (
                source(tables, &client.network, ifindex, next_hop).ok_or(Reason::NoSource)?,
                Owner::Host,
            )
        } else {
            (tuple.src, Owner::Remote)
        };
        let plan = Plan {
            original: *tuple,
            to: End::OUTSIDE,
            from: client.end,
            mapping: 0,
            mapping_generation: 0,
            uplink_mac: device.mac,
            policy: tables.settings().policy,
        };
        self.make(
            &plan,
            Tuple {
                dst: source,
                ..tuple.reversed()
            },
            owner,
        )
    }

    /// Creates a flow in four steps: charge the originator's quota, take a record, insert the reply
    /// key (the lock), insert the original key. A lost race is no error: the packet then finds the
    /// flow that another CPU created.
    #[inline(always)]
    pub(super) fn make(&self, plan: &Plan<F>, reply: Tuple<F>, owner: Owner) -> Result<(), Reason> {
        self.tables.sweep_some();
        if let Some(reason) = self.tables.charge(plan.from) {
            return Err(reason);
        }
        let Some(reference) = flow::reserve(self.tables, plan) else {
            quota::give_back(self.tables, plan.from);
            return Err(Reason::TableFull);
        };
        let inside = (plan.original.src, plan.original.sport);
        let Some(reply) = nat::draw(self.tables, reference, reply, inside, owner) else {
            flow::release(self.tables, reference);
            quota::give_back(self.tables, plan.from);
            return Err(Reason::PortsExhausted);
        };
        let flow_state = FlowState::live(reference.id);
        flow::commit(self.tables, reference.index, flow_state, &reply);
        Ok(())
    }

    /// Whether the packet may open a flow.
    #[inline(always)]
    fn may_open(&self) -> bool {
        if self.packet.later_fragment {
            false
        } else if self.packet.tuple.proto == proto::TCP {
            match tcp_state::opening(self.packet.flags) {
                Opening::Open => true,
                Opening::PickUp => self.tables.settings().tcp_strict == 0,
                Opening::Refuse => false,
            }
        } else if self.packet.tuple.proto == proto::SCTP {
            sctp::opens(self.packet.flags)
        } else {
            !self.packet.answer
        }
    }

    /// The container that opens a flow out of its network, and where the flow goes, for packets
    /// that passed [`classify`](Self::classify). A container that uses a source other than its own
    /// address is represented by its network's default endpoint, and is masqueraded only where
    /// Docker's own rule would: if the source is in its network's subnet.
    #[inline(always)]
    fn leaving(&self) -> Option<(Client<F>, Bound<F>)> {
        let tables = self.tables;
        let (src, dst) = (self.packet.tuple.src, self.packet.tuple.dst);
        let bridge = tables.device(self.meta.ifindex)?.bridge;
        let mut network = tables.network(bridge)?;
        let own = tables.endpoint_slot(src).filter(|&slot| {
            tables
                .endpoint(slot)
                .is_some_and(|endpoint| self.is_behind(endpoint))
        });
        if own.is_none() && tables.subnet(src) != Some(bridge) {
            network.flags &= !network::MASQUERADE;
        }
        let slot = own.unwrap_or(network.default_endpoint);
        let end = End {
            slot,
            generation: tables.endpoint(slot)?.generation,
        };
        let client = Client {
            end,
            bridge,
            network,
        };
        if tables.is_local(dst) {
            return Some((client, Bound::Published));
        }
        let bound = match owner::network_of(tables, bridge, &self.packet.tuple) {
            Some(other) => Bound::DirectAccess(other, tables.network(other)?),
            None => Bound::Outside,
        };
        Some((client, bound))
    }
}
