// SPDX-License-Identifier: MIT OR Apache-2.0
//! Other software's configuration: read at the start and whenever the kernel reports a change.
//! Legacy iptables reports no changes: while it has tables, they are read twice in a second.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use forwarder_state::host_state::Update;
use forwarder_state::others::forward_chains::forward_chains;
use forwarder_state::others::summary::{drops, has_dockers};
use forwarder_state::others::{self, Others, Shaping};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use tokio::sync::Notify;
use tokio::sync::mpsc::Sender;
use tokio::time::{sleep, timeout};

use crate::sys;
use crate::sys::firewall::Pause;
use crate::sys::netlink::{dump, protocols, subscribe};

/// Multicast groups: `RTNLGRP_TC` and `RTNLGRP_IPV4_RULE`, `NFNLGRP_NFTABLES`, `XFRMNLGRP_POLICY`.
const ROUTE_GROUPS: u32 = 1 << 3 | 1 << 7;
const NETFILTER_GROUPS: u32 = 1 << 6;
const XFRM_GROUPS: u32 = 1 << 3;
/// Request types, and the answer types that count.
const GET_QDISC: u16 = 38;
const GET_FILTER: u16 = 46;
const GET_RULE: u16 = 34;
const GET_POLICY: u16 = 21;
/// The parents of the filters of a `clsact` or `ingress` qdisc.
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
const IPV4: u8 = 2;
/// The pause after a change, because changes come in bursts.
const PAUSE: Duration = Duration::from_millis(100);
/// The interval at which configuration without notifications is read.
const LOOK: Duration = Duration::from_millis(500);

/// Follows the configuration until `updates` is closed.
pub(super) async fn watch(updates: &Sender<Update>) -> Result<()> {
    let changed = Arc::new(Notify::new());
    listen(&changed)?;
    let mut last = None;
    loop {
        let now = tokio::task::spawn_blocking(read).await?;
        if last.as_ref() != Some(&now) {
            let update = Update::Others(Box::new(now.clone()));
            if updates.send(update).await.is_err() {
                return Ok(());
            }
            last = Some(now);
        }
        let mut is_due = false;
        loop {
            let heard = tokio::select! {
                heard = timeout(LOOK, changed.notified()) => heard.is_ok(),
                () = updates.closed() => return Ok(()),
            };
            if heard {
                sleep(PAUSE).await;
            }
            is_due |= heard || has_legacy_tables();
            if is_due && !Pause::is_on() {
                break;
            }
        }
    }
}

/// Subscribes, and starts a thread that reports notifications as long as the receiver exists.
fn listen(changed: &Arc<Notify>) -> Result<()> {
    let mut sockets = Vec::new();
    for (protocol, groups) in [
        (protocols::NETLINK_ROUTE, ROUTE_GROUPS),
        (protocols::NETLINK_NETFILTER, NETFILTER_GROUPS),
        (protocols::NETLINK_XFRM, XFRM_GROUPS),
    ] {
        match subscribe(protocol, groups) {
            Ok(socket) => sockets.push(socket),
            // A kernel built without this protocol has nothing to report.
            Err(error) => {
                tracing::debug!("no notifications of netlink protocol {protocol}: {error}");
            }
        }
    }
    let changed = Arc::downgrade(changed);
    let thread = thread::Builder::new().name("others".to_owned());
    thread
        .spawn(move || {
            while let Some(changed) = changed.upgrade() {
                if wait(&sockets) {
                    changed.notify_one();
                }
            }
        })
        .context("cannot start a thread")?;
    Ok(())
}

/// Waits some time for notifications and reads all of them. Everything is read again anyway, even
/// if some were lost.
fn wait(sockets: &[impl AsFd]) -> bool {
    let mut all: Vec<_> = sockets
        .iter()
        .map(|socket| PollFd::new(socket, PollFlags::IN))
        .collect();
    let second = Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    };
    if !matches!(poll(&mut all, Some(&second)), Ok(1..)) {
        return false;
    }
    let mut buffer = [0; 8192];
    for socket in sockets {
        while !matches!(
            recv(socket, &mut buffer[..], RecvFlags::DONTWAIT),
            Err(error) if error != Errno::NOBUFS
        ) {}
    }
    true
}

fn has_legacy_tables() -> bool {
    fs::read_to_string("/proc/self/net/ip_tables_names").is_ok_and(|names| !names.is_empty())
}

/// Reads everything that the kernel itself lists.
pub(crate) fn read_kernel() -> Others {
    Others {
        shaped: shaped(),
        policies: dump(
            protocols::NETLINK_XFRM,
            GET_POLICY,
            &[0; 64],
            others::policy,
        ),
        routing: dump(
            protocols::NETLINK_ROUTE,
            GET_RULE,
            &head(IPV4, 12),
            others::routing_rule,
        ),
        ..Others::default()
    }
}

/// Reads everything.
fn read() -> Others {
    let writes = sys::netfilter::writes();
    let firewall = sys::firewall::read();
    Others {
        rules: others::netfilter::foreign(&firewall),
        drops: drops(&firewall),
        tracks: others::netfilter::is_used(&firewall),
        dockers: has_dockers(&firewall),
        forward_chains: forward_chains(&firewall),
        ours: others::netfilter::ours(&firewall),
        writes,
        ..read_kernel()
    }
}

/// Builds a request's fixed header: the family, and zeros.
fn head(family: u8, octets: usize) -> Vec<u8> {
    let mut head = vec![0; octets];
    head[0] = family;
    head
}

fn shaped() -> BTreeMap<u32, Shaping> {
    let mut shaped: BTreeMap<u32, Shaping> = BTreeMap::new();
    for (index, qdisc) in dump(
        protocols::NETLINK_ROUTE,
        GET_QDISC,
        &head(0, 20),
        others::qdisc,
    ) {
        match qdisc {
            others::Qdisc::Shapes(kind) => {
                shaped.entry(index).or_default().outward = Some(format!("a queue ({kind})"));
            }
            others::Qdisc::Filters { both } => {
                let filters = |parent: u32| {
                    let mut request = head(0, 20);
                    request[4..8].copy_from_slice(&index.to_ne_bytes());
                    request[12..16].copy_from_slice(&parent.to_ne_bytes());
                    dump(
                        protocols::NETLINK_ROUTE,
                        GET_FILTER,
                        &request,
                        others::filter,
                    )
                    .into_iter()
                    .next()
                };
                if let Some(what) = filters(INGRESS) {
                    shaped.entry(index).or_default().inward = Some(what);
                }
                if both && let Some(what) = filters(EGRESS) {
                    shaped.entry(index).or_default().outward.get_or_insert(what);
                }
            }
        }
    }
    shaped
}
