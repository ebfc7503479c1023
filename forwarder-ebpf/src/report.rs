// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! Messages for programmers (aya-log): a helper failed, or a state that should not be.
//!
//! Nothing here is on the path of an established flow. Each call adds a frame of 32 bytes to a chain
//! of calls on kernels before 6.8, so it stands only where the chain has room for that.

use aya_log_ebpf::warn;

/// What went wrong.
#[repr(u32)]
pub enum Fault {
    /// A key of a flow that ends was not in the index. It is none if the flow ended while it began.
    Remove,
    /// A record could not be returned to the free ones: it is there already, or was never taken.
    GiveFree,
    /// The headers of a frame could not be made linear.
    Pull,
}

/// Reports a fault with a number that belongs to it.
#[cold]
#[inline(always)]
pub fn fault(fault: Fault, number: i64) {
    report(fault as u32, number as u64);
}

/// Sends the message. It is a global function, so that the verifier proves it once, and so that its
/// stack counts only where something failed.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn report(fault: u32, number: u64) -> u64 {
    let number = number as i64;
    if fault == Fault::Remove as u32 {
        warn!(
            &(),
            "a key of an ending flow was not in the index ({})", number
        );
    } else if fault == Fault::GiveFree as u32 {
        warn!(&(), "the free records have no room for record {}", number);
    } else {
        warn!(
            &(),
            "the headers of a frame cannot be made linear ({})", number
        );
    }
    0
}
