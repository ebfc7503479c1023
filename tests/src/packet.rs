// SPDX-License-Identifier: MIT OR Apache-2.0
//! A raw socket on one device, for frames as they are on the wire.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvfrom, sendto,
    setsockopt, socket, sockopt,
};

/// Room for the largest packet that segmentation offload passes around, and its headers.
const FRAME: usize = 64 * 1024 + 256;
/// The receive buffer: enough for what a test sends while nobody reads.
const BUFFER: usize = 32 << 20;
/// `PACKET_OUTGOING`: the frame was sent by this namespace.
const OUTGOING: u8 = 4;
/// `ARPHRD_NONE`: a device whose packets begin with their IP header.
const HEADERLESS: u16 = 0xfffe;

/// A packet socket bound to a device of the namespace in which it was opened.
pub struct PacketSocket {
    fd: OwnedFd,
    device: LinkAddr,
    buffer: Vec<u8>,
}

impl PacketSocket {
    /// Opens a socket on a device of the current network namespace; needs root.
    ///
    /// # Errors
    /// There is no such device or the user has no permission.
    pub fn open(device: &str) -> Result<Self> {
        let address = getifaddrs()?
            .filter(|interface| interface.interface_name == device)
            .find_map(|interface| interface.address?.as_link_addr().copied())
            .with_context(|| format!("this namespace has no device {device}"))?;
        let fd = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::EthAll,
        )
        .context("cannot open a packet socket: run as root")?;
        setsockopt(&fd, sockopt::RcvBufForce, &BUFFER)?;
        bind(fd.as_raw_fd(), &address).with_context(|| format!("cannot bind to {device}"))?;
        Ok(Self {
            fd,
            device: address,
            buffer: vec![0; FRAME],
        })
    }

    /// Whether the device's packets begin with a link header.
    #[must_use]
    pub fn has_link_header(&self) -> bool {
        self.device.hatype() != HEADERLESS
    }

    /// Sends a frame, link header included.
    ///
    /// # Errors
    /// The device does not accept it.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        sendto(self.fd.as_raw_fd(), frame, &self.device, MsgFlags::empty())
            .with_context(|| format!("cannot send a frame of {} bytes", frame.len()))?;
        Ok(())
    }

    /// Returns the next waiting frame, and whether this namespace sent it; `None` if none waits.
    ///
    /// # Errors
    /// The device has gone.
    pub fn receive(&mut self) -> Result<Option<(&[u8], bool)>> {
        match recvfrom::<LinkAddr>(self.fd.as_raw_fd(), &mut self.buffer) {
            Ok((length, from)) => {
                let outgoing = from.is_some_and(|from| from.pkttype() == OUTGOING);
                Ok(Some((&self.buffer[..length], outgoing)))
            }
            Err(Errno::EAGAIN) => Ok(None),
            Err(error) => Err(error).context("cannot read from the packet socket"),
        }
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
