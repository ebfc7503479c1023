// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! Shows dropped packets to somebody who watches: a copy of their headers.

use core::ptr;

use aya_ebpf::bindings::{__sk_buff, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::{bpf_ktime_get_coarse_ns, bpf_skb_load_bytes};
use forwarder_common::clock;
use forwarder_common::dropped::{DroppedPacket, LENGTHS, TAGGED};

use crate::maps::{DROPS, DROPS_WATCH};

/// Writes a dropped packet to the ring, if somebody watches and the ring has room. The reader looks
/// ten times a second and is not woken: a flood of packets to drop costs what it has room for.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn show_drop(skb: *mut __sk_buff, reason: u32, l3: u32) -> u32 {
    let Some(watch) = DROPS_WATCH.get_ptr(0) else {
        return 0;
    };
    // SAFETY: a live element; volatile, because the watcher changes it.
    let until = unsafe { ptr::read_volatile(watch) };
    if until == 0 {
        return 0;
    }
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    if now >= until {
        return 0;
    }
    let Some(mut place) = DROPS.reserve::<DroppedPacket>(0) else {
        return 0;
    };
    let packet = place.as_mut_ptr();
    // SAFETY: this program's own part of the ring, whose fields are plain numbers; fields of the
    // context are only read.
    unsafe {
        (*packet).at = clock::ticks(now);
        (*packet).ifindex = (*skb).ifindex;
        (*packet).reason = reason;
        (*packet).len = (*skb).len;
        (*packet).l3 = l3;
        (*packet).shown = 0;
        (*packet).vlan = if (*skb).vlan_present == 0 {
            0
        } else {
            TAGGED | (*skb).vlan_tci
        };
        let bytes = (&raw mut (*packet).bytes).cast();
        for len in LENGTHS {
            if bpf_skb_load_bytes(skb.cast(), 0, bytes, len) == 0 {
                (*packet).shown = len;
                break;
            }
        }
    }
    place.submit(BPF_RB_NO_WAKEUP.into());
    0
}
