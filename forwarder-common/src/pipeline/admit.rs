//! A packet's story, its beginning: what a packet without a flow meets before it may make one.

use super::{Passage, Side, Steps, mark};
use crate::abi::{Network, Tuple, device, network};
use crate::family::{Address, Family};
use crate::flow::{self, End, Plan};
use crate::nat::{self, Owner};
use crate::parse::{Class, proto};
use crate::reason::Reason;
use crate::tables::Route;
use crate::tcp::{self, Opening};

/// Where a packet of a container's that belongs to no flow is bound for.
enum Origin<F: Family> {
    /// Decided: for the host, for a neighbour, or refused.
    Settled(Reason),
    /// Out of the network.
    Leaves(Leaving<F>),
}

/// A packet that may leave its network.
struct Leaving<F: Family> {
    /// The endpoint that it comes from.
    end: End,
    bridge: u32,
    network: Network<F>,
    /// To an address of the host's that has the port published.
    local: bool,
}

/// The admitting steps: all that a packet without a flow meets.
impl<F: Family, T: Steps<F>> Passage<'_, F, T> {
    /// Makes a flow for the packet, if it may have one: `None`, or what becomes of it otherwise.
    #[inline(always)]
    pub fn admit(&self) -> Option<Reason> {
        let refusal = match self.side {
            Side::Outside => self.admit_inward(),
            Side::Veth | Side::Bridge => match self.originates() {
                Origin::Settled(reason) => Err(reason),
                Origin::Leaves(_) if self.packet.class != Class::Flow => Err(self.untranslatable()),
                Origin::Leaves(leaving) if leaving.local => {
                    self.admit_published(leaving.end, Owner::Host, [0; 6])
                }
                Origin::Leaves(leaving) => self.admit_outward(&leaving),
            },
        };
        refusal.err()
    }

    /// Why a packet that would have to be translated cannot be.
    #[inline(always)]
    fn untranslatable(&self) -> Reason {
        match self.packet.class {
            Class::IcmpError => Reason::IcmpStray,
            Class::Fragment => Reason::Fragment,
            Class::Flow | Class::Other => Reason::Protocol,
        }
    }

    /// From outside to a published port.
    #[inline(always)]
    fn admit_inward(&self) -> Result<(), Reason> {
        let packet = self.packet;
        let dst = packet.tuple.dst;
        // The kernel's own check comes too late for what is redirected past it.
        if packet.tuple.src.is_loopback() || dst.is_loopback() {
            return Err(Reason::Loopback);
        }
        if !self.tables.is_local(dst) {
            let ours = self.tables.subnet(dst).is_some();
            return Err(if ours {
                Reason::DirectRouting
            } else {
                Reason::NotOurs
            });
        }
        match packet.class {
            Class::Flow => {}
            // Of a flow, or for a published port: the host must not piece it together.
            Class::Fragment if !packet.tail && self.is_translated() => {
                return Err(Reason::Fragment);
            }
            _ => return Err(Reason::ToHost),
        }
        let mac = self
            .tables
            .device(self.meta.ifindex)
            .map_or([0; 6], |device| device.mac);
        self.admit_published(End::OUTSIDE, Owner::Remote, mac)
    }

    /// Whether a first fragment from outside would have to be translated.
    #[inline(always)]
    fn is_translated(&self) -> bool {
        let tuple = &self.packet.tuple;
        flow::find(self.tables, tuple).is_some()
            || nat::published(self.tables, tuple.dst, tuple.dport, tuple.proto).is_some()
    }

    /// To a published port: the destination becomes the container. A container as client is seen
    /// as the gateway of the server's network, as with Docker 29 (and with docker-proxy).
    #[inline(always)]
    fn admit_published(&self, from: End, owner: Owner, uplink_mac: [u8; 6]) -> Result<(), Reason> {
        let tables = self.tables;
        let tuple = &self.packet.tuple;
        let published =
            nat::published(tables, tuple.dst, tuple.dport, tuple.proto).ok_or(Reason::ToHost)?;
        if !self.may_open() {
            return Err(Reason::NoFlow);
        }
        let slot = tables
            .endpoint_slot(published.addr)
            .ok_or(Reason::NoEndpoint)?;
        let endpoint = tables.endpoint(slot).ok_or(Reason::NoEndpoint)?;
        let client = match owner {
            Owner::Remote => tuple.src,
            Owner::Host => {
                let network = tables.network(endpoint.bridge).ok_or(Reason::NoEndpoint)?;
                network.gateway
            }
        };
        let plan = Plan {
            original: *tuple,
            to: End {
                slot,
                incarnation: endpoint.incarnation,
            },
            from,
            mapping: published.mapping,
            mapping_incarnation: tables.mapping(published.mapping),
            uplink_mac,
        };
        let reply = Tuple {
            src: published.addr,
            dst: client,
            sport: published.port,
            dport: tuple.sport,
            proto: tuple.proto,
        };
        self.make(&plan, reply, owner)
    }

    /// From a container outwards.
    #[inline(always)]
    fn admit_outward(&self, leaving: &Leaving<F>) -> Result<(), Reason> {
        let tables = self.tables;
        let tuple = &self.packet.tuple;
        if !self.may_open() {
            return Err(Reason::NoFlow);
        }
        let Route::Forward {
            ifindex, next_hop, ..
        } = tables.route(leaving.bridge, tuple)
        else {
            return Err(Reason::NoRoute);
        };
        let device = tables.device(ifindex).ok_or(Reason::DeviceUnknown)?;
        if device.kind != device::OUTSIDE {
            return Err(Reason::Isolated);
        }
        let (source, owner) = if leaving.network.flags & network::MASQUERADE != 0 {
            (
                tables.source(ifindex, next_hop).ok_or(Reason::NoSource)?,
                Owner::Host,
            )
        } else {
            (tuple.src, Owner::Remote)
        };
        let plan = Plan {
            original: *tuple,
            to: End::OUTSIDE,
            from: leaving.end,
            mapping: 0,
            mapping_incarnation: 0,
            uplink_mac: device.mac,
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

    /// Makes a flow: record, reply key (the lock), original key. A lost race is no error: the
    /// packet finds the winner's flow.
    #[inline(always)]
    pub(super) fn make(&self, plan: &Plan<F>, reply: Tuple<F>, owner: Owner) -> Result<(), Reason> {
        let reference = flow::reserve(self.tables, plan).ok_or(Reason::TableFull)?;
        let inside = (plan.original.src, plan.original.sport);
        let Some(reply) = nat::draw(self.tables, reference, reply, inside, owner) else {
            flow::release(self.tables, reference);
            return Err(Reason::PortsExhausted);
        };
        flow::commit(self.tables, reference, &reply);
        Ok(())
    }

    /// Whether the packet may make a flow.
    #[inline(always)]
    fn may_open(&self) -> bool {
        if self.packet.tuple.proto == proto::TCP {
            tcp::opening(self.packet.flags) != Opening::Refuse
        } else {
            !self.packet.answer
        }
    }

    /// Checks a container's packet: its source, and whether it may leave its network at all.
    #[inline(always)]
    fn originates(&self) -> Origin<F> {
        let tables = self.tables;
        let packet = self.packet;
        let (src, dst) = (packet.tuple.src, packet.tuple.dst);
        if src.is_loopback() || dst.is_loopback() {
            return Origin::Settled(Reason::Loopback);
        }
        let Some(device) = tables.device(self.meta.ifindex) else {
            return Origin::Settled(Reason::NotOurs);
        };
        if self.side == Side::Veth && self.frame.read::<[u8; 6]>(0) != Some(device.mac) {
            return Origin::Settled(Reason::Bridged);
        }
        if dst.is_unroutable() {
            return Origin::Settled(Reason::ToHost);
        }
        let Some(network) = tables.network(device.bridge) else {
            return Origin::Settled(Reason::NotOurs);
        };
        let slot = match tables.endpoint_slot(src) {
            Some(slot) => slot,
            // The bridge's own address.
            None if tables.is_local(src) => return Origin::Settled(Reason::SpoofedSource),
            None if tables.subnet(src) != Some(device.bridge) => {
                return Origin::Settled(Reason::ForeignSource);
            }
            // The floor is for those not known yet, not for those who take a free address.
            None if device.kind == device::NAMED_VETH => {
                return Origin::Settled(Reason::SpoofedSource);
            }
            None => network.floor,
        };
        let Some(endpoint) = tables.endpoint(slot) else {
            return Origin::Settled(Reason::NoEndpoint);
        };
        if !self.is_behind(endpoint) {
            return Origin::Settled(Reason::SpoofedSource);
        }
        let end = End {
            slot,
            incarnation: endpoint.incarnation,
        };
        let internal = network.flags & network::INTERNAL != 0;
        let leaving = |local| {
            Origin::Leaves(Leaving {
                end,
                bridge: device.bridge,
                network,
                local,
            })
        };
        if tables.is_local(dst) {
            let published = !packet.tail
                && nat::published(tables, dst, packet.tuple.dport, packet.tuple.proto).is_some();
            if published && !internal {
                return leaving(true);
            }
            if self.side == Side::Veth {
                tables.mark(mark::HOST);
            }
            return Origin::Settled(Reason::ToHost);
        }
        match tables.subnet(dst) {
            Some(bridge) if bridge == device.bridge => Origin::Settled(Reason::Bridged),
            Some(_) => Origin::Settled(Reason::Isolated),
            None if internal => Origin::Settled(Reason::Internal),
            None => leaving(false),
        }
    }
}
