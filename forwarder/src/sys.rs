// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's interfaces below both the datapath and the sources of updates: netlink, network
//! namespaces, cgroups, processes, files. Knows nothing of containers and of BPF.

pub(crate) mod cgroup;
pub(crate) mod conntrack;
mod ethtool;
pub(crate) mod expedite;
pub(crate) mod firewall;
pub(crate) mod netfilter;
pub(crate) mod netlink;
pub(crate) mod netns;
pub(crate) mod process;
pub(crate) mod qdisc;
pub(crate) mod remove;
pub(crate) mod sock_diag;
