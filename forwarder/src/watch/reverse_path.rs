// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reverse path filters of devices: `rp_filter` of the agent's own namespace.

use std::collections::BTreeMap;
use std::fs;

use forwarder_state::desired::is_outside;
use forwarder_state::host_state::{HostState, Update};

/// Reads the reverse path filter of each outside device as the kernel applies it: the larger of its
/// own value and that of `all`.
#[must_use]
pub fn read(host_state: &HostState) -> Update {
    let of = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"));
        // A device that has gone in the meantime has no filter.
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
