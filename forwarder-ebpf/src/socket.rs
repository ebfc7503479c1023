// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! Socket programs. They redirect sockets of the host that connect to a published port of the host
//! to the container, return the original destination to the socket, and refuse to bind reserved
//! ports.
//!
//! They are attached to the root of all control groups and see every process of the machine, but
//! act only on sockets of the agent's network namespace. They may be preempted, so their state is
//! on the stack. Several instances may run for one call; the second one finds nothing left to do.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::{
    bpf_get_current_uid_gid, bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_coarse_ns,
    bpf_skc_to_tcp6_sock, bpf_skc_to_udp6_sock,
};
use aya_ebpf::programs::SockAddrContext;
use forwarder_common::abi::{Peer, SocketKey};
use forwarder_common::clock;
use forwarder_common::environment::Configuration as _;
use forwarder_common::family::{Address as _, Be16, Be32, V4, Wide};
use forwarder_common::socket::{self, Bind};
use forwarder_common::wire::proto;

use crate::kernel::Kernel;
use crate::maps::{BINDS, BOUND, SETTINGS, SOCKETS};

/// The call proceeds.
const PROCEED: i32 = 1;
/// The call fails with `EPERM`.
const REFUSE: i32 = 0;

/// `connect4`, `sendmsg4`.
#[inline(always)]
pub fn ask4(ctx: &SockAddrContext) -> i32 {
    if is_ours(ctx)
        && let Some(target) = ask(ctx, &peer4(ctx), bound4(ctx))
        && let Some(addr) = Be32::narrow(target.addr)
    {
        set4(ctx, addr, target.port);
    }
    PROCEED
}

/// `recvmsg4`, `getpeername4`.
#[inline(always)]
pub fn tell4(ctx: &SockAddrContext) -> i32 {
    if is_ours(ctx)
        && let Some(asked) = tell(ctx, &peer4(ctx))
        && let Some(addr) = Be32::narrow(asked.addr)
    {
        set4(ctx, addr, asked.port);
    }
    PROCEED
}

/// `connect6`.
#[inline(always)]
pub fn ask6(ctx: &SockAddrContext) -> i32 {
    if is_ours(ctx) {
        let peer = peer6(ctx);
        // An IPv6-only socket does not accept mapped addresses.
        if !(socket::is_loopback6(peer.addr) && is_v6_only(ctx, peer.proto as u32))
            && let Some(target) = ask(ctx, &peer, bound6(ctx))
        {
            set6(ctx, &target);
        }
    }
    PROCEED
}

/// `recvmsg6`, `getpeername6`.
#[inline(always)]
pub fn tell6(ctx: &SockAddrContext) -> i32 {
    if is_ours(ctx)
        && let Some(asked) = tell(ctx, &peer6(ctx))
    {
        set6(ctx, &asked);
    }
    PROCEED
}

/// `bind4`.
#[inline(always)]
pub fn bind4(ctx: &SockAddrContext) -> i32 {
    bind(ctx, &peer4(ctx))
}

/// `bind6`.
#[inline(always)]
pub fn bind6(ctx: &SockAddrContext) -> i32 {
    bind(ctx, &peer6(ctx))
}

#[inline(always)]
fn bind(ctx: &SockAddrContext, wanted: &Peer) -> i32 {
    if !is_ours(ctx) {
        return PROCEED;
    }
    let user = bpf_get_current_uid_gid() as u32;
    let settings = SETTINGS.get(0).copied().unwrap_or_default();
    match socket::bind(wanted, user, &settings) {
        Bind::Proceed => PROCEED,
        Bind::Refuse => REFUSE,
        Bind::Announce => {
            announce(wanted.port);
            PROCEED
        }
    }
}

/// Records that a service binds a UDP port, and wakes the agent. If the ring is full, the agent has
/// not yet read an earlier wake-up.
#[inline(always)]
fn announce(port: Be16) {
    let number = port.get();
    if let Some(pair) = BOUND.get_ptr_mut(number as u32 / 2) {
        // SAFETY: no arguments.
        let now = clock::ticks(unsafe { bpf_ktime_get_coarse_ns() });
        let now = if now == 0 { 1 } else { now };
        // SAFETY: an aligned word of a map's element.
        unsafe { write_volatile(&raw mut (*pair)[number as usize % 2], now) };
    }
    let _ = BINDS.output::<u64>(number as u64, 0);
}

