// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! The kernel's routes and devices.

use core::mem::zeroed;
use core::ptr;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED,
    BPF_FIB_LOOKUP_SKIP_NEIGH, bpf_fib_lookup,
};
use aya_ebpf::helpers::{bpf_check_mtu, bpf_fib_lookup as fib_lookup};
use forwarder_common::abi::Tuple;
use forwarder_common::environment::{ReversePath, Route, Routes};
use forwarder_common::family::{Be32, V4};

use super::Kernel;

const AF_INET: u8 = 2;
/// The loopback device's index in every namespace. The kernel's own source check looks up routes
/// with it.
const LOOPBACK: u32 = 1;
const ENODEV: i64 = -19;
const EINVAL: i64 = -22;

impl<C: EbpfContext> Kernel<C> {
    /// Looks up a route in the kernel's FIB.
    #[inline(always)]
    pub(super) fn look_up(&self, params: &mut bpf_fib_lookup, flags: u32) -> i64 {
        let size = size_of::<bpf_fib_lookup>() as i32;
        // SAFETY: the context is this program's, and the structure is as long as stated.
        unsafe { fib_lookup(self.ctx.as_ptr(), ptr::from_mut(params), size, flags) as i64 }
    }

    /// A device's MTU, if the device exists.
    #[inline(always)]
    fn mtu(&self, ifindex: u32) -> Option<u32> {
        let mut mtu = 0;
        // SAFETY: the context is this program's.
        let outcome = unsafe { bpf_check_mtu(self.ctx.as_ptr(), ifindex, &raw mut mtu, 0, 0) };
        (outcome != ENODEV).then_some(mtu)
    }
}

impl<C: EbpfContext> Routes<V4> for Kernel<C> {
    #[inline(always)]
    fn route(&self, ifindex: u32, tuple: &Tuple<V4>) -> Route<V4> {
        // SAFETY: plain integers, for which zero is a value.
        let mut params: bpf_fib_lookup = unsafe { zeroed() };
        params.family = AF_INET;
        params.l4_protocol = tuple.proto as u8;
        params.sport = tuple.sport.word();
        params.dport = tuple.dport.word();
        params.ifindex = ifindex;
        // With any length the kernel returns the route's MTU instead of the device's.
        params.__bindgen_anon_1.tot_len = 1;
        params.__bindgen_anon_3.ipv4_src = tuple.src.word();
        params.__bindgen_anon_4.ipv4_dst = tuple.dst.word();
        // The neighbour entry does not matter, because the kernel resolves it on output; but a
        // lookup that ends at a missing entry returns no MTU.
        let mut outcome = self.look_up(&mut params, BPF_FIB_LOOKUP_SKIP_NEIGH);
        if outcome == EINVAL {
            // Kernels before 6.3 do not know the flag.
            outcome = self.look_up(&mut params, 0);
        }
        let stopped = outcome == BPF_FIB_LKUP_RET_NO_NEIGH as i64;
        if outcome != 0 && !stopped {
            return Route::Kernel;
        }
        if params.family != AF_INET {
            // Only the kernel can send to an IPv6 next hop (RFC 8950).
            return Route::Forward {
                ifindex: params.ifindex,
                next_hop: tuple.dst,
                mtu: 0,
            };
        }
        // SAFETY: the kernel filled both unions with what is read here.
        let (next_hop, mtu) = unsafe {
            (
                params.__bindgen_anon_4.ipv4_dst,
                params.__bindgen_anon_1.mtu_result,
            )
        };
        Route::Forward {
            ifindex: params.ifindex,
            next_hop: Be32::from_word(next_hop),
            mtu: if stopped {
                self.mtu(params.ifindex).unwrap_or_default()
            } else {
                mtu as u32
            },
        }
    }

    #[inline(always)]
    fn reverse_path(&self, tuple: &Tuple<V4>) -> ReversePath {
        // SAFETY: plain integers, for which zero is a value.
        let mut params: bpf_fib_lookup = unsafe { zeroed() };
        params.family = AF_INET;
        params.ifindex = LOOPBACK;
        params.__bindgen_anon_3.ipv4_src = tuple.dst.word();
        params.__bindgen_anon_4.ipv4_dst = tuple.src.word();
        let mut outcome = self.look_up(&mut params, BPF_FIB_LOOKUP_SKIP_NEIGH);
        if outcome == EINVAL {
            outcome = self.look_up(&mut params, 0);
        }
        if outcome == 0 || outcome == BPF_FIB_LKUP_RET_NO_NEIGH as i64 {
            ReversePath::Device(params.ifindex)
        } else if outcome >= BPF_FIB_LKUP_RET_BLACKHOLE as i64
            && outcome <= BPF_FIB_LKUP_RET_NOT_FWDED as i64
        {
            ReversePath::None
        } else {
            ReversePath::Unknown
        }
    }

    #[inline(always)]
    fn exists(&self, ifindex: u32) -> bool {
        self.mtu(ifindex).is_some()
    }
}
