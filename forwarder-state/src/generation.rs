// SPDX-License-Identifier: MIT OR Apache-2.0
//! Numbers that distinguish one generation of an endpoint or a mapping from all others.

/// Returns a number that distinguishes one generation of an endpoint or a mapping from all others;
/// never 0. It is FNV-1a over the names, which for endpoints include Docker's random id.
pub(crate) fn generation<'a>(names: impl IntoIterator<Item = &'a str>) -> u32 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in names.into_iter().flat_map(|name| name.bytes().chain([0])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let folded = (hash ^ (hash >> 32)) as u32;
    folded.max(1)
}
