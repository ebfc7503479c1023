// SPDX-License-Identifier: MIT OR Apache-2.0
//! The IPv4 packets of a capture, and what a host's neighbour expects of them.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use forwarder_testkit::packet::Packet;

use crate::capture::Capture;

/// Whether Docker gives an address to containers in these tests.
#[must_use]
pub fn is_private(address: Ipv4Addr) -> bool {
    address.octets()[0] == 172 && address.octets()[1] & 0xf0 == 16
}

impl Capture {
    /// Returns all packets that arrived at the device until now, or that its own namespace sent.
    ///
    /// # Errors
    /// The device has gone.
    pub fn packets(&self, outgoing: bool) -> Result<Vec<Packet>> {
        let frames = self.frames()?;
        let wanted = frames.iter().filter(|frame| frame.outgoing == outgoing);
        Ok(wanted.filter_map(|frame| self.packet(frame)).collect())
    }

    /// Checks what a host's neighbour expects: no packet that arrived has a container's source, not
    /// even as a quote's destination if the quoted packet was for a container; and all checksums
    /// are correct.
    ///
    /// Checksums of the host's own packets are complete only if its device does not offload them.
    ///
    /// # Errors
    /// The first packet that is wrong.
    pub fn audit(&self, checksums: bool) -> Result<()> {
        for packet in self.packets(false)? {
            let mut addresses = vec![packet.source(), packet.destination()];
            if let Some(quoted) = packet.quoted() {
                addresses.extend([quoted.source(), quoted.destination()]);
            }
            let leak = addresses.iter().any(|address| is_private(*address));
            ensure!(!leak, "a container's address leaves in {packet:?}");
            if checksums {
                packet.check()?;
            }
        }
        Ok(())
    }
}
