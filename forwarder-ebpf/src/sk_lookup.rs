// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! The program that the kernel runs when it looks up the socket of the host that gets a packet: a
//! packet that no hook has checked finds no socket of a published port.
//!
//! It is attached to the agent's network namespace. The kernel runs it for new TCP connections and
//! for datagrams to unconnected sockets.

use core::ptr::read_volatile;

use aya_ebpf::programs::SkLookupContext;
use forwarder_common::abi::Peer;
use forwarder_common::family::{Address as _, Be16, Be32};
use forwarder_common::socket::{Lookup, may_be_served};

use crate::maps::{DEVICES, PUBLISHED, PUBLISHED6, SETTINGS};

/// The lookup proceeds (`SK_PASS`).
const PASS: u32 = 1;
/// The packet finds no socket (`SK_DROP`).
const DROP: u32 = 0;
const AF_INET: u32 = 2;

// The kernel translates every access to the context word by word, as in `socket.rs`.

/// A field of the context.
macro_rules! field {
    ($ctx:expr, $($field:tt)+) => {
        // SAFETY: the context is this program's.
        unsafe { read_volatile(&raw const (*$ctx.lookup).$($field)+) }
    };
}

/// The program.
#[inline(always)]
pub fn run(ctx: &SkLookupContext) -> u32 {
    let has_entry = |ifindex: u32| DEVICES.get_ptr(ifindex).is_some() || !is_armed();
    let is_published = |key: &_| PUBLISHED.get_ptr(key).is_some();
    let is_published6 = |key: &_| PUBLISHED6.get_ptr(key).is_some();
    let served = may_be_served(
        field!(ctx, ingress_ifindex),
        || lookup(ctx),
        has_entry,
        is_published,
        is_published6,
    );
    if served { PASS } else { DROP }
}

/// Whether the agent has filled all maps.
#[inline(always)]
fn is_armed() -> bool {
    SETTINGS.get(0).is_some_and(|settings| settings.armed != 0)
}

/// The packet's ends. The words of both families are read first: from two branches, the compiler
/// would make one read at an offset that the verifier does not know.
#[inline(always)]
fn lookup(ctx: &SkLookupContext) -> Lookup {
    let remote4 = field!(ctx, remote_ip4);
    let remote6 = [
        field!(ctx, remote_ip6[0]),
        field!(ctx, remote_ip6[1]),
        field!(ctx, remote_ip6[2]),
        field!(ctx, remote_ip6[3]),
    ];
    let local4 = field!(ctx, local_ip4);
    let local6 = [
        field!(ctx, local_ip6[0]),
        field!(ctx, local_ip6[1]),
        field!(ctx, local_ip6[2]),
        field!(ctx, local_ip6[3]),
    ];
    let (remote, addr) = if field!(ctx, family) == AF_INET {
        (
            Be32::from_word(remote4).widen(),
            Be32::from_word(local4).widen(),
        )
    } else {
        (remote6.map(Be32::from_word), local6.map(Be32::from_word))
    };
    Lookup {
        remote,
        local: Peer {
            addr,
            // The kernel gives this port in host order.
            port: Be16::new(field!(ctx, local_port) as u16),
            proto: field!(ctx, protocol) as u16,
        },
    }
}
