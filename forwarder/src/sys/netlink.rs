// SPDX-License-Identifier: MIT OR Apache-2.0
//! Netlink of any protocol: dumps of all objects of a kind, and notifications of groups.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto,
    socket_with,
};

// linux/netlink.h.
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 1;
const DUMP: u16 = 0x300;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;

fn open(protocol: Option<Protocol>) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC;
    socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)
}

/// Opens a socket that receives the notifications of groups, given as a mask.
pub(crate) fn subscribe(protocol: Option<Protocol>, groups: u32) -> Result<OwnedFd, Errno> {
    let socket = open(protocol)?;
    bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    Ok(socket)
}

/// Returns the kernel's answers to a dump request for which `read` returns a value. A kernel that
/// does not know the request has no such objects.
pub(crate) fn dump<T>(
    protocol: Option<Protocol>,
    kind: u16,
    request: &[u8],
    read: impl Fn(&[u8]) -> Option<T>,
) -> Vec<T> {
    let mut all = Vec::new();
    if let Err(error) = ask(protocol, kind, request, |body| all.extend(read(body))) {
        tracing::debug!("no answer to netlink request {kind} of {protocol:?}: {error}");
    }
    all
}

fn ask(
    protocol: Option<Protocol>,
    kind: u16,
    request: &[u8],
    mut take: impl FnMut(&[u8]),
) -> Result<(), Errno> {
    let socket = open(protocol)?;
    let mut message = Vec::with_capacity(HEADER + request.len());
    message.extend(((HEADER + request.len()) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((REQUEST | DUMP).to_ne_bytes());
    // There is one request at a time, so sequence numbers are not needed.
    message.extend([0; 8]);
    message.extend(request);
    let kernel = SocketAddrNetlink::new(0, 0);
    sendto(&socket, &message, SendFlags::empty(), &kernel)?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let (length, _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..length];
        while let Some((kind, body, next)) = first(rest) {
            match kind {
                DONE => return Ok(()),
                ERROR => {
                    let code = body
                        .first_chunk()
                        .map_or(0, |code| i32::from_ne_bytes(*code));
                    return Err(Errno::from_raw_os_error(-code));
                }
                _ => take(body),
            }
            rest = next;
        }
    }
}

/// Returns the first message's type and body, and the bytes after it.
fn first(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let body = bytes.get(HEADER..length)?;
    // Messages begin at multiples of four bytes.
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, body, next))
}
