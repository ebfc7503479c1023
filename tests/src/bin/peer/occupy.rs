// SPDX-License-Identifier: MIT OR Apache-2.0
//! `occupy`: binds every port of a range.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};

use anyhow::{Context as _, Result};

pub(crate) fn occupy(first: u16, last: u16) -> Result<()> {
    let (mut sockets, mut refused) = (Vec::new(), 0);
    for port in first..=last {
        match UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)) {
            Ok(socket) => sockets.push(socket),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => refused += 1,
            // The port is already in use.
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(error).with_context(|| format!("cannot bind port {port}")),
        }
    }
    println!("bound {} refused {refused}", sockets.len());
    loop {
        std::thread::park();
    }
}
