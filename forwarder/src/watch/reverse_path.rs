// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which devices ask for a route back to a source: `rp_filter` of the agent's own namespace.

use std::collections::BTreeMap;
use std::fs;

use crate::desired::is_outside;
use crate::world::{Fact, World};

/// What each outside device asks for, as the kernel takes it: the larger of its own and `all`'s value.
#[must_use]
pub fn read(world: &World) -> Fact {
    let of = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"));
        // A device that has gone in between asks for nothing.
        text.ok()
            .and_then(|text| text.trim().parse::<u8>().ok())
            .unwrap_or_default()
    };
    let all = of("all");
    let outside = world.links.values().filter(|link| is_outside(world, link));
    let modes = outside.map(|link| (link.index, all.max(of(&link.name))));
    Fact::ReversePaths(
        modes
            .filter(|&(_, mode)| mode != 0)
            .collect::<BTreeMap<_, _>>(),
    )
}
