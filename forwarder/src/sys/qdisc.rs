// SPDX-License-Identifier: MIT OR Apache-2.0
//! The clsact qdisc of a device, which holds filters for packets that arrive or leave.

use anyhow::Result;
use futures_util::TryStreamExt;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle};
use rustix::io::Errno;

use super::netlink::Route;

/// Removes the clsact qdisc of a device, unless somebody has filters there. Does nothing if the
/// qdisc or the device has gone.
///
/// # Errors
/// The kernel refuses.
pub(crate) async fn remove_clsact(index: u32) -> Result<()> {
    let (route, index) = (Route::open()?, i32::try_from(index)?);
    let filters = || route.traffic_filter(index).get();
    for filters in [filters().ingress(), filters().egress()] {
        if is_gone(Box::pin(filters.execute()).try_next().await)?
            .flatten()
            .is_some()
        {
            return Ok(());
        }
    }
    let mut request = route.qdisc().del(index);
    let message = request.message_mut();
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle {
        minor: 0,
        ..TcHandle::CLSACT
    };
    let kind = TcAttribute::Kind("clsact".to_owned());
    message.attributes.push(kind);
    is_gone(request.execute().await)?;
    Ok(())
}

/// Returns none if the error says that the object has gone.
fn is_gone<T>(done: Result<T, rtnetlink::Error>) -> Result<Option<T>, rtnetlink::Error> {
    match done {
        Err(rtnetlink::Error::NetlinkError(error))
            if [Errno::NOENT, Errno::NODEV]
                .iter()
                .any(|errno| error.raw_code() == -errno.raw_os_error()) =>
        {
            Ok(None)
        }
        other => other.map(Some),
    }
}
