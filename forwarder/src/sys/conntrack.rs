// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's connection tracking: its list of connections, and connections that are handed to it
//! (ctnetlink, `ctnetlink_create_conntrack`).

use std::net::IpAddr;

use anyhow::{Context, Result};
use forwarder_common::abi::Tuple;
use forwarder_common::family::{Be16, Be32, V4};
use forwarder_common::tracking::tcp::State;
use forwarder_common::wire::proto;
use forwarder_state::address::WireAddress as _;
use forwarder_state::connections::Connection;
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoInfo, ProtoInfoTCP, ProtoTuple, Protocol,
    Status, TCPFlags, Tuple as TupleAttribute,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use rtnetlink::packet_core::{
    DefaultNla, Emitable as _, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NetlinkPayload,
    Nla as _,
};
use rtnetlink::sys::Socket;
use rustix::io::Errno;
use rustix::net::sockopt;

use super::netlink::{self, Requests, protocols};

/// Attributes that the library does not name: the translation of source and destination, and parts
/// of them (`enum ctattr_type`, `ctattr_nat`, `ctattr_protonat`).
const CTA_NAT_SRC: u16 = 6;
const CTA_NAT_DST: u16 = 13;
const CTA_NAT_V4_MINIP: u16 = 1;
const CTA_NAT_V4_MAXIP: u16 = 2;
const CTA_NAT_PROTO: u16 = 3;
const CTA_PROTONAT_PORT_MIN: u16 = 1;
const CTA_PROTONAT_PORT_MAX: u16 = 2;
const NLA_F_NESTED: u16 = 1 << 15;
/// Attributes of a query of ICMP (`enum ctattr_l4proto`).
const CTA_PROTO_ICMP_ID: u16 = 4;
const CTA_PROTO_ICMP_TYPE: u16 = 5;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
/// Connections whose packets the kernel changes in other ways than by addresses and ports, that it
/// reads, or that are about to end.
const CHANGED_BY_OTHERS: Status = Status::SeqAdjust
    .union(Status::Helper)
    .union(Status::Offload)
    .union(Status::Dying);
/// Attributes of connections whose addresses and ports alone do not tell them (`CTA_ZONE`), or whose
/// sequence numbers the kernel changes (`CTA_SEQ_ADJ_ORIG`, `CTA_SEQ_ADJ_REPLY`, `CTA_SYNPROXY`).
const IN_PART: [u16; 4] = [18, 15, 16, 24];
/// Sequence numbers outside of the window are accepted (`IP_CT_TCP_FLAG_BE_LIBERAL`): the kernel has
/// not seen the connection's windows.
const BE_LIBERAL: u8 = 8;
/// The highest acknowledgement is known, and a reset must not be older
/// (`IP_CT_TCP_FLAG_MAXACK_SET`).
const MAXACK_SET: u8 = 0x20;
/// There is data that was not acknowledged yet, so that the connection ends soon
/// (`IP_CT_TCP_FLAG_DATA_UNACKNOWLEDGED`).
const DATA_UNACKNOWLEDGED: u8 = 0x10;
/// The size in bytes of the buffer for what the kernel tells.
const RECEIVE_BUFFER: usize = 8 << 20;

/// What connection tracking is told about a connection besides its addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// The state of a TCP connection.
    pub(crate) tcp: State,
    /// Whether both ends have sent something.
    pub(crate) is_replied: bool,
    /// Whether the connection may not be given up while the table is full.
    pub(crate) is_assured: bool,
    /// After how many seconds without a packet the connection ends.
    pub(crate) timeout: u32,
}

/// A connection as the kernel tells of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tracked {
    /// Its addresses and ports.
    pub(crate) connection: Connection<V4>,
    /// Whether it is open and assured: both ends exist, and it is not about to end.
    pub(crate) is_settled: bool,
}

/// A netlink socket for connection tracking in the network namespace of the thread.
pub(crate) struct Conntrack(Requests);

impl Conntrack {
    pub(crate) fn open() -> Result<Self> {
        let requests = Requests::open(protocols::NETLINK_NETFILTER);
        Ok(Self(
            requests.context("cannot ask the kernel for connections")?,
        ))
    }

