// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! Clock, randomness, and bounded loops.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns, bpf_loop};
use forwarder_common::attempt::Attempt;
use forwarder_common::clock::{self, Ticks};
use forwarder_common::environment::Runtime;

use super::Kernel;

impl<C: EbpfContext> Runtime for Kernel<C> {
    #[inline(always)]
    fn now(&self) -> Ticks {
        // SAFETY: no arguments.
        clock::ticks(unsafe { bpf_ktime_get_coarse_ns() })
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: no arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn attempt<A: Attempt>(&self, times: u32, attempt: &mut A) {
        let callback: unsafe extern "C" fn(u64, *mut A) -> i64 = once::<A>;
        // SAFETY: the callback has the helper's signature, and `attempt` outlives the call.
        unsafe {
            bpf_loop(
                times,
                callback as *mut c_void,
                ptr::from_mut(attempt).cast(),
                0,
            );
        }
    }
}

/// The callback of `bpf_loop`: 1 ends the loop.
///
/// # Safety
/// `attempt` is the argument of [`Runtime::attempt`].
unsafe extern "C" fn once<A: Attempt>(_: u64, attempt: *mut A) -> i64 {
    // SAFETY: as above.
    i64::from(unsafe { &mut *attempt }.once())
}
