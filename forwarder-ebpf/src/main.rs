// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! The eBPF programs: one function per hook.
//!
//! Each program reads its context, calls the function of `forwarder_common::hooks` that has its
//! name, and turns the returned [`Reason`](forwarder_common::reason::Reason) into a verdict.
//! `forwarder_common` decides what happens to a packet, and is tested on a host; this crate
//! contains only what needs a kernel.
//!
//! - `tc.rs` runs the tcx and clsact programs, `xdp.rs` the XDP program, `socket.rs` and
//!   `sk_lookup.rs` the programs for the host's own sockets, `flow_operations.rs` the programs that
//!   the command line runs.
//! - `kernel.rs` and `kernel/` implement the traits of
//!   [`environment`](forwarder_common::environment), through which the packet logic reaches maps,
//!   clock, routes and sockets. `maps.rs` declares the maps.
//! - `subprograms.rs` and `steps.rs` contain the global functions that
//!   [`subprograms`](forwarder_common::subprograms) lists: the verifier proves each of them once, by
//!   itself, and not on every path that leads to a call. `output.rs` sends packets on.
//! - `drops.rs` shows dropped packets to somebody who watches, `report.rs` tells the agent about faults, `atomic.rs` contains BPF's atomic instructions.
//!
//! The programs compile for `bpfel-unknown-none` only (`cargo xtask build`). On a host this crate
//! is a `main` that says so, so that the whole workspace can be checked at once.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// The BPF target supports compare-and-swap (since -mcpu=v3), but `core` does not offer it there.
#![cfg_attr(
    target_arch = "bpf",
    feature(core_intrinsics),
    allow(internal_features)
)]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        unsafe_code,
        unreachable_pub,
        reason = "maps, helpers and contexts are raw pointers, and the object's only reader is a loader"
    )
)]

