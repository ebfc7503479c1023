// SPDX-License-Identifier: MIT OR Apache-2.0
//! The changes that the kernel needs, in an order of which every prefix is safe: pure.
//!
//! Wrong deliveries are removed first. Then what protects is added, then what delivers. What
//! protects is removed last. A hook finds its device's row when it is attached, and the row is
//! removed after the hook.

mod applied;
mod family;
mod family_tables;
mod tables;

use std::net::IpAddr;

use forwarder_common::abi::{Device, TrustKey};
use forwarder_common::family::V4;
use forwarder_protocol::HostPort;

pub use self::family::FamilyChange;
use self::family_tables::{FamilyPass, Stage};
use crate::desired_state::{
    DesiredState, Hook, Key6, Observed, PeerVeth, Row6, SocketHook, XdpKind,
};

/// One change of the kernel's state. Applying it twice has the same effect as applying it once.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(
    missing_docs,
    reason = "each variant is a table's row, and `desired_state` documents the rows"
)]
pub enum Change {
    Settings {
        route_generation: u32,
        xdp_tcp: bool,
        route_mtu: u32,
        others: u32,
        lists6: bool,
    },
    PutDevice(u32, Device),
    DropDevice(u32),
    PutTrusted(TrustKey),
    DropTrusted(TrustKey),
    /// A change of the IPv4 tables.
    V4(FamilyChange<V4>),
    PutIpv6(Key6, Row6),
    DropIpv6(Key6),
    Policy(u32),
    /// The index of the defragmentation loopback.
    DefragLoopback(u32),
    PutDevmap(u32, PeerVeth),
    DropDevmap(u32),
    Attach {
        ifindex: u32,
        hook: Hook,
        xdp: Option<XdpKind>,
    },
    Detach {
        ifindex: u32,
        hook: Hook,
    },
    AttachSocket(SocketHook),
    DetachSocket(SocketHook),
    /// Closes the host's own sockets whose published port no longer exists.
    SeverSockets,
}

impl Change {
    /// Whether the change only adds or modifies. An incomplete host state allows only such changes,
    /// because an absence in it proves nothing.
    #[must_use]
    pub const fn adds(&self) -> bool {
        match self {
            Self::V4(change) => change.adds(),
            Self::DropDevice(_)
            | Self::DropTrusted(_)
            | Self::DropIpv6(_)
            | Self::DropDevmap(_)
            | Self::Detach { .. }
            | Self::DetachSocket(_) => false,
            _ => true,
        }
    }

    /// Whether the host would be less protected without the change. An agent that cannot apply such
    /// a change is not ready. What only delivers or improves speed can come later.
    #[must_use]
    pub const fn protects(&self) -> bool {
        match self {
            Self::V4(change) => change.protects(),
            Self::AttachSocket(hook) | Self::DetachSocket(hook) => !hook.is_on_cgroup(),
            Self::PutTrusted(_)
            | Self::PutDevmap(..)
            | Self::DropDevmap(_)
            | Self::Attach {
                hook: Hook::Uplink, ..
            }
            | Self::SeverSockets => false,
            _ => true,
        }
    }

    /// Returns the port that the change publishes.
    #[must_use]
    pub fn publishes(&self) -> Option<HostPort> {
        match self {
            Self::V4(change) => change.publishes(),
            _ => None,
        }
    }

    /// Returns the published port that the change removes.
    #[must_use]
    pub fn withdraws(&self) -> Option<HostPort> {
        match self {
            Self::V4(change) => change.withdraws(),
            _ => None,
        }
    }

    /// Returns the address whose endpoint the change puts or removes.
    #[must_use]
    pub fn endpoint(&self) -> Option<IpAddr> {
        match self {
            Self::V4(change) => change.endpoint(),
            _ => None,
        }
    }

    /// The device that the change is about, if there is one.
    #[must_use]
    pub const fn device(&self) -> Option<u32> {
        match *self {
            Self::V4(change) => change.device(),
            Self::PutDevice(index, _)
            | Self::DropDevice(index)
            | Self::PutDevmap(index, _)
            | Self::DropDevmap(index)
            | Self::Attach { ifindex: index, .. }
            | Self::Detach { ifindex: index, .. } => Some(index),
            _ => None,
        }
    }
}

/// Returns the changes that turn `observed` into `desired`, in their one order.
#[must_use]
pub fn diff(observed: &Observed, desired: &DesiredState) -> Vec<Change> {
    let pass = Pass::new(observed, desired);
    let plan = [
        // First, remove what must not deliver any more.
        pass.clear_defrag_loopback(),
        pass.drop_trusted(),
        pass.drop_ports(),
        pass.families(Stage::Withdraw),
        // Then add what protects, starting with the default endpoints. A veth refers to an endpoint
        // only after the endpoint exists.
        pass.put_new_devices(),
        pass.families(Stage::Protect),
        pass.put_ipv6(),
        pass.put_settings(),
        pass.attach_hooks(),
        pass.set_defrag_loopback(),
        // Then add what delivers.
        pass.families(Stage::Endpoints),
        pass.put_devices(),
        pass.families(Stage::Deliver),
        pass.put_trusted(),
        // Once everything refers to the right access lists, flows that were admitted before are
        // checked again.
        pass.put_policy(),
        pass.attach_sockets(),
        pass.put_ports(),
        // Then remove what nothing refers to any more.
        pass.sever_sockets(),
        pass.detach_sockets(),
        pass.detach_hooks(),
        pass.drop_ipv6(),
        pass.families(Stage::Remove),
        pass.drop_devices(),
    ];
    plan.into_iter().flatten().collect()
}

/// What one call compares.
struct Pass<'a> {
    now: &'a DesiredState,
    desired: &'a DesiredState,
    v4: FamilyPass<'a, V4>,
}

impl<'a> Pass<'a> {
    fn new(observed: &'a Observed, desired: &'a DesiredState) -> Self {
        let now = &observed.tables;
        Self {
            now,
            desired,
            v4: FamilyPass::new(&now.v4, &observed.v4, &desired.v4),
        }
    }

    /// Returns the changes of a stage, of all families.
    fn families(&self, stage: Stage) -> Vec<Change> {
        let v4 = self.v4.changes(stage).into_iter();
        v4.map(Change::V4).collect()
    }

    fn sever_sockets(&self) -> Vec<Change> {
        let moves_ports = self.v4.moves_ports();
        moves_ports
            .then_some(Change::SeverSockets)
            .into_iter()
            .collect()
    }
}
