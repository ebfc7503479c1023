// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reassembly of fragments: the kernel's own defragmentation, and the device that whole datagrams
//! return through.
//!
//! A netfilter program switches on defragmentation in our network namespace (Linux 6.6); the
//! program itself accepts every packet. Its link is pinned, and the device and its route do not
//! need an agent, so all of it outlives the agent.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use forwarder_state::desired_state::DEFRAG_LOOPBACK;
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{LinkBridge, LinkUnspec, RouteMessageBuilder};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, netdevice};

use super::defrag;
use super::pins::Pins;
use crate::sys::netlink::Route;

/// The maximum length of a datagram.
const MTU: u32 = 65_535;

/// Whether the kernel can reassemble datagrams for us.
#[must_use]
pub fn can_reassemble() -> bool {
    defrag::is_possible()
}

/// Switches defragmentation on and creates the device, as far as they are missing.
///
/// # Errors
/// The kernel cannot do one of these. Then fragments that need translation are dropped.
pub async fn make_defrag_loopback(bpffs_dir: &Path) -> Result<()> {
    let pins = Pins::below(bpffs_dir);
    pins.make()?;
    defrag::switch_on(&pins.defrag())?;
    let kernel = Route::open()?;
    if find()?.is_none() {
        let device = LinkBridge::new(DEFRAG_LOOPBACK).mtu(MTU).arp(false).build();
        let added = kernel.link().add(device).execute().await;
        added.with_context(|| format!("cannot create the device {DEFRAG_LOOPBACK}"))?;
        // The device must not send packets of its own. Without IPv6 in the kernel there is nothing
        // to disable.
        let _ = fs::write(
            format!("/proc/sys/net/ipv6/conf/{DEFRAG_LOOPBACK}/disable_ipv6"),
            "1",
        );
    }
    let Some(index) = find()? else {
        bail!("the device {DEFRAG_LOOPBACK} has gone");
    };
    let up = LinkUnspec::new_with_index(index).up().build();
    let done = kernel.link().set(up).execute().await;
    done.with_context(|| format!("cannot set {DEFRAG_LOOPBACK} up"))?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(Ipv4Addr::UNSPECIFIED, 8)
        .output_interface(index)
        .scope(RouteScope::Link)
        .build();
    let added = kernel.route().add(route).replace().execute().await;
    added.with_context(|| format!("cannot add the route 0.0.0.0/8 to {DEFRAG_LOOPBACK}"))
}

/// Removes the device. Defragmentation ends with the removal of its pin.
pub(super) async fn remove() -> Result<()> {
    let Some(index) = find()? else {
        return Ok(());
    };
    let kernel = Route::open()?;
    let gone = kernel.link().del(index).execute().await;
    gone.with_context(|| format!("cannot remove the device {DEFRAG_LOOPBACK}"))
}

/// Whether the device exists.
pub(super) fn is_there() -> Result<bool> {
    Ok(find()?.is_some())
}

/// Returns the device's index, if it exists.
fn find() -> Result<Option<u32>> {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
    match netdevice::name_to_index(socket, DEFRAG_LOOPBACK) {
        Ok(index) => Ok(Some(index)),
        Err(Errno::NODEV) => Ok(None),
        Err(error) => {
            Err(error).with_context(|| format!("cannot look for the device {DEFRAG_LOOPBACK}"))
        }
    }
}
