// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which devices ask for a route back to a source: `rp_filter` of the agent's own namespace.

use std::collections::BTreeMap;
use std::fs;

use crate::desired::is_outside;
use crate::host_state::{HostState, Update};

/// What each outside device asks for, as the kernel takes it: the larger of its own and `all`'s value.
#[must_use]
pub fn read(host_state: &HostState) -> Update {
    let of = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"));
        // A device that has gone in between asks for nothing.
        text.ok()
            .and_then(|text| text.trim().parse::<u8>().ok())
            .unwrap_or_default()
    };
    let all = of("all");
    let outside = host_state
        .links
        .values()
        .filter(|link| is_outside(host_state, link));
    let modes = outside.map(|link| (link.index, all.max(of(&link.name))));
    Update::ReversePaths(
        modes
            .filter(|&(_, mode)| mode != 0)
            .collect::<BTreeMap<_, _>>(),
    )
}
