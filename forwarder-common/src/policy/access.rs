// SPDX-License-Identifier: MIT OR Apache-2.0
//! Access to containers: by their own address (direct access), by the lists of clients, by links.

use crate::abi::{
    AllowedKey, Flow, HOST, IngressKey, LinkKey, Network, ORIGINAL, OUTSIDE, PortKey, REPLY,
    TrustKey, Tuple, allowed, device, ingress, network, others,
};
use crate::clock::{Ticks, reached};
use crate::conntrack::flow::Hit;
use crate::conntrack::timeouts;
use crate::context::{HookInput, PacketContext};
use crate::environment::{Configuration, FlowTable};
use crate::family::{Be16, Family};
use crate::meta::Meta;
use crate::nat;
use crate::reason::Reason;
use crate::wire::header::Ip;
use crate::wire::parse::{Class, Packet};
use crate::wire::{proto, tcp};

/// How a packet may reach a container by the container's own address.
pub(crate) enum DirectAccess {
    /// Not at all.
    Closed,
    /// As a flow: of the published port in this mapping slot, or 0 for none; `policy` is the list
    /// of clients to check.
    Flow { mapping: u32, policy: u32 },
    /// Without a flow, because the packet has no ports, or not all of its header is there; `policy`
    /// is the list of clients to check.
    Unnamed { policy: u32 },
}

impl<F: Family, T: FlowTable<F>> PacketContext<'_, F, T> {
    /// Whether the packet may go to a container's own address in a network that it does not come
    /// from: Docker's gateway modes, `trusted_host_interfaces` and `--allow-direct-routing`.
    ///
    /// A trusted device may reach published ports only, and no ICMP, as with Docker, whose filter
    /// rules stay in force. A later fragment passes: it is useless without the first one, which is
    /// checked by its port.
    #[inline(always)]
    pub(crate) fn direct_access(&self, bridge: u32, network: &Network<F>) -> DirectAccess {
        let packet = self.packet;
        let flags = network.flags;
        if flags & network::INTERNAL != 0 {
            return DirectAccess::Closed;
        }
        let ifindex = self.meta.ifindex;
        let routed = flags & network::ROUTED != 0;
        // An address that is no container's own, but that a container of the network may use.
        let every = flags & network::UNPROTECTED != 0
            || self.is_routed_to(bridge) && self.tables.endpoint_slot(packet.tuple.dst).is_none();
        let ports = routed
            || flags & network::DIRECT != 0
            || self.tables.trusts(TrustKey { bridge, ifindex });
        if !every && !ports {
            return DirectAccess::Closed;
        }
        let control = packet.tuple.proto == F::ICMP as u32;
        // Destructured at once: for an `Option` that lives on, LLVM copies fields that `None` does
        // not have.
        let (known, mapping, policy) = match self.tables.published(&PortKey {
            addr: packet.tuple.dst,
            port: packet.tuple.dport,
            proto: packet.tuple.proto as u16,
        }) {
            Some(port) => (true, port.mapping, port.policy),
            None => (false, 0, 0),
        };
        let open = every || routed && control;
        // Of whose port only a part has come, no list can be asked (RFC 1858).
        let told = packet.later_fragment || packet.first_fragment || !has_ports(packet.tuple.proto);
        match packet.class {
            Class::Flow if open || known => DirectAccess::Flow { mapping, policy },
            Class::Fragment if told && (open || known || packet.later_fragment) => {
                DirectAccess::Unnamed { policy }
            }
            Class::Other | Class::Portless | Class::IcmpError | Class::Unreadable if open => {
                DirectAccess::Unnamed { policy: 0 }
            }
            _ => DirectAccess::Closed,
        }
    }

    /// Whether the packet's destination is an address that containers of a network are allowed to
    /// use besides their own.
    #[inline(always)]
    pub(crate) fn is_routed_to(&self, bridge: u32) -> bool {
        let routes = AllowedKey {
            device: allowed::ROUTES,
            source: self.packet.tuple.dst,
        };
        self.tables.allowed(routes) == bridge
    }

    /// Whether a flow may continue under the current rules. Each flow is checked once after the
    /// lists of clients or the published ports changed, or after a service of the host bound a
    /// port.
    #[inline(always)]
    pub(crate) fn access(&self, flow: &Flow<F>) -> Access {
        let generation = self.tables.settings().policy;
        if flow.policy.get() == generation {
            return Access::Allowed;
        }
        let access = ask_again(self.tables, flow);
        if access as u8 == Access::Allowed as u8 {
            flow.policy.set(generation);
        }
        access
    }

    /// Whether a packet in the reply direction may be for a socket of the host that was opened
    /// after the flow: a SYN, which is no answer, or the first datagram of a peer that was silent
    /// for longer than answers take. Without this check a container could open a flow in advance to
    /// intercept a client of that socket.
    #[inline(always)]
    pub(crate) fn may_be_for_socket(&self, hit: &Hit<'_, F>, now: Ticks) -> bool {
        let packet = self.packet;
        let asks = match packet.tuple.proto {
            proto::TCP => tcp::kind(packet.flags) as u8 == tcp::Kind::Syn as u8,
            proto::UDP => {
                !hit.flow_state.is_replied()
                    && now.wrapping_sub(hit.flow.created.get()) > timeouts::UDP_STREAM_AFTER
            }
            _ => false,
        };
        asks && hit.dir == REPLY && !packet.later_fragment
    }
}

/// Whether a protocol has ports that can be published and that lists of clients check.
#[inline(always)]
const fn has_ports(number: u32) -> bool {
    matches!(number, proto::TCP | proto::UDP | proto::SCTP)
}