#[cfg(target_arch = "bpf")]
mod atomic;
#[cfg(target_arch = "bpf")]
mod drops;
#[cfg(target_arch = "bpf")]
mod flow_operations;
#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod output;
#[cfg(target_arch = "bpf")]
mod report;
#[cfg(target_arch = "bpf")]
mod sk_lookup;
#[cfg(target_arch = "bpf")]
mod skb;
#[cfg(target_arch = "bpf")]
mod socket;
#[cfg(target_arch = "bpf")]
mod steps;
#[cfg(target_arch = "bpf")]
mod subprograms;
#[cfg(target_arch = "bpf")]
mod tc;
#[cfg(target_arch = "bpf")]
mod xdp;

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::macros::{cgroup_sock_addr, classifier, sk_lookup, xdp};
    use aya_ebpf::programs::{SkLookupContext, SockAddrContext, TcContext, XdpContext};
    use forwarder_common::hooks;
    use forwarder_common::meta::Side;
    use forwarder_common::policy::ipv6::Hook;

    use crate::flow_operations;
    use crate::socket::{self, ask4, ask6, tell4, tell6};
    use crate::tc::{ETHERNET, RAW, run, run_telling};

    // Closures, and not the functions themselves: two programs would share one function that is not
    // inlined, in which the offset of the network header is no constant.

    /// tcx ingress of an outside device.
    #[classifier]
    pub fn outside_in(ctx: TcContext) -> i32 {
        run::<ETHERNET>(&ctx, true, Some(Hook::OutsideIn), |at, packet| {
            hooks::outside_in(at, packet)
        })
    }

    /// tcx ingress of an outside device without an Ethernet header.
    #[classifier]
    pub fn outside_in_raw(ctx: TcContext) -> i32 {
        run::<RAW>(&ctx, true, Some(Hook::OutsideIn), |at, packet| {
            hooks::outside_in(at, packet)
        })
    }

    /// tcx egress of an outside device.
    #[classifier]
    pub fn outside_out(ctx: TcContext) -> i32 {
        run::<ETHERNET>(&ctx, false, Some(Hook::OutsideOut), |at, packet| {
            hooks::outside_out(at, packet)
        })
    }

    /// tcx egress of an outside device without an Ethernet header.
    #[classifier]
    pub fn outside_out_raw(ctx: TcContext) -> i32 {
        run::<RAW>(&ctx, false, Some(Hook::OutsideOut), |at, packet| {
            hooks::outside_out(at, packet)
        })
    }

    /// tcx ingress of a container's veth, at the host's end.
    #[classifier]
    pub fn container_in(ctx: TcContext) -> i32 {
        run_telling(&ctx, Side::Veth, hooks::container_in)
    }

    /// tcx egress of a container's veth, at the host's end.
    #[classifier]
    pub fn container_out(ctx: TcContext) -> i32 {
        run::<ETHERNET>(&ctx, false, Some(Hook::ContainerOut), hooks::container_out)
    }

    /// tcx ingress of a container's veth, at the host's end, where the kernel decides.
    #[classifier]
    pub fn followed_in(ctx: TcContext) -> i32 {
        run::<ETHERNET>(&ctx, false, None, |at, packet| {
            hooks::followed_in(at, packet)
        })
    }

    /// tcx egress of a container's veth, at the host's end, where the kernel decides.
    #[classifier]
    pub fn followed_out(ctx: TcContext) -> i32 {
        run::<ETHERNET>(&ctx, false, None, |at, packet| {
            hooks::followed_out(at, packet)
        })
    }

    /// tcx ingress of a bridge.
    #[classifier]
    pub fn bridge_in(ctx: TcContext) -> i32 {
        run_telling(&ctx, Side::Bridge, hooks::bridge_in)
    }

    /// tcx egress of a bridge.
    #[classifier]
    pub fn bridge_out(ctx: TcContext) -> i32 {
        run::<ETHERNET>(&ctx, false, Some(Hook::BridgeOut), hooks::bridge_out)
    }

    /// tcx egress of the defragmentation loopback device.
    #[classifier]
    pub fn defrag_out(ctx: TcContext) -> i32 {
        run::<ETHERNET>(&ctx, false, None, hooks::defrag_out)
    }

    /// XDP on an uplink.
    #[xdp]
    pub fn uplink(ctx: XdpContext) -> u32 {
        crate::xdp::run(&ctx)
    }

    /// Run by the command line: deletes a flow.
    #[classifier]
    pub fn end_flow(ctx: TcContext) -> i32 {
        flow_operations::end_flow(ctx)
    }

    /// Run by the command line: collects expired flows.
    #[classifier]
    pub fn collect_flows(ctx: TcContext) -> i32 {
        flow_operations::collect_flows(ctx)
    }

    /// Run by the agent: follows a connection of the kernel.
    #[classifier]
    pub fn follow_connection(ctx: TcContext) -> i32 {
        flow_operations::follow_connection(ctx)
    }

    /// An IPv4 socket binds.
    #[cgroup_sock_addr(bind4)]
    pub fn bind4(ctx: SockAddrContext) -> i32 {
        socket::bind4(&ctx)
    }

    /// An IPv6 socket binds, possibly to a mapped IPv4 address (`::ffff:…`).
    #[cgroup_sock_addr(bind6)]
    pub fn bind6(ctx: SockAddrContext) -> i32 {
        socket::bind6(&ctx)
    }

    /// An IPv4 socket connects.
    #[cgroup_sock_addr(connect4)]
    pub fn connect4(ctx: SockAddrContext) -> i32 {
        ask4(&ctx)
    }

    /// An IPv6 socket connects, possibly to a mapped IPv4 address (`::ffff:…`).
    #[cgroup_sock_addr(connect6)]
    pub fn connect6(ctx: SockAddrContext) -> i32 {
        ask6(&ctx)
    }

    /// A socket sends an IPv4 datagram to a peer that it names; the socket may be an IPv6 one with
    /// a mapped address. (For IPv6 datagrams the kernel does not allow a program to replace the
    /// destination by an IPv4 address: `ENOTSUPP`.)
    #[cgroup_sock_addr(sendmsg4)]
    pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
        ask4(&ctx)
    }

    /// An IPv4 socket asks for the source of a datagram.
    #[cgroup_sock_addr(recvmsg4)]
    pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
        tell4(&ctx)
    }

    /// An IPv6 socket asks for the source of a datagram.
    #[cgroup_sock_addr(recvmsg6)]
    pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
        tell6(&ctx)
    }

    /// An IPv4 socket asks for its peer.
    #[cgroup_sock_addr(getpeername4)]
    pub fn getpeername4(ctx: SockAddrContext) -> i32 {
        tell4(&ctx)
    }

    /// An IPv6 socket asks for its peer.
    #[cgroup_sock_addr(getpeername6)]
    pub fn getpeername6(ctx: SockAddrContext) -> i32 {
        tell6(&ctx)
    }

    /// The kernel looks up the socket that gets a packet: a listening one, or an unconnected one.
    #[sk_lookup]
    pub fn socket_lookup(ctx: SkLookupContext) -> u32 {
        crate::sk_lookup::run(&ctx)
    }
}

/// The verifier proves that no panic is reached.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The object's licence, because some helpers are available to GPL-compatible programs only
/// (`bpf_ktime_get_coarse_ns`, …).
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("the programs are built for bpfel-unknown-none: use `cargo xtask build`");
}
