// SPDX-License-Identifier: MIT OR Apache-2.0
//! Network namespaces: the cookie of ours; and others, as seen from ours: a container's namespace
//! number, the peer of its veth, its GRO switch.
//!
//! When a link leads to another namespace, the kernel numbers that namespace. With the number, a
//! socket of ours can read the peer, so the agent need not enter a container, except to turn its
//! GRO on or off.
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use futures_util::{StreamExt, TryStreamExt};
use nix::sys::socket::getsockopt;
use nix::{getsockopt_impl, libc, sockopt_impl};
use rtnetlink::Handle;
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};
use rustix::fs::FsWord;
use rustix::net::{AddressFamily, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::ethtool::Ethtool;
use super::netlink::Route;

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
pub(crate) fn netns_cookie() -> Result<u64> {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
    netns_cookie_of(&socket)
}

/// Returns the kernel's identifier of the network namespace that a socket belongs to.
///
/// # Errors
/// As [`netns_cookie`].
pub(crate) fn netns_cookie_of(socket: impl AsFd) -> Result<u64> {
    getsockopt(&socket.as_fd(), NetnsCookie)
        .context("the kernel has no cookies of network namespaces (Linux 5.14 or later is needed)")
}

/// Questions about other namespaces, over a connection in ours.
pub(crate) struct Namespaces(Route);

impl Namespaces {
    /// Opens the connection. Needs a tokio runtime.
    pub(crate) fn open() -> Result<Self> {
        Route::open().map(Self)
    }

    /// Returns the connection, for dumps of our own namespace.
    pub(crate) fn route(&self) -> &Route {
        &self.0
    }

    /// Returns the kernel's number for a namespace; none while no link of ours leads there.
    pub(crate) async fn id(&self, namespace: &impl AsFd) -> Option<i32> {
        let mut question = NsidMessage::default();
        question.attributes.push(NsidAttribute::Fd(
            u32::try_from(namespace.as_fd().as_raw_fd()).ok()?,
        ));
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(question));
        request.header.flags = NLM_F_REQUEST;
        let mut answers = Handle::clone(&self.0).request(request).ok()?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(message)) =
                answer.payload
            {
                return message
                    .attributes
                    .iter()
                    .find_map(|attribute| match attribute {
                        NsidAttribute::Id(id) if *id >= 0 => Some(*id),
                        _ => None,
                    });
            }
        }
        None
    }

    /// Returns a device of another namespace; none if it or the namespace has gone.
    pub(crate) async fn link(&self, netns: i32, index: u32) -> Option<LinkMessage> {
        let mut request = self.0.link().get().match_index(index);
        request
            .message_mut()
            .attributes
            .push(LinkAttribute::IfNetnsId(netns));
        let mut answers = Box::pin(request.execute());
        answers.try_next().await.ok().flatten()
    }
}

/// Opens a container's network namespace: by the sandbox's file, otherwise by the container's first
/// process.
///
/// The file is preferred, because the process id may have been reused. The file is of no use if the
/// agent does not share Docker's mounts.
pub(crate) fn open(sandbox_key: &str, pid: u32) -> Result<OwnedFd> {
    if let Some(file) = Some(sandbox_key)
        .filter(|key| !key.is_empty())
        .and_then(|key| File::open(key).ok())
        && rustix::fs::fstatfs(&file).is_ok_and(|fs| fs.f_type == NSFS_MAGIC)
    {
        return Ok(file.into());
    }
    if pid == 0 {
        bail!("the container is not running");
    }
    let path = format!("/proc/{pid}/ns/net");
    Ok(File::open(&path)
        .with_context(|| format!("cannot open {path}"))?
        .into())
}

/// `NSFS_MAGIC` of linux/magic.h: distinguishes a namespace's file from the empty file under a
/// mount that is not visible.
const NSFS_MAGIC: FsWord = 0x6e73_6673;

/// Turns GRO of a device inside `namespace` on or off (a veth accepts redirected XDP frames only
/// while it is on); returns the previous state.
pub(crate) async fn set_gro(namespace: OwnedFd, index: u32, on: bool) -> Result<bool> {
    inside(namespace, move || Ethtool::open()?.set_gro(index, on)).await
}

/// Runs `work` on its own thread inside `namespace`. The thread ends with the work, because no
/// thread of tokio's may return from another namespace.
async fn inside<T: Send + 'static>(
    namespace: OwnedFd,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (answer, result) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("netns".into())
        .spawn(move || {
            let entered =
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                    .context("cannot enter the container's network namespace (CAP_SYS_ADMIN?)");
            // The receiver may have gone: then nobody waits for the answer.
            let _ = answer.send(entered.and_then(|()| work()));
        })
        .context("cannot start a thread")?;
    result
        .await
        .context("the thread in the container's network namespace panicked")?
}
