//! What others have set up: read at the start and whenever the kernel says that some of it has
//! changed. Legacy iptables says nothing: while it has tables, it is looked at every few seconds.

mod dump;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::net::netlink;
use rustix::net::{RecvFlags, recv};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::Sender;
use tokio::time::{sleep, timeout};

use self::dump::{dump, subscribe};
use crate::others::{self, Others, Shaping};
use crate::preflight;
use crate::world::Fact;

/// Multicast groups: `RTNLGRP_TC` and `RTNLGRP_IPV4_RULE`, `NFNLGRP_NFTABLES`, `XFRMNLGRP_POLICY`.
const ROUTE_GROUPS: u32 = 1 << 3 | 1 << 7;
const NETFILTER_GROUPS: u32 = 1 << 6;
const XFRM_GROUPS: u32 = 1 << 3;
/// Requests, and the answers that count.
const GET_QDISC: u16 = 38;
const GET_FILTER: u16 = 46;
const GET_RULE: u16 = 34;
const GET_POLICY: u16 = 21;
/// The parents of the filters of a `clsact` or `ingress` qdisc.
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
const IPV4: u8 = 2;
/// Changes come in crowds.
const PAUSE: Duration = Duration::from_millis(100);
/// How often what says nothing is looked at.
const LOOK: Duration = Duration::from_secs(3);

/// Follows until `facts` is closed.
pub(super) async fn watch(facts: &Sender<Fact>) -> Result<()> {
    let mut notices = Vec::new();
    for (protocol, groups) in [
        (None, ROUTE_GROUPS),
        (Some(netlink::NETFILTER), NETFILTER_GROUPS),
        (Some(netlink::XFRM), XFRM_GROUPS),
    ] {
        match subscribe(protocol, groups) {
            Ok(socket) => notices.push(AsyncFd::new(socket).context("cannot watch netlink")?),
            // A kernel built without has nothing to tell.
            Err(error) => tracing::debug!("no notices of {protocol:?}: {error}"),
        }
    }
    let mut last = None;
    loop {
        let now = tokio::task::spawn_blocking(read).await?;
        if last.as_ref() != Some(&now) {
            let fact = Fact::Others(Box::new(now.clone()));
            if facts.send(fact).await.is_err() {
                return Ok(());
            }
            last = Some(now);
        }
        loop {
            let heard = tokio::select! {
                heard = timeout(LOOK, any(&notices)) => heard.is_ok(),
                () = facts.closed() => return Ok(()),
            };
            if heard {
                sleep(PAUSE).await;
                notices.iter().for_each(drain);
                break;
            }
            if has_legacy_tables() {
                break;
            }
        }
    }
}

/// Waits for a notice of any kind.
async fn any(notices: &[AsyncFd<OwnedFd>]) {
    let each = notices.iter().map(|socket| {
        Box::pin(async move {
            if let Ok(mut ready) = socket.readable().await {
                ready.clear_ready();
            }
        })
    });
    if notices.is_empty() {
        std::future::pending().await
    }
    futures_util::future::select_all(each).await;
}

/// Takes all that waits: what it says is read anew anyway, also where some of it was lost.
fn drain(socket: &AsyncFd<OwnedFd>) {
    let mut buffer = [0; 8192];
    while !matches!(
        recv(socket.get_ref(), &mut buffer[..], RecvFlags::DONTWAIT),
        Err(error) if error != rustix::io::Errno::NOBUFS
    ) {}
}

fn has_legacy_tables() -> bool {
    fs::read_to_string("/proc/self/net/ip_tables_names").is_ok_and(|names| !names.is_empty())
}

/// Reads everything.
pub(crate) fn read() -> Others {
    let firewall = preflight::read_firewall();
    Others {
        shaped: shaped(),
        policies: dump(Some(netlink::XFRM), GET_POLICY, &[0; 64], others::policy),
        routing: dump(None, GET_RULE, &head(IPV4, 12), others::routing_rule),
        rules: others::netfilter::foreign(&firewall),
        drops: preflight::drops(&firewall),
        tracks: others::netfilter::is_used(&firewall),
        untracked: others::netfilter::has_ours(&firewall),
    }
}

/// A request's fixed header: the family, and zeros.
fn head(family: u8, octets: usize) -> Vec<u8> {
    let mut head = vec![0; octets];
    head[0] = family;
    head
}

fn shaped() -> BTreeMap<u32, Shaping> {
    let mut shaped: BTreeMap<u32, Shaping> = BTreeMap::new();
    for (index, qdisc) in dump(None, GET_QDISC, &head(0, 20), others::qdisc) {
        match qdisc {
            others::Qdisc::Shapes(kind) => {
                shaped.entry(index).or_default().outward = Some(format!("a queue ({kind})"));
            }
            others::Qdisc::Filters => {
                let filters = |parent: u32| {
                    let mut request = head(0, 20);
                    request[4..8].copy_from_slice(&index.to_ne_bytes());
                    request[12..16].copy_from_slice(&parent.to_ne_bytes());
                    dump(None, GET_FILTER, &request, others::filter).into_iter().next()
                };
                if let Some(what) = filters(INGRESS) {
                    shaped.entry(index).or_default().inward = Some(what);
                }
                if let Some(what) = filters(EGRESS) {
                    shaped.entry(index).or_default().outward.get_or_insert(what);
                }
            }
        }
    }
    shaped
}
