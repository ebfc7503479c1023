// SPDX-License-Identifier: MIT OR Apache-2.0
//! The cookie of our network namespace, by which the socket programs recognise its sockets.

use std::os::fd::AsFd;

use anyhow::{Context, Result};
use nix::sys::socket::getsockopt;
use nix::{getsockopt_impl, libc, sockopt_impl};
use rustix::net::{AddressFamily, SocketType};

sockopt_impl!(
    /// `SO_NETNS_COOKIE`, since Linux 5.14.
    NetnsCookie,
    GetOnly,
    libc::SOL_SOCKET,
    libc::SO_NETNS_COOKIE,
    u64
);

/// Returns the kernel's identifier of our network namespace; never 0, never reused.
///
/// # Errors
/// The kernel is older than 5.14.
pub fn netns_cookie() -> Result<u64> {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
    netns_cookie_of(&socket)
}

/// Returns the kernel's identifier of the network namespace that a socket belongs to.
///
/// # Errors
/// As [`netns_cookie`].
pub fn netns_cookie_of(socket: impl AsFd) -> Result<u64> {
    getsockopt(&socket.as_fd(), NetnsCookie)
        .context("the kernel has no cookies of network namespaces (Linux 5.14 or later is needed)")
}
