// SPDX-License-Identifier: MIT OR Apache-2.0
//! The connected shims and the replies they wait for: pure except for sending replies.
//!
//! Requests of shims become updates of the host state. This module tracks when each shim gets its
//! reply: a bind when the kernel holds the mapping, an unbind when the kernel no longer holds it, a
//! reclaim when the orphans that hold the port have ended.

mod agreement;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use forwarder_state::host_state::{Bound, HostPort, HostState, ShimId, Update};

use crate::watch::shim::{
    Binding, Proof, ShimEvent, ShimEventKind, ShimReplies, ShimReply, ShimRequest,
};

/// How long an orphan is left alone, because the agent may not have noticed yet that dockerd has
/// gone.
const GRACE: Duration = Duration::from_secs(2);
/// How long after the agent's start shims may take to find it: they try every second.
const FINDING: Duration = Duration::from_secs(3);
/// How long a claim waits for agreeing information from Docker, which arrives a moment later.
/// dockerd waits for 16 seconds.
const AGREEING: Duration = Duration::from_secs(5);
/// How long Docker's list may contradict a bound port before the list overrides it.
const CONTRADICTING: Duration = Duration::from_secs(10);

/// How long a port that a docker-proxy serves is closed if Docker does not list it: longer than
/// dockerd takes to start a container, or to give up.
const LISTING: Duration = Duration::from_secs(30);

/// All connected shims.
#[derive(Debug)]
pub struct Shims {
    since: Instant,
    connected: BTreeMap<ShimId, Shim>,
    /// The shims that wait for a sync, with the port.
    syncs: Vec<(ShimId, PendingReply)>,
    reclaims: Vec<Reclaim>,
    /// Ports of docker-proxies that Docker does not list yet, and since when.
    proxied: BTreeMap<HostPort, Instant>,
    /// Claims that nothing from Docker agrees with yet.
    pending: Vec<Pending>,
    /// Ports of claims that Docker contradicted. For these Docker must list the port first.
    contradicted: BTreeSet<HostPort>,
    /// Ports of claims without proof that are already in the log.
    unproven: BTreeSet<HostPort>,
}

#[derive(Debug)]
struct Pending {
    shim: ShimId,
    binding: Binding,
    since: Instant,
}

#[derive(Debug)]
struct Shim {
    replies: ShimReplies,
    /// The port that the shim has proved to hold.
    proved: Option<HostPort>,
    /// Since when the port is bound to the shim.
    bound: Option<Instant>,
    orphaned: Option<Instant>,
    /// Whether the shim was told to release its port.
    released: bool,
}

#[derive(Clone, Copy, Debug)]
enum PendingReply {
    Bound(HostPort),
    Proxied(HostPort),
    Unbound,
}

#[derive(Debug)]
struct Reclaim {
    shim: ShimId,
    port: HostPort,
    /// Orphans that were told to release the port and have not ended yet; empty if none was found.
    waits_for: BTreeSet<ShimId>,
}

