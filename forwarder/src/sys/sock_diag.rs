// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's list of sockets, and closing sockets (`sock_diag(7)`, `SOCK_DESTROY`).

use std::net::IpAddr;

use anyhow::{Context, Result};
use forwarder_common::abi::{Peer, SocketKey};
use forwarder_common::family::{Address as _, Be16, Be32, Be128};
use forwarder_common::wire::proto;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_packet_sock_diag::{AF_INET, AF_INET6, SockDiagDestroy, SockDiagMessage};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP};
use rustix::io::Errno;

use super::netlink::{Requests, protocols};

/// A connected socket of this network namespace.
pub(crate) struct Connected {
    family: u8,
    proto: u8,
    id: SocketId,
}

impl Connected {
    /// Returns the socket programs' key of this socket.
    pub(crate) fn key(&self) -> SocketKey {
        let [low, high] = bytemuck::cast::<_, [u32; 2]>(self.id.cookie).map(u64::from);
        SocketKey {
            cookie: low | high << 32,
            peer: Peer {
                addr: match self.id.destination_address {
                    IpAddr::V4(addr) => Be32::from_octets(addr.octets()).widen(),
                    IpAddr::V6(addr) => Be128::from_octets(addr.octets())
                        .words()
                        .map(Be32::from_word),
                },
                port: Be16::new(self.id.destination_port),
                proto: u16::from(self.proto),
            },
            reserved: 0,
        }
    }

    /// Builds a request about this socket, or about all connected ones of its kind.
    fn request(&self) -> SockDiagMessage {
        // All states of a socket that has a peer and an owner.
        let states = StateFlags::all()
            .difference(StateFlags::TIME_WAIT | StateFlags::CLOSE | StateFlags::LISTEN);
        SockDiagMessage::InetRequest(InetRequest {
            family: self.family,
            protocol: self.proto,
            extensions: ExtensionFlags::empty(),
            states,
            socket_id: self.id.clone(),
        })
    }
}

/// A netlink socket for `sock_diag` requests.
pub(crate) struct SockDiag(Requests);

impl SockDiag {
    pub(crate) fn open() -> Result<Self> {
        let requests = Requests::open(protocols::NETLINK_SOCK_DIAG);
        Ok(Self(requests.context("cannot ask the kernel for sockets")?))
    }

    /// Returns all connected sockets, TCP and UDP of both families.
    pub(crate) fn connected(&self) -> Result<Vec<Connected>> {
        let mut all = Vec::new();
        for kind in KINDS {
            let (any, mut found) = (any(kind), Vec::new());
            let listed = self.0.ask(any.request(), NLM_F_DUMP, |answer| {
                if let SockDiagMessage::InetResponse(socket) = answer {
                    let id = socket.header.socket_id;
                    found.push(Connected { id, ..any });
                }
            });
            // A kernel without IPv6 has no list of IPv6 sockets.
            match listed {
                Err(Errno::NOENT) => {}
                other => other
                    .map(|()| all.append(&mut found))
                    .context("cannot list sockets")?,
            }
        }
        Ok(all)
    }

    /// Closes a socket: its owner gets `ECONNABORTED`. Does nothing if the socket has gone.
    ///
    /// # Errors
    /// `EOPNOTSUPP` if the kernel cannot do it (`CONFIG_INET_DIAG_DESTROY`).
    pub(crate) fn destroy(&self, socket: &Connected) -> Result<(), Errno> {
        let request = SockDiagDestroy::new(socket.request());
        match self.0.ask(request, NLM_F_ACK, |_: SockDiagMessage| {}) {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    }
}

/// The kinds of sockets: family and protocol.
const KINDS: [(u8, u8); 4] = [
    (AF_INET, proto::TCP as u8),
    (AF_INET, proto::UDP as u8),
    (AF_INET6, proto::TCP as u8),
    (AF_INET6, proto::UDP as u8),
];

/// Returns a socket whose id is zero, which stands for all sockets of its kind, and as one socket
/// does not exist.
fn any((family, proto): (u8, u8)) -> Connected {
    let id = if family == AF_INET {
        SocketId::new_v4()
    } else {
        SocketId::new_v6()
    };
    Connected { family, proto, id }
}

/// Whether this kernel can close sockets; `None` if it does not say. Asks it to close a socket that
/// does not exist.
#[must_use]
pub(crate) fn can_end_sockets() -> Option<bool> {
    match SockDiag::open().ok()?.destroy(&any(KINDS[0])) {
        Ok(()) => Some(true),
        Err(Errno::OPNOTSUPP) => Some(false),
        Err(_) => None,
    }
}
