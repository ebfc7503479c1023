// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! The host's own sockets.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Ipv4Tuple;
use aya_ebpf::helpers::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};
use forwarder_common::abi::Tuple;
use forwarder_common::clock::Ticks;
use forwarder_common::environment::Sockets;
use forwarder_common::family::{Be16, V4};
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
        // A whole `bpf_sock_tuple` has room for an IPv6 tuple, which would only take stack.
        let mut name = Ipv4Tuple {
            saddr: tuple.src.word(),
            daddr: tuple.dst.word(),
            sport: tuple.sport.word(),
            dport: tuple.dport.word(),
        };
        let length = size_of::<Ipv4Tuple>() as u32;
        let name = (&raw mut name).cast();
        // SAFETY: the context is this program's, and the tuple is as long as stated; a socket that
        // is found is released.
        unsafe {
            let socket = match tuple.proto {
                proto::TCP => {
                    bpf_skc_lookup_tcp(self.ctx.as_ptr(), name, length, THIS_NAMESPACE, 0)
                }
                proto::UDP => bpf_sk_lookup_udp(self.ctx.as_ptr(), name, length, THIS_NAMESPACE, 0),
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
