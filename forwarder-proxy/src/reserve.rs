// SPDX-License-Identifier: MIT OR Apache-2.0
//! The reservation of a port: no other program on the host can take the port, and the socket
//! answers nobody.
//!
//! It works like Docker 29's: the socket is bound, TCP also listens (so that the port shows as
//! taken and a second socket is refused), and a filter drops everything. A client that connects
//! before the mapping is programmed gets no answer and tries again, instead of a connection that
//! nobody serves.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use forwarder_protocol::Proto;
use nix::libc::{self, sock_filter, sock_fprog};
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, SockaddrStorage, bind, listen,
    setsockopt, shutdown, socket, sockopt,
};

use crate::args::Args;
use crate::dockerd::Listener;

/// `BPF_RET | BPF_K` with 0: drops every packet.
const DROP_ALL: sock_filter = sock_filter {
    code: 0x06,
    jt: 0,
    jf: 0,
    k: 0,
};

/// `SO_ATTACH_FILTER`.
#[derive(Clone, Copy, Debug)]
struct AttachFilter;

nix::setsockopt_impl!(
    AttachFilter,
    libc::SOL_SOCKET,
    libc::SO_ATTACH_FILTER,
    sock_fprog,
    nix::sys::socket::sockopt::SetStruct<'_, sock_fprog>
);

/// A reserved port, until it is dropped.
pub(crate) enum Reservation {
    /// Reserved by a socket of our own.
    Own(OwnedFd),
    /// Reserved by the socket that dockerd bound.
    Handed(Option<Listener>),
}

impl Reservation {
    /// Reserves the port.
    pub(crate) fn make(args: &Args) -> io::Result<Self> {
        let stream = args.binding.proto == Proto::Tcp;
        if args.listen_fd {
            let listener = Listener::inherited()?;
            silence(listener.socket(), stream)?;
            return Ok(Self::Handed(Some(listener)));
        }
        let kind = if stream {
            SockType::Stream
        } else {
            SockType::Datagram
        };
        let own = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None)?;
        if stream {
            // Recently closed connections do not prevent the bind.
            setsockopt(&own, sockopt::ReuseAddr, &true)?;
        }
        let address = SocketAddr::new(args.binding.host_ip, args.binding.host_port);
        bind(own.as_raw_fd(), &SockaddrStorage::from(address))?;
        silence(&own, stream)?;
        Ok(Self::Own(own))
    }

    /// Returns the socket that holds the port, if there is one.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Own(socket) => Some(socket.as_fd()),
            Self::Handed(listener) => listener.as_ref().map(|held| held.socket().as_fd()),
        }
    }

    /// Prepares the reservation for the time after dockerd's death. A new dockerd that binds its
    /// ports itself (28 and later) must be able to bind. So of dockerd's socket only what does not
    /// prevent another bind stays.
    pub(crate) fn outlive_dockerd(&mut self) {
        let Self::Handed(listener) = self else { return };
        let bound = listener.as_ref().is_some_and(|listener| {
            shutdown(listener.socket().as_raw_fd(), Shutdown::Read).is_ok()
        });
        if !bound {
            *listener = None;
        }
    }
}

fn silence(socket: &OwnedFd, stream: bool) -> io::Result<()> {
    let mut program = [DROP_ALL];
    let filter = sock_fprog {
        len: 1,
        filter: program.as_mut_ptr(),
    };
    setsockopt(socket, AttachFilter, &filter)?;
    if stream {
        listen(socket, Backlog::new(1)?)?;
    }
    Ok(())
}