/// Whether the socket belongs to the agent's network namespace. A container's own loopback, and
/// Docker's resolver there, are not the forwarder's business.
#[inline(always)]
fn is_ours(ctx: &SockAddrContext) -> bool {
    let ours = SETTINGS.get(0).map_or(0, |settings| settings.netns_cookie);
    // SAFETY: the context is this program's.
    ours != 0 && ours == unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

#[inline(always)]
fn ask(ctx: &SockAddrContext, asked: &Peer, bound: Wide) -> Option<Peer> {
    let kernel = Kernel {
        ctx: SockAddrContext::new(ctx.sock_addr),
    };
    let target = socket::target::<V4>(
        asked,
        |addr| kernel.is_local(addr),
        |key| kernel.published(key),
    )?;
    if !socket::may_leave(bound) {
        return None;
    }
    // A client that sends many datagrams is found here; the lookup also keeps its entry in the LRU
    // map.
    if tell(ctx, &target) != Some(*asked) {
        let _ = SOCKETS.insert(key(ctx, target), asked, 0);
    }
    Some(target)
}

#[inline(always)]
fn tell(ctx: &SockAddrContext, peer: &Peer) -> Option<Peer> {
    // SAFETY: the element is copied at once; an element that is replaced in between was valid, too.
    unsafe { SOCKETS.get(key(ctx, *peer)) }.copied()
}

#[inline(always)]
fn key(ctx: &SockAddrContext, peer: Peer) -> SocketKey {
    SocketKey {
        // SAFETY: the context is this program's.
        cookie: unsafe { bpf_get_socket_cookie(ctx.as_ptr()) },
        peer,
        reserved: 0,
    }
}

/// Offset and bit of `skc_ipv6only` in `struct sock`: behind address pair, hash, port pair, family
/// and state. The same in all supported kernels.
const V6_ONLY: (usize, u8) = (19, 1 << 5);

/// Whether the socket is IPv6-only, and so does not accept mapped IPv4 addresses either.
#[inline(always)]
fn is_v6_only(ctx: &SockAddrContext, protocol: u32) -> bool {
    let socket = own(ctx).cast();
    // SAFETY: typed pointers to the program's own socket; the verifier checks what is read from
    // them.
    let (octet, bit) = unsafe {
        let common = match protocol {
            proto::TCP => bpf_skc_to_tcp6_sock(socket).cast::<u8>(),
            proto::UDP => bpf_skc_to_udp6_sock(socket).cast::<u8>(),
            _ => return true,
        };
        if common.is_null() {
            return true;
        }
        (read_volatile(common.add(V6_ONLY.0)), V6_ONLY.1)
    };
    octet & bit != 0
}

// The kernel translates every access to the context word by word: each field is read and written
// with exactly its declared size, never two at once.

/// A field of the context.
macro_rules! field {
    ($ctx:expr, $($field:tt)+) => {
        // SAFETY: the context is this program's.
        unsafe { read_volatile(&raw const (*$ctx.sock_addr).$($field)+) }
    };
}

#[inline(always)]
fn own(ctx: &SockAddrContext) -> *mut aya_ebpf::bindings::bpf_sock {
    field!(ctx, __bindgen_anon_1.sk)
}

#[inline(always)]
fn peer4(ctx: &SockAddrContext) -> Peer {
    named(ctx, Be32::from_word(field!(ctx, user_ip4)).widen())
}

#[inline(always)]
fn peer6(ctx: &SockAddrContext) -> Peer {
    let words = [
        field!(ctx, user_ip6[0]),
        field!(ctx, user_ip6[1]),
        field!(ctx, user_ip6[2]),
        field!(ctx, user_ip6[3]),
    ];
    named(ctx, words.map(Be32::from_word))
}

#[inline(always)]
fn named(ctx: &SockAddrContext, addr: Wide) -> Peer {
    Peer {
        addr,
        port: Be16::from_word(field!(ctx, user_port) as u16),
        proto: field!(ctx, protocol) as u16,
    }
}

/// The address that the socket is bound to.
#[inline(always)]
fn bound4(ctx: &SockAddrContext) -> Wide {
    let socket = own(ctx);
    // SAFETY: the program's own socket.
    Be32::from_word(unsafe { read_volatile(&raw const (*socket).src_ip4) }).widen()
}

#[inline(always)]
fn bound6(ctx: &SockAddrContext) -> Wide {
    let socket = own(ctx);
    // SAFETY: the program's own socket.
    unsafe {
        [
            read_volatile(&raw const (*socket).src_ip6[0]),
            read_volatile(&raw const (*socket).src_ip6[1]),
            read_volatile(&raw const (*socket).src_ip6[2]),
            read_volatile(&raw const (*socket).src_ip6[3]),
        ]
    }
    .map(Be32::from_word)
}

#[inline(always)]
fn set4(ctx: &SockAddrContext, addr: Be32, port: Be16) {
    let sock_addr: *mut bpf_sock_addr = ctx.sock_addr;
    // SAFETY: the context is this program's, and these fields are writable.
    unsafe {
        write_volatile(&raw mut (*sock_addr).user_ip4, addr.word());
        write_volatile(&raw mut (*sock_addr).user_port, port.word() as u32);
    }
}

#[inline(always)]
fn set6(ctx: &SockAddrContext, peer: &Peer) {
    let sock_addr: *mut bpf_sock_addr = ctx.sock_addr;
    // SAFETY: the context is this program's, and these fields are writable.
    unsafe {
        write_volatile(&raw mut (*sock_addr).user_ip6[0], peer.addr[0].word());
        write_volatile(&raw mut (*sock_addr).user_ip6[1], peer.addr[1].word());
        write_volatile(&raw mut (*sock_addr).user_ip6[2], peer.addr[2].word());
        write_volatile(&raw mut (*sock_addr).user_ip6[3], peer.addr[3].word());
        write_volatile(&raw mut (*sock_addr).user_port, peer.port.word() as u32);
    }
}
