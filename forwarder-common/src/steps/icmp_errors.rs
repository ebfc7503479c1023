// SPDX-License-Identifier: MIT OR Apache-2.0
//! Forwards and translates ICMP errors about flows: from outside, from containers, and from the
//! host itself.

use crate::abi::{ORIGINAL, REPLY, Tuple};
use crate::conntrack::flow::{self, Hit};
use crate::context::PacketContext;
use crate::environment::FlowTable;
use crate::family::{Address, Be16, Family};
use crate::mark;
use crate::meta::Side;
use crate::nat;
use crate::policy::owner::{Destination, destination};
use crate::policy::sender::is_martian;
use crate::reason::Reason;
use crate::steps::steer::Target;
use crate::subprograms::Steps;
use crate::wire::header::Ip;
use crate::wire::icmp::{self, Outer, Quote};
use crate::wire::proto;

/// The ones' complement sum of an intact ICMP message, checksum included.
const INTACT: u16 = 0xffff;

/// The ICMP error steps.
impl<F: Ip, T: Steps<F>> PacketContext<'_, F, T> {
    /// Forwards an ICMP error to the sender of the packet that it quotes; `None` if the quoted
    /// packet belongs to no flow.
    #[inline(always)]
    pub fn forward_icmp_error(&mut self) -> Option<Reason> {
        if !self.is_intact() {
            return Some(Reason::Malformed);
        }
        let quote = icmp::quote(&self.frame, self.packet)?;
        let hit = flow::find(self.tables, &quote.tuple.reversed())?;
        if hit.flow_state.is_followed() {
            return self.comes_from(&hit).then(|| self.leave());
        }
        let now = self.tables.now();
        // A damaged error must not be turned into a valid one, nor reveal the original of its quote
        // (RFC 5508 REQ-3).
        if !flow::is_current(self.tables, hit.flow, now) || self.tables.sum(self) != INTACT {
            return None;
        }
        let answers = hit.flow.tuples[hit.dir & 1].get();
        let sent = hit.flow.tuples[(hit.dir ^ 1) & 1].get();
        let from = self.packet.tuple.src;
        let may_send = if self.side == Side::Outside {
            !self.is_nobodys(from)
        } else {
            from == answers.src && self.sends_as_itself()
        };
        let fits = self.packet.tuple.dst == quote.tuple.src
            && self.comes_from(&hit)
            && may_send
            && !icmp::is_redirect(&self.frame, self.packet);
        if !fits {
            return Some(Reason::IcmpStray);
        }
        let src = if from == answers.src { sent.dst } else { from };
        let mut way = self.steer(&hit, now);
        // Traffic shaping is meant for large or frequent packets, so ICMP errors bypass it.
        if let Some(Reason::Ipsec) = self.others_need_kernel(&way) {
            way = Target::Kernel(Reason::Ipsec);
        }
        let hop = match way {
            Target::Peer(_) | Target::Neighbour(..) => true,
            // An error whose source is not translated can take the kernel path: only its
            // destination changes.
            Target::Kernel(_) if src == from => false,
            Target::Kernel(_) | Target::Refuse(_) => return Some(Reason::IcmpStray),
        };
        let outer = Outer {
            src,
            dst: sent.src,
            hop,
        };
        self.restore(&quote, &sent, &outer);
        let forwarded = match way {
            Target::Peer(endpoint) => {
                let _ = self.frame.write(0, endpoint.macs);
                self.tables.to_peer(endpoint.ifindex);
                Reason::IcmpError
            }
            Target::Neighbour(ifindex, next_hop) => {
                self.tables.to_neighbour(ifindex, next_hop);
                Reason::IcmpError
            }
            Target::Kernel(reason) => {
                self.tables.mark(mark::FLOW);
                self.tables
                    .hash(mark::encode_hash(hit.index, hit.dir, false));
                reason
            }
            Target::Refuse(_) => return None,
        };
        // This step comes last because the verifier walks through everything behind it twice.
        self.finish(&quote, &sent);
        Some(forwarded)
    }

    /// Whether no router outside can have an address: it is a martian source, or a container's.
    #[inline(always)]
    fn is_nobodys(&self, addr: F::Addr) -> bool {
        is_martian(self.tables, addr) || self.tables.endpoint_slot(addr).is_some()
    }

    /// Translates the quote of an ICMP error that the host itself sends about a packet that was
    /// passed to it after translation. `None` if the error may stay as it is.
    #[inline(always)]
    pub fn restore_own_error(&mut self) -> Option<Reason> {
        let quote = icmp::quote(&self.frame, self.packet);
        let hit = quote.and_then(|quote| self.flow_passed_to_host(&quote.tuple));
        let (Some(quote), Some(hit)) = (quote, hit) else {
            if self.side == Side::Bridge {
                return None;
            }
            // The flow has ended or used another port. The error must not reveal a container's
            // address.
            let quoted = F::header(&self.frame, icmp::quoted_at(self.packet)).ok()?;
            let tuple = Tuple {
                src: quoted.src,
                dst: quoted.dst,
                ..Tuple::default()
            };
            let shows = match destination(self.tables, self.meta.ifindex, &tuple) {
                Destination::Network(_) | Destination::Unknown => true,
                Destination::Outside => false,
                // An address of a network that was just removed, or one of the host.
                Destination::Kernel => {
                    self.tables.subnet(quoted.dst).is_some() && !self.tables.is_local(quoted.dst)
                }
            };
            return shows.then_some(Reason::IcmpStray);
        };
        let sent = hit.flow.tuples[(hit.dir ^ 1) & 1].get();
        let Tuple { src, dst, .. } = self.packet.tuple;
        // The error's source becomes the address that the client has sent to, as in nf_nat. Without
        // translation that is another host's address, so the source stays.
        let src = if self.tables.is_local(sent.dst) {
            sent.dst
        } else {
            src
        };
        let outer = Outer {
            src,
            dst,
            hop: false,
        };
        let whole = self.restore(&quote, &sent, &outer);
        self.finish(&quote, &sent);
        whole.then_some(Reason::HostError)
    }

    /// Calls [`icmp::restore`] with a copy of the frame. A reference to the frame itself would put
    /// the whole context on the stack.
    #[inline(always)]
    fn restore(&self, quote: &Quote<F>, sent: &Tuple<F>, outer: &Outer<F>) -> bool {
        let mut frame = self.frame;
        icmp::restore(&mut frame, self.packet, quote, sent, outer)
    }

    /// The step that a quote of SCTP needs after [`icmp::restore`]: see [`icmp::restore_crc`].
    #[inline(always)]
    pub fn restore_crc(&mut self, before: u32, after: u32) {
        let shift = |register, octets| self.tables.shift(register, octets);
        icmp::restore_crc(&mut self.frame, self.packet, [before, after], shift);
    }

    /// Runs [`restore_crc`](Self::restore_crc) if the quote is of SCTP.
    #[inline(always)]
    fn finish(&mut self, quote: &Quote<F>, sent: &Tuple<F>) {
        if sent.proto == proto::SCTP {
            let [before, after] = [&quote.tuple, sent].map(icmp::ports);
            self.tables.restore_crc(self, before, after);
        }
    }

    /// The flow of a packet that was passed to the host with its destination translated and its
    /// source unchanged. The hit has the direction of the answers.
    #[inline(always)]
    fn flow_passed_to_host(&self, quoted: &Tuple<F>) -> Option<Hit<'_, F>> {
        let answers = quoted.reversed();
        if let Some(hit) = flow::find(self.tables, &answers) {
            return (!hit.flow_state.is_followed()).then_some(hit);
        }
        if self.side != Side::Bridge {
            return None;
        }
        // Between containers both source and destination are translated, so neither key contains
        // both containers' own addresses. The address by which the server sees its client is known,
        // however.
        for (dir, named) in [(REPLY, &answers), (ORIGINAL, quoted)] {
            let drawn = nat::drawn(self.tables, named.dst, named.dport, named.proto);
            for port in [named.dport, drawn] {
                if let Some(hit) = hairpin(self.tables, named, port) {
                    return Some(Hit { dir, ..hit });
                }
            }
        }
        None
    }
}

/// The flow in which a container answers another container, found by both containers' own addresses
/// and the port by which the server sees its client.
#[inline(never)]
fn hairpin<'a, F: Family, T: FlowTable<F>>(
    tables: &'a T,
    answers: &Tuple<F>,
    dport: Be16,
) -> Option<Hit<'a, F>> {
    let (server, client) = (tables.subnet(answers.src)?, tables.subnet(answers.dst)?);
    let source = tables.network(client)?.source;
    let dst = if client == server || source == F::Addr::ANY {
        tables.network(server)?.gateway
    } else {
        source
    };
    let seen = Tuple {
        dst,
        dport,
        ..*answers
    };
    let hit = flow::find(tables, &seen)?;
    let originator = hit.flow.tuples[ORIGINAL].get();
    (hit.dir == REPLY && originator.src == answers.dst && originator.sport == answers.dport)
        .then_some(hit)
}
