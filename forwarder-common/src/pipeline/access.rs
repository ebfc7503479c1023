//! Who may reach a container: straight by its address, by the lists of clients, by a link.

use super::{Passage, Steps};
use crate::abi::{
    Flow, HOST, IngressKey, LinkKey, Network, OUTSIDE, PortKey, TrustKey, Tuple, ingress, network,
};
use crate::family::Family;
use crate::flow::{ORIGINAL, REPLY};
use crate::nat;
use crate::parse::{Class, Packet};
use crate::tables::Tables;

/// How a packet may go straight to a container.
pub(super) enum Straight {
    /// Not at all.
    Closed,
    /// As a flow; of the mapping in this slot, or of none (0), let in by this list.
    Flow { mapping: u32, policy: u32 },
    /// Without one: what has no ports.
    Unnamed,
}

impl<F: Family, T: Steps<F>> Passage<'_, F, T> {
    /// Whether the packet may go straight to an address of a network that it does not come from:
    /// Docker's gateway modes, `trusted_host_interfaces` and `--allow-direct-routing`.
    ///
    /// A trusted device opens published ports only, and no ICMP, as with Docker: its filter rules
    /// stay. The tail of a fragmented datagram is worth nothing without its head, which is judged
    /// by its port.
    #[inline(always)]
    pub(super) fn straight(&self, bridge: u32, network: &Network<F>) -> Straight {
        let packet = self.packet;
        let flags = network.flags;
        if flags & network::INTERNAL != 0 {
            return Straight::Closed;
        }
        let ifindex = self.meta.ifindex;
        let routed = flags & network::ROUTED != 0;
        let every = flags & network::UNPROTECTED != 0;
        let ports = routed
            || flags & network::DIRECT != 0
            || self.tables.trusts(TrustKey { bridge, ifindex });
        if !every && !ports {
            return Straight::Closed;
        }
        let control = packet.tuple.proto == F::ICMP as u32;
        // Taken apart at once: of an `Option` that lives on, LLVM copies what `None` does not have.
        let (known, mapping, policy) = match self.tables.published(&PortKey {
            addr: packet.tuple.dst,
            port: packet.tuple.dport,
            proto: packet.tuple.proto as u16,
        }) {
            Some(port) => (true, port.mapping, port.policy),
            None => (false, 0, 0),
        };
        let open = every || routed && control;
        match packet.class {
            Class::Flow if open || known => Straight::Flow { mapping, policy },
            Class::Fragment if open || known || packet.tail => Straight::Unnamed,
            Class::Other | Class::Bare | Class::IcmpError if open => Straight::Unnamed,
            _ => Straight::Closed,
        }
    }

    /// Whether the lists of clients still let a flow's packets in. Each flow is asked once after
    /// they changed.
    #[inline(always)]
    pub(super) fn is_let_in(&self, flow: &Flow<F>) -> bool {
        let generation = self.tables.settings().policy;
        if flow.policy.get() == generation {
            return true;
        }
        let let_in = ask_again(self.tables, flow);
        if let_in {
            flow.policy.set(generation);
        }
        let_in
    }
}

/// Asks the lists anew about a flow that they once let in.
#[inline(never)]
fn ask_again<F: Family, T: Tables<F>>(tables: &T, flow: &Flow<F>) -> bool {
    let server = flow.legs[ORIGINAL].slot();
    let client = flow.legs[REPLY].slot();
    if matches!(server, OUTSIDE | HOST) || client == HOST {
        return true;
    }
    let Some(server) = tables.endpoint(server) else {
        return false;
    };
    let from = match tables.endpoint(client) {
        Some(endpoint) if client != OUTSIDE => endpoint.bridge,
        _ => 0,
    };
    let tuple = flow.tuples[ORIGINAL].get();
    let policy = match nat::published(tables, tuple.dst, tuple.dport, tuple.proto) {
        Some(published) => published.policy,
        None => 0,
    };
    is_welcome(tables, &tuple, policy, from, server.bridge)
}

/// Whether the list of a port and the list of its network let a client in, asked about the packet
/// as it came. Containers of the network itself are not asked by the network's list.
#[inline(always)]
pub(super) fn is_welcome<F: Family, T: Tables<F>>(
    tables: &T,
    tuple: &Tuple<F>,
    policy: u32,
    from: u32,
    to: u32,
) -> bool {
    let network = match tables.network(to) {
        Some(network) if from != to => network.policy,
        _ => 0,
    };
    is_listed(tables, policy, tuple.src) && is_listed(tables, network, tuple.src)
}

/// Whether a list lets a client in: list 0 lets in everybody.
#[inline(always)]
fn is_listed<F: Family, T: Tables<F>>(tables: &T, list: u32, client: F::Addr) -> bool {
    list == 0 || tables.ingress(IngressKey { list, client }) == ingress::ALLOW
}

/// Whether a link opens the way of a packet between two containers that do not reach each other:
/// from the parent to the child's port, or back. Without a state, as Docker's rules.
#[inline(always)]
pub(super) fn is_linked<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>) -> bool {
    let tuple = &packet.tuple;
    let opens = |tuple: &Tuple<F>| {
        tables.linked(&LinkKey {
            parent: tuple.src,
            child: tuple.dst,
            port: tuple.dport,
            proto: tuple.proto as u16,
        })
    };
    !packet.tail && (opens(tuple) || opens(&tuple.reversed()))
}