    /// Returns all IPv4 connections; none if the kernel does not track connections.
    pub(crate) fn list(&self) -> Result<Vec<Tracked>> {
        let mut all = Vec::new();
        let request = message(ConntrackMessage::Get(Vec::new()));
        let listed = self.0.ask(request, NLM_F_DUMP, |answer: NetfilterMessage| {
            if let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) =
                answer.inner
            {
                all.extend(parse(&attributes));
            }
        });
        match listed {
            // Without nf_conntrack_netlink nothing is listed.
            Err(Errno::OPNOTSUPP | Errno::INVAL) => Ok(Vec::new()),
            other => other.map(|()| all).context("cannot list connections"),
        }
    }

    /// Makes the kernel accept what it does not expect of a connection of TCP, whose segments pass it
    /// by in part: neither sequence numbers outside of a window nor a reset that acknowledges less
    /// than it has seen is invalid. Sets after how many seconds without a packet the connection ends,
    /// if it is given. Returns whether the kernel still tracks the connection.
    pub(crate) fn set_liberal(
        &self,
        connection: &Connection<V4>,
        timeout: Option<u32>,
    ) -> Result<bool> {
        let mut attributes = vec![
            ConntrackAttribute::CtaTupleOrig(parts(&connection.original)),
            liberal(Vec::new()),
        ];
        attributes.extend(timeout.map(ConntrackAttribute::CtaTimeout));
        let request = message(ConntrackMessage::New(attributes));
        match self.0.ask(request, NLM_F_ACK, |_: NetfilterMessage| {}) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error).context("the kernel does not make a connection liberal"),
        }
    }

    /// Makes the kernel track and translate a connection from now on. Does nothing if the kernel
    /// tracks it already.
    pub(crate) fn track(&self, connection: &Connection<V4>, terms: Terms) -> Result<()> {
        let request = message(ConntrackMessage::New(attributes(connection, terms)));
        let flags = NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK;
        match self.0.ask(request, flags, |_: NetfilterMessage| {}) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error).context("the kernel does not take over a connection"),
        }
    }
}

/// Opens a socket that hears of changes of connections (`NFNLGRP_CONNTRACK_UPDATE`). Reading from it
/// does not wait.
pub(crate) fn subscribe() -> std::io::Result<Socket> {
    const UPDATE: u32 = 1 << 1;
    let socket = netlink::subscribe(protocols::NETLINK_NETFILTER, UPDATE)?;
    sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER)?;
    Ok(socket)
}

/// Returns the connections that a datagram tells of.
pub(crate) fn tracked(datagram: &[u8]) -> Vec<Tracked> {
    let messages = netlink::messages::<NetfilterMessage>(datagram);
    let told = messages.filter_map(|message| match message {
        NetlinkPayload::InnerMessage(NetfilterMessage {
            inner: NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)),
            ..
        }) => parse(&attributes),
        _ => None,
    });
    told.collect()
}

fn message(inner: ConntrackMessage) -> NetfilterMessage {
    NetfilterMessage::new(
        NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0),
        inner,
    )
}

/// Returns the connection in the kernel's attributes; none if it is of no kind that flows have.
fn parse(attributes: &[ConntrackAttribute]) -> Option<Tracked> {
    let mut connection = (None, None);
    let (mut is_assured, mut is_established, mut is_plain) = (false, false, true);
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(parts) => connection.0 = tuple(parts),
            ConntrackAttribute::CtaTupleReply(parts) => connection.1 = tuple(parts),
            ConntrackAttribute::CtaStatus(status) => {
                is_assured = status.contains(Status::Assured);
                is_plain &= !status.intersects(CHANGED_BY_OTHERS);
            }
            ConntrackAttribute::CtaProtoInfo(infos) => is_established = infos.iter().any(is_open),
            ConntrackAttribute::Other(other) => is_plain &= !IN_PART.contains(&other.kind()),
            _ => {}
        }
    }
    let connection = Connection {
        original: connection.0?,
        reply: connection.1?,
    };
    let is_open = connection.original.proto != proto::TCP || is_established;
    Some(Tracked {
        connection,
        is_settled: is_assured && is_open && is_plain,
    })
}

/// Whether a connection of TCP is open in both directions.
fn is_open(info: &ProtoInfo) -> bool {
    let ProtoInfo::TCP(parts) = info else {
        return false;
    };
    let mut parts = parts.iter();
    parts.any(|part| *part == ProtoInfoTCP::State(State::Established as u8))
}

