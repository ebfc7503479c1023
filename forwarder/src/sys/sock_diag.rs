// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's list of sockets, and closing sockets (`sock_diag(7)`, `SOCK_DESTROY`).

use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use forwarder_common::abi::{Peer, SocketKey};
use forwarder_common::family::{Address as _, Be16, Be32, Wide};
use forwarder_common::wire::proto;
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};

// linux/netlink.h and linux/sock_diag.h.
const ERROR: u16 = 2;
const DONE: u16 = 3;
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;

const INET: u8 = AddressFamily::INET.as_raw() as u8;
const INET6: u8 = AddressFamily::INET6.as_raw() as u8;
/// The size of `struct inet_diag_sockid`, which identifies a socket. It is at the same offset in
/// requests and answers.
const ID: usize = 48;
/// The offset of `struct inet_diag_sockid`, and within it the peer's port, the peer's address, and
/// the cookie.
const ID_AT: usize = 4;
const PEER_PORT: usize = 2;
const PEER_ADDR: usize = 20;
const COOKIE: usize = 40;

/// All states of a socket that has a peer and an owner: from established to closing, except
/// `TCP_TIME_WAIT`, `TCP_CLOSE` and `TCP_LISTEN` (`net/tcp_states.h`).
const CONNECTED: u32 = {
    let (time_wait, close, listen) = (1 << 6, 1 << 7, 1 << 10);
    0b1111_1111_1110 & !(time_wait | close | listen)
};

/// A connected socket of this network namespace.
pub(crate) struct Connected {
    family: u8,
    proto: u8,
    id: [u8; ID],
}

impl Connected {
    /// Returns the socket programs' key of this socket.
    pub(crate) fn key(&self) -> SocketKey {
        let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|n| self.id[at + n]));
        let addr: Wide = [0, 4, 8, 12].map(|at| Be32::from_word(word(PEER_ADDR + at)));
        SocketKey {
            cookie: u64::from(word(COOKIE)) | u64::from(word(COOKIE + 4)) << 32,
            peer: Peer {
                addr: if self.family == INET {
                    addr[0].widen()
                } else {
                    addr
                },
                port: Be16::from_word(u16::from_ne_bytes([
                    self.id[PEER_PORT],
                    self.id[PEER_PORT + 1],
                ])),
                proto: u16::from(self.proto),
            },
            reserved: 0,
        }
    }
}

/// A netlink socket for `sock_diag` requests.
pub(crate) struct SockDiag(OwnedFd);

impl SockDiag {
    pub(crate) fn open() -> Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            Some(netlink::SOCK_DIAG),
        );
        Ok(Self(socket.context("cannot ask the kernel for sockets")?))
    }

    /// Returns all connected sockets, TCP and UDP of both families.
    pub(crate) fn connected(&self) -> Result<Vec<Connected>> {
        let mut all = Vec::new();
        for family in [INET, INET6] {
            for proto in [proto::TCP as u8, proto::UDP as u8] {
                self.ask(BY_FAMILY, DUMP, &question(family, proto, &[0; ID]))?;
                let listed = self.answers(|answer| {
                    let id = answer.get(ID_AT..ID_AT + ID)?.try_into().ok()?;
                    Some(Connected { family, proto, id })
                });
                // A kernel without IPv6 has no list of IPv6 sockets.
                match listed {
                    Err(Errno::NOENT) => {}
                    other => all.extend(other.context("cannot list sockets")?),
                }
            }
        }
        Ok(all)
    }

    /// Closes a socket: its owner gets `ECONNABORTED`. Does nothing if the socket has gone.
    ///
    /// # Errors
    /// `EOPNOTSUPP` if the kernel cannot do it (`CONFIG_INET_DIAG_DESTROY`).
    pub(crate) fn destroy(&self, socket: &Connected) -> Result<(), Errno> {
        self.destroy_named(socket.family, socket.proto, &socket.id)
    }

    fn destroy_named(&self, family: u8, proto: u8, id: &[u8; ID]) -> Result<(), Errno> {
        self.ask(DESTROY, ACK, &question(family, proto, id))?;
        match self.answers(|_| Some(())) {
            Ok(_) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn ask(&self, kind: u16, flags: u16, body: &[u8]) -> Result<(), Errno> {
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((REQUEST | flags).to_ne_bytes());
        // There is one request at a time, so sequence numbers are not needed.
        message.extend([0; 8]);
        message.extend(body);
        let kernel = SocketAddrNetlink::new(0, 0);
        sendto(&self.0, &message, SendFlags::empty(), &kernel).map(drop)
    }

    /// Returns the answers to the last request for which `read` returns a value.
    fn answers<T>(&self, read: impl Fn(&[u8]) -> Option<T>) -> Result<Vec<T>, Errno> {
        let mut all = Vec::new();
        let mut buffer = vec![0; 32 << 10];
        loop {
            let (length, _) = recv(&self.0, &mut buffer[..], RecvFlags::empty())?;
            let mut rest = &buffer[..length];
            while let Some((kind, body, next)) = message(rest) {
                match kind {
                    DONE => return Ok(all),
                    ERROR => {
                        let code = body
                            .first_chunk()
                            .map_or(0, |code| i32::from_ne_bytes(*code));
                        return match code {
                            0 => Ok(all),
                            code => Err(Errno::from_raw_os_error(-code)),
                        };
                    }
                    _ => all.extend(read(body)),
                }
                rest = next;
            }
        }
    }
}

/// Whether this kernel can close sockets; `None` if it does not say. Asks it to close a socket that
/// does not exist.
#[must_use]
pub(crate) fn can_end_sockets() -> Option<bool> {
    let kernel = SockDiag::open().ok()?;
    match kernel.destroy_named(INET, proto::TCP as u8, &[0; ID]) {
        Ok(()) => Some(true),
        Err(Errno::OPNOTSUPP) => Some(false),
        Err(_) => None,
    }
}

/// Builds a `struct inet_diag_req_v2`.
fn question(family: u8, proto: u8, id: &[u8; ID]) -> Vec<u8> {
    let mut body = vec![family, proto, 0, 0];
    body.extend(CONNECTED.to_ne_bytes());
    body.extend(id);
    body
}

/// Returns the first message's type and body, and the bytes after it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let body = bytes.get(HEADER..length)?;
    // Messages begin at multiples of four bytes.
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, body, next))
}