impl Shims {
    /// Starts without shims; `now` is the agent's start.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            since: now,
            connected: BTreeMap::new(),
            syncs: Vec::new(),
            reclaims: Vec::new(),
            proxied: BTreeMap::new(),
            pending: Vec::new(),
            contradicted: BTreeSet::new(),
            unproven: BTreeSet::new(),
        }
    }

    /// Handles an event of a shim. Returns whether a sync is needed now.
    pub fn handle(
        &mut self,
        ShimEvent { shim, kind }: ShimEvent,
        host_state: &mut HostState,
        now: Instant,
    ) -> bool {
        match kind {
            ShimEventKind::Connected(replies) => {
                let new = Shim {
                    replies,
                    proved: None,
                    bound: None,
                    orphaned: None,
                    released: false,
                };
                self.connected.insert(shim, new);
                false
            }
            ShimEventKind::Request(ShimRequest::Bind(binding), proof) => {
                self.claim(shim, binding, proof, host_state, now)
            }
            ShimEventKind::Request(ShimRequest::Proxy(_) | ShimRequest::Reclaim(_), Err(why)) => {
                tracing::warn!("a shim is refused: {why}");
                self.reply(shim, ShimReply::Error(why));
                false
            }
            ShimEventKind::Request(ShimRequest::Proxy(binding), Ok(())) => {
                let port = binding.host();
                self.proxied.insert(port, now);
                self.syncs.push((shim, PendingReply::Proxied(port)));
                host_state.apply(Update::Proxied(port));
                true
            }
            ShimEventKind::Request(ShimRequest::Unbind, _) => {
                self.pending.retain(|pending| pending.shim != shim);
                self.syncs.push((shim, PendingReply::Unbound));
                host_state.apply(Update::Unbound(shim));
                true
            }
            ShimEventKind::Request(ShimRequest::Reclaim(binding), Ok(())) => {
                let port = binding.host();
                self.reclaims.push(Reclaim {
                    shim,
                    port,
                    waits_for: BTreeSet::new(),
                });
                self.release_orphans(host_state, now);
                false
            }
            ShimEventKind::Disconnected => {
                self.connected.remove(&shim);
                self.syncs.retain(|(other, _)| *other != shim);
                self.reclaims.retain(|reclaim| reclaim.shim != shim);
                self.pending.retain(|pending| pending.shim != shim);
                self.ended(shim);
                host_state.apply(Update::ShimGone(shim))
            }
        }
    }

    /// Handles a claim. It counts when its shim has proved to hold the port, and when Docker
    /// agrees.
    fn claim(
        &mut self,
        shim: ShimId,
        binding: Binding,
        proof: Proof,
        host_state: &mut HostState,
        now: Instant,
    ) -> bool {
        let port = binding.host();
        let Some(own) = self.connected.get_mut(&shim) else {
            return false;
        };
        match proof {
            Ok(()) => own.proved = Some(port),
            // An orphan may have closed its socket for the next dockerd.
            Err(_) if binding.orphan && own.proved == Some(port) => {}
            Err(why) => {
                if self.unproven.insert(port) {
                    tracing::warn!("a shim is refused: {why}");
                }
                self.reply(shim, ShimReply::Error(why));
                return false;
            }
        }
        self.pending.retain(|pending| pending.shim != shim);
        self.pending.push(Pending {
            shim,
            binding,
            since: now,
        });
        self.decide(host_state, now)
    }

    /// Accepts the claims that Docker now agrees with, and refuses those that have waited too long.
    /// Forgets ports of docker-proxies that Docker lists, at once: their container may end within the
    /// second. Returns whether a sync is needed now.
    pub fn decide(&mut self, host_state: &mut HostState, now: Instant) -> bool {
        let mut changed = self.forget_proxied(host_state, now);
        for pending in std::mem::take(&mut self.pending) {
            let Pending {
                shim,
                binding,
                since,
            } = pending;
            let exactly = self.contradicted.contains(&binding.host());
            match agreement::of(&binding, exactly, host_state) {
                Ok(()) => {
                    self.contradicted.remove(&binding.host());
                    changed |= self.bind(shim, &binding, host_state, now);
                }
                Err(_) if now.duration_since(since) < AGREEING => self.pending.push(pending),
                Err(why) => {
                    tracing::warn!("a shim is refused: {why}");
                    self.reply(shim, ShimReply::Error(why));
                }
            }
        }
        changed
    }

    fn bind(
        &mut self,
        shim: ShimId,
        binding: &Binding,
        host_state: &mut HostState,
        now: Instant,
    ) -> bool {
        let port = binding.host();
        if let Some(other) = host_state
            .bound
            .get(&port)
            .filter(|other| other.shim != shim)
            && self.connected.contains_key(&other.shim)
        {
            if !other.orphan {
                let why = format!(
                    "{port} is already published for container address {}",
                    other.container_ip
                );
                self.reply(shim, ShimReply::Error(why));
                return false;
            }
            // dockerd 28 and later bind the port themselves, so no shim has reclaimed it.
            self.release(other.shim);
        }
        if let Some(own) = self.connected.get_mut(&shim) {
            let since = own.orphaned.unwrap_or(now);
            own.orphaned = binding.orphan.then_some(since);
            own.bound = Some(own.bound.unwrap_or(now));
        }
        let bound = Bound {
            shim,
            container_ip: binding.container_ip,
            container_port: binding.container_port,
            orphan: binding.orphan,
        };
        host_state.apply(Update::Bound(port, bound));
        self.syncs.push((shim, PendingReply::Bound(port)));
        self.release_orphans(host_state, now);
        true
    }

    /// Replies to the shims that waited for a sync. `holds` says why the kernel does not hold what
    /// the host state has bound.
    pub fn synced(&mut self, holds: impl Fn(&HostPort) -> Result<(), String>) {
        for (shim, pending) in std::mem::take(&mut self.syncs) {
            match pending {
                PendingReply::Bound(port) | PendingReply::Proxied(port) => {
                    let reply = holds(&port).map_or_else(ShimReply::Error, ShimReply::Ok);
                    self.reply(shim, reply);
                }
                PendingReply::Unbound => {
                    self.reply(shim, ShimReply::Ok(()));
                    // The conversation is over.
                    self.connected.remove(&shim);
                }
            }
        }
    }

    /// Does the periodic work: tells orphans whose container Docker no longer knows to release
    /// their port, replies to a reclaim if no orphan holds the port, and refuses claims that Docker
    /// contradicts. Returns whether a sync is needed now.
    pub fn review(&mut self, host_state: &mut HostState, now: Instant) -> bool {
        let changed = self.decide(host_state, now) | self.contradict(host_state, now);
        if host_state.is_complete() && host_state.docker.is_some() {
            let idle = |port: &HostPort, bound: &Bound| {
                let orphaned = self.connected.get(&bound.shim).and_then(|s| s.orphaned);
                bound.orphan
                    && orphaned.is_some_and(|since| now.duration_since(since) >= GRACE)
                    && !host_state.publishes(port)
            };
            let all = host_state
                .bound
                .iter()
                .filter(|(port, bound)| idle(port, bound));
            let idle: Vec<_> = all.map(|(_, bound)| bound.shim).collect();
            idle.into_iter().for_each(|shim| self.release(shim));
        }
        self.release_orphans(host_state, now);
        changed
    }

    /// Removes the ports of docker-proxies that Docker lists now, or would list if they were
    /// served.
    fn forget_proxied(&mut self, host_state: &mut HostState, now: Instant) -> bool {
        if !host_state.is_complete() || host_state.docker.is_none() {
            return false;
        }
        let mut changed = false;
        self.proxied.retain(|port, since| {
            let known = host_state.publishes(port) || now.duration_since(*since) >= LISTING;
            changed |= known && host_state.apply(Update::ProxyKnown(*port));
            !known
        });
        changed
    }

    /// Applies Docker's list where it has contradicted a shim for some time.
    fn contradict(&mut self, host_state: &mut HostState, now: Instant) -> bool {
        let bound = |shim| self.connected.get(shim).and_then(|own| own.bound);
        let mut wrong = Vec::new();
        for (port, claim) in &host_state.bound {
            let since = bound(&claim.shim);
            if since.is_some_and(|since| now.duration_since(since) >= CONTRADICTING)
                && let Err(why) = agreement::with_list(port, claim, host_state)
            {
                wrong.push((*port, claim.shim, why));
            }
        }
        let changed = !wrong.is_empty();
        for (port, shim, why) in wrong {
            tracing::warn!("a shim is refused: {why}");
            self.contradicted.insert(port);
            self.reply(shim, ShimReply::Error(why));
            if let Some(own) = self.connected.get_mut(&shim) {
                own.bound = None;
            }
            host_state.apply(Update::ShimGone(shim));
        }
        changed
    }

    /// Tells the orphans that hold a reclaimed port to release it. Their mapping stays, and now
    /// belongs to the claimant.
    fn release_orphans(&mut self, host_state: &mut HostState, now: Instant) {
        let mut reclaims = std::mem::take(&mut self.reclaims);
        reclaims.retain_mut(|reclaim| {
            if !reclaim.waits_for.is_empty() {
                return true;
            }
            let claimant = reclaim.shim;
            let in_the_way = |(port, bound): &(&HostPort, &Bound)| {
                bound.orphan && bound.shim != claimant && port.overlaps(&reclaim.port)
            };
            let orphans: Vec<_> = host_state
                .bound
                .iter()
                .filter(in_the_way)
                .map(|(port, bound)| (*port, *bound))
                .collect();
            for (port, bound) in &orphans {
                self.release(bound.shim);
                if *port == reclaim.port {
                    let taken = Bound {
                        shim: claimant,
                        orphan: false,
                        ..*bound
                    };
                    host_state.apply(Update::Bound(*port, taken));
                }
            }
            reclaim.waits_for = orphans.iter().map(|(_, bound)| bound.shim).collect();
            if !orphans.is_empty() || now.duration_since(self.since) < FINDING {
                return true;
            }
            let why = format!("no orphan holds {}", reclaim.port);
            self.reply(claimant, ShimReply::Error(why));
            false
        });
        self.reclaims = reclaims;
    }

    fn ended(&mut self, orphan: ShimId) {
        let mut done = Vec::new();
        self.reclaims.retain_mut(|reclaim| {
            let last = reclaim.waits_for.remove(&orphan) && reclaim.waits_for.is_empty();
            if last {
                done.push(reclaim.shim);
            }
            !last
        });
        for shim in done {
            self.reply(shim, ShimReply::Ok(()));
        }
    }

    fn release(&mut self, shim: ShimId) {
        if let Some(orphan) = self.connected.get_mut(&shim)
            && !std::mem::replace(&mut orphan.released, true)
        {
            tracing::debug!(?shim, "an orphan is told to release its port");
            self.reply(shim, ShimReply::Release(()));
        }
    }

    fn reply(&self, shim: ShimId, reply: ShimReply) {
        if let Some(shim) = self.connected.get(&shim) {
            // If the shim has gone, its own event says so.
            let _ = shim.replies.send(reply);
        }
    }
}

#[cfg(test)]
mod tests;
