// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! The host's own sockets.

use core::mem::zeroed;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_sock_tuple;
use aya_ebpf::helpers::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};
use forwarder_common::abi::Tuple;
use forwarder_common::clock::Ticks;
use forwarder_common::environment::Sockets;
use forwarder_common::family::{Be16, Be32, V4};
use forwarder_common::wire::proto;

use super::Kernel;
use crate::maps::BOUND;

/// `BPF_F_CURRENT_NETNS`.
const THIS_NAMESPACE: u64 = -1_i32 as u32 as u64;

impl<C: EbpfContext> Sockets<V4> for Kernel<C> {
    #[inline(always)]
    fn bound(&self, port: Be16) -> Ticks {
        let number = port.get();
        match BOUND.get(number as u32 / 2) {
            Some(pair) => pair[number as usize % 2],
            None => 0,
        }
    }

    #[inline(always)]
    fn socket(&self, tuple: &Tuple<V4>) -> bool {
        // SAFETY: plain integers.
        let mut name: bpf_sock_tuple = unsafe { zeroed() };
        name.__bindgen_anon_1.ipv4.saddr = tuple.src.word();
        name.__bindgen_anon_1.ipv4.daddr = tuple.dst.word();
        name.__bindgen_anon_1.ipv4.sport = tuple.sport.word();
        name.__bindgen_anon_1.ipv4.dport = tuple.dport.word();
        let length = (2 * size_of::<Be32>() + 2 * size_of::<Be16>()) as u32;
        // SAFETY: the context is this program's; a socket that is found is released.
        unsafe {
            let socket = match tuple.proto {
                proto::TCP => {
                    bpf_skc_lookup_tcp(self.ctx.as_ptr(), &raw mut name, length, THIS_NAMESPACE, 0)
                }
                proto::UDP => {
                    bpf_sk_lookup_udp(self.ctx.as_ptr(), &raw mut name, length, THIS_NAMESPACE, 0)
                }
                _ => return false,
            };
            if socket.is_null() {
                return false;
            }
            bpf_sk_release(socket.cast());
        }
        true
    }
}
