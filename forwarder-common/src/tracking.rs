// SPDX-License-Identifier: MIT OR Apache-2.0
//! TCP's states, and what TCP tracking is told and decides about a segment, in words that cross a
//! function's border.

pub mod segment;
pub mod tcp;
pub mod verdict;
