// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the fast path cannot finish and hands on to the kernel: each direction, for each cause,
//! comes out as the receiver has to see it, and errors about it as the sender has to see them.

mod bare;
mod causes;
mod errors;
mod fragments;
mod headerless;
mod rows;
mod sctp;

use std::time::Duration;

/// How long a packet may take.
const SOON: Duration = Duration::from_secs(5);