/// What becomes of a flow after the rules have changed.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    /// The flow continues.
    Allowed,
    /// The flow's packets are refused.
    Denied,
    /// The flow's port on the host is by now published for another container, or bound by a service
    /// of the host.
    PortTaken,
}

/// Checks the lists of clients and the published ports again for a flow.
#[inline(never)]
fn ask_again<F: Family, T: FlowTable<F>>(tables: &T, flow: &Flow<F>) -> Access {
    let server = flow.next_hops[ORIGINAL].slot();
    let client = flow.next_hops[REPLY].slot();
    let tuple = flow.tuples[ORIGINAL].get();
    if holds_host_port(flow) {
        let Tuple { dst, dport, .. } = flow.tuples[REPLY].get();
        let is_outdated = match nat::published(tables, dst, dport, tuple.proto) {
            Some(to) => to.addr != tuple.src || to.port != tuple.sport,
            None => {
                tuple.proto == proto::UDP
                    && is_bound_since(tables, flow, dport)
                    && is_of_socket(tables, flow)
            }
        };
        if is_outdated {
            return Access::PortTaken;
        }
    }
    if matches!(server, OUTSIDE | HOST) || client == HOST {
        return Access::Allowed;
    }
    let Some(server) = tables.endpoint(server) else {
        return Access::Denied;
    };
    let from = match tables.endpoint(client) {
        Some(endpoint) if client != OUTSIDE => endpoint.bridge,
        _ => 0,
    };
    let policy = match nat::published(tables, tuple.dst, tuple.dport, tuple.proto) {
        Some(published) => published.policy,
        None => 0,
    };
    if is_welcome(tables, &tuple, policy, from, server.bridge) {
        Access::Allowed
    } else {
        Access::Denied
    }
}

/// Whether a flow holds a port of an address of the host: its originator is translated, or is the
/// host.
#[inline(always)]
fn holds_host_port<F: Family>(flow: &Flow<F>) -> bool {
    match flow.next_hops[REPLY].slot() {
        OUTSIDE => false,
        HOST => true,
        _ => flow.tuples[REPLY].get().dst != flow.tuples[ORIGINAL].get().src,
    }
}

/// Whether a privileged process of the host has bound a UDP port since a flow was created. A port
/// bound by an unprivileged user ends no flow: otherwise any user could take the answers to a
/// container.
#[inline(always)]
fn is_bound_since<F: Family, T: FlowTable<F>>(tables: &T, flow: &Flow<F>, port: Be16) -> bool {
    let bound = tables.bound(port);
    bound != 0 && reached(flow.created.get(), bound)
}

/// Whether a socket of the host would receive the answers to a container's flow.
#[inline(never)]
pub(crate) fn is_of_socket<F: Family, T: FlowTable<F>>(tables: &T, flow: &Flow<F>) -> bool {
    flow.next_hops[REPLY].slot() != HOST
        && holds_host_port(flow)
        && tables.socket(&flow.tuples[REPLY].get())
}

/// Whether the list of a port and the list of its network allow a client, by the packet's tuple
/// before translation. The network's list is not checked for containers of the network itself.
#[inline(always)]
pub(crate) fn is_welcome<F: Family, T: FlowTable<F>>(
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

/// Whether an IPsec policy demands protection of what the host itself sends to this destination.
#[inline(always)]
pub(crate) fn is_protected<F: Family, T: FlowTable<F>>(tables: &T, dst: F::Addr) -> bool {
    is_listed(tables, others::PROTECTED, dst)
}

/// Whether a list allows a client; list 0 allows every client.
#[inline(always)]
fn is_listed<F: Family, T: FlowTable<F>>(tables: &T, list: u32, client: F::Addr) -> bool {
    list == 0 || tables.ingress(IngressKey { list, client }) == ingress::ALLOW
}

/// The verdict on a packet that a bridge has switched to a container's veth.
#[inline(always)]
pub(crate) fn switched<F: Ip, T: Configuration<F>>(
    at: HookInput<'_, T>,
    packet: &mut Packet<F>,
) -> Reason {
    if !is_icc_disabled(at.tables, at.meta)
        || at.parse(packet).is_ok() && is_linked(at.tables, packet)
    {
        Reason::Bridged
    } else {
        Reason::PeerBlocked
    }
}

/// Whether the network in which a bridge switched a packet to this device keeps its containers
/// apart.
#[inline(always)]
fn is_icc_disabled<F: Family, T: Configuration<F>>(tables: &T, meta: &Meta) -> bool {
    let bridge = match tables.device(meta.ingress_ifindex) {
        Some(from) if matches!(from.kind, device::VETH | device::NAMED_VETH | device::PORT) => {
            from.bridge
        }
        Some(_) => 0,
        // A port that no agent has seen yet: what is forwarded from such a device ends at the bridge.
        None => tables.device(meta.ifindex).map_or(0, |to| to.bridge),
    };
    tables
        .network(bridge)
        .is_some_and(|network| network.flags & network::ICC_DISABLED != 0)
}

/// Whether a link allows a packet between two containers that otherwise may not reach each other:
/// from the parent to the child's port, or back. The check is stateless, as Docker's rules are.
#[inline(always)]
pub(crate) fn is_linked<F: Family, T: Configuration<F>>(tables: &T, packet: &Packet<F>) -> bool {
    let tuple = &packet.tuple;
    let opens = |tuple: &Tuple<F>| {
        tables.linked(&LinkKey {
            parent: tuple.src,
            child: tuple.dst,
            port: tuple.dport,
            proto: tuple.proto as u16,
        })
    };
    !packet.later_fragment && (opens(tuple) || opens(&tuple.reversed()))
}
