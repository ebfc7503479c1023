// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the containers of a host in replace mode can and cannot do, on live packets.

mod bulk;
mod bystanders;
mod isolation;
mod masquerade;
mod published;
mod spoofing;
mod windows;

use std::time::Duration;

/// How long a change may take to be seen.
const SOON: Duration = Duration::from_secs(5);