fn tuple(parts: &[TupleAttribute]) -> Option<Tuple<V4>> {
    let mut tuple = Tuple::default();
    let mut query = (None, None);
    for part in parts {
        match part {
            TupleAttribute::Ip(addresses) => {
                for address in addresses {
                    match address {
                        IPTuple::SourceAddress(source) => tuple.src = Be32::of(*source)?,
                        IPTuple::DestinationAddress(to) => tuple.dst = Be32::of(*to)?,
                        _ => {}
                    }
                }
            }
            TupleAttribute::Proto(numbers) => {
                for number in numbers {
                    match number {
                        ProtoTuple::Protocol(protocol) => tuple.proto = u8::from(*protocol).into(),
                        ProtoTuple::SourcePort(port) => tuple.sport = Be16::new(*port),
                        ProtoTuple::DestinationPort(port) => tuple.dport = Be16::new(*port),
                        ProtoTuple::Other(other) => {
                            let mut value = vec![0; other.value_len()];
                            other.emit_value(&mut value);
                            match (other.kind(), value.as_slice()) {
                                (CTA_PROTO_ICMP_ID, &[high, low]) => {
                                    query.0 = Some(u16::from_be_bytes([high, low]));
                                }
                                (CTA_PROTO_ICMP_TYPE, &[kind]) => query.1 = Some(kind),
                                _ => {}
                            }
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    // A flow has a query's identifier in the place of the port on the side that asks.
    match query {
        (Some(id), Some(ECHO_REQUEST)) => tuple.sport = Be16::new(id),
        (Some(id), Some(ECHO_REPLY)) => tuple.dport = Be16::new(id),
        (None, None) => {}
        _ => return None,
    }
    Some(tuple)
}

fn attributes(connection: &Connection<V4>, terms: Terms) -> Vec<ConntrackAttribute> {
    let Connection { original, .. } = connection;
    let mut status = Status::Confirmed;
    status.set(Status::SeenReply, terms.is_replied);
    status.set(Status::Assured, terms.is_assured);
    let mut attributes = vec![
        ConntrackAttribute::CtaTupleOrig(parts(original)),
        // The kernel derives the translated reply from the translations below.
        ConntrackAttribute::CtaTupleReply(parts(&original.reversed())),
        ConntrackAttribute::CtaStatus(status),
        ConntrackAttribute::CtaTimeout(terms.timeout),
    ];
    if original.proto == proto::TCP {
        attributes.push(liberal(vec![ProtoInfoTCP::State(terms.tcp as u8)]));
    }
    let translations = [
        (CTA_NAT_SRC, connection.source()),
        (CTA_NAT_DST, connection.destination()),
    ];
    for (kind, to) in translations {
        attributes.extend(to.map(|to| ConntrackAttribute::Other(translation(kind, to))));
    }
    attributes
}

/// Builds the attribute of a TCP connection whose windows the kernel does not know.
fn liberal(mut info: Vec<ProtoInfoTCP>) -> ConntrackAttribute {
    // The flags, and which of them are set or cleared.
    if let Ok(flags) = TCPFlags::parse(&[BE_LIBERAL, BE_LIBERAL | MAXACK_SET | DATA_UNACKNOWLEDGED])
    {
        info.push(ProtoInfoTCP::OriginalFlags(flags.clone()));
        info.push(ProtoInfoTCP::ReplyFlags(flags));
    }
    ConntrackAttribute::CtaProtoInfo(vec![ProtoInfo::TCP(info)])
}

/// Builds the attributes of a tuple.
fn parts(tuple: &Tuple<V4>) -> Vec<TupleAttribute> {
    vec![
        TupleAttribute::Ip(vec![
            IPTuple::SourceAddress(IpAddr::from(tuple.src.octets())),
            IPTuple::DestinationAddress(IpAddr::from(tuple.dst.octets())),
        ]),
        TupleAttribute::Proto(vec![
            ProtoTuple::Protocol(Protocol::from(tuple.proto as u8)),
            ProtoTuple::SourcePort(tuple.sport.get()),
            ProtoTuple::DestinationPort(tuple.dport.get()),
        ]),
    ]
}

/// Builds the attribute of a translation to exactly one address and port.
fn translation(kind: u16, (address, port): (Be32, u16)) -> DefaultNla {
    let bounds =
        |kinds: [u16; 2], value: &[u8]| kinds.map(|kind| DefaultNla::new(kind, value.to_vec()));
    let ports = bounds(
        [CTA_PROTONAT_PORT_MIN, CTA_PROTONAT_PORT_MAX],
        &port.to_be_bytes(),
    );
    let [first, last] = bounds([CTA_NAT_V4_MINIP, CTA_NAT_V4_MAXIP], &address.octets());
    let ports = DefaultNla::new(CTA_NAT_PROTO | NLA_F_NESTED, emit(&ports));
    DefaultNla::new(kind | NLA_F_NESTED, emit(&[first, last, ports]))
}

fn emit(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}
