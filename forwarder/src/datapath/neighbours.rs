// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's neighbour entries of containers: what waits in one for its owner is not the next
//! owner's.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::{Handle, new_connection};

use crate::watch::sandbox::Background;

/// Lets go of what the kernel knows of an address behind a bridge, and of the packets that it holds
/// back until somebody there answers (`arp_queue`, for seconds). An administrator's own entry stays.
///
/// # Errors
/// The kernel refuses.
pub(super) async fn forget(bridge: u32, address: Ipv4Addr) -> Result<()> {
    let (connection, handle, _) = new_connection().context("cannot open a netlink socket")?;
    let _answers = Background::spawn(connection);
    let Some(entry) = find(&handle, bridge, address).await? else {
        return Ok(());
    };
    if entry.header.state == NeighbourState::Permanent {
        return Ok(());
    }
    match handle.neighbours().del(entry).execute().await {
        // It was quicker than we.
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -GONE => Ok(()),
        other => other.with_context(|| format!("cannot forget the neighbour {address}")),
    }
}

/// `ENOENT`.
const GONE: i32 = rustix::io::Errno::NOENT.raw_os_error();

async fn find(handle: &Handle, bridge: u32, address: Ipv4Addr) -> Result<Option<NeighbourMessage>> {
    let all = handle.neighbours().get();
    let mut dump = Box::pin(all.set_address_family(AddressFamily::Inet).execute());
    let destination = NeighbourAttribute::Destination(NeighbourAddress::from(IpAddr::V4(address)));
    while let Some(entry) = dump.try_next().await.context("cannot list neighbours")? {
        if entry.header.ifindex == bridge && entry.attributes.contains(&destination) {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}
