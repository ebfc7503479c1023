// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's neighbour entries of containers: packets that wait for the owner of an address must
//! not reach the next owner.

use std::net::IpAddr;

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};

use crate::sys::netlink::Route;

/// Deletes the kernel's neighbour entry of an address behind a bridge, and with it the packets that
/// wait there for an answer (`arp_queue`, for seconds). An entry that the administrator added
/// stays.
///
/// # Errors
/// The kernel refuses.
pub(super) async fn forget(bridge: u32, address: IpAddr) -> Result<()> {
    let route = Route::open()?;
    let Some(entry) = find(&route, bridge, address).await? else {
        return Ok(());
    };
    if entry.header.state == NeighbourState::Permanent {
        return Ok(());
    }
    match route.neighbours().del(entry).execute().await {
        // The kernel has removed the entry in the meantime.
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -GONE => Ok(()),
        other => other.with_context(|| format!("cannot delete the neighbour entry of {address}")),
    }
}

/// `ENOENT`.
const GONE: i32 = rustix::io::Errno::NOENT.raw_os_error();

async fn find(route: &Route, bridge: u32, address: IpAddr) -> Result<Option<NeighbourMessage>> {
    let family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let all = route.neighbours().get();
    let mut dump = Box::pin(all.set_address_family(family).execute());
    let destination = NeighbourAttribute::Destination(NeighbourAddress::from(address));
    while let Some(entry) = dump.try_next().await.context("cannot list neighbours")? {
        if entry.header.ifindex == bridge && entry.attributes.contains(&destination) {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}
