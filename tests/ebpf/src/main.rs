// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! The tests' own programs: `generator` makes UDP frames, `door` counts and drops what arrives,
//! `carrier` runs another program on a packet that has a hash.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        unsafe_code,
        unreachable_pub,
        reason = "maps and contexts are raw pointers, and the object's only reader is a loader"
    )
)]

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::EbpfContext as _;
    use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};
    use aya_ebpf::helpers::{bpf_redirect, bpf_set_hash};
    use aya_ebpf::macros::{classifier, map, xdp};
    use aya_ebpf::maps::{Array, PerCpuArray, ProgramArray};
    use aya_ebpf::programs::{TcContext, XdpContext};

    /// The words of a frame: 60 bytes, the shortest there are on a wire.
    const WORDS: usize = 15;
    const ETH_P_ARP: u16 = 0x0806;

    /// What the generator sends, and where.
    #[repr(C)]
    pub struct Load {
        /// The frame, as its bytes lie in memory.
        frame: [u32; WORDS],
        /// The device by which it leaves, one of the namespace that runs the program.
        ifindex: u32,
        /// How many flows there are, less one: a mask of the low bits of the source port.
        flows: u32,
        /// Counts frames.
        turn: u32,
    }

    /// Where the UDP source port and the checksum stand in a frame.
    const SOURCE_PORT: usize = 34;
    const CHECKSUM: usize = 40;

    #[map]
    pub static LOAD: Array<Load> = Array::with_max_entries(1, 0);
    #[map]
    pub static DROPPED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

    /// Run on live frames: sends each out of the device. Pages come back as their last receiver
    /// left them, so that every byte is written every time.
    #[xdp]
    pub fn generator(ctx: XdpContext) -> u32 {
        let (start, end) = (ctx.data(), ctx.data_end());
        if start + size_of::<[u32; WORDS]>() > end {
            return xdp_action::XDP_ABORTED;
        }
        let Some(load) = LOAD.get_ptr_mut(0) else {
            return xdp_action::XDP_ABORTED;
        };
        // SAFETY: the map's one element, of which only this program, on one CPU, writes `turn`.
        let load = unsafe { &mut *load };
        let turn = (load.turn & load.flows) as u16;
        load.turn = load.turn.wrapping_add(1);
        // SAFETY: the comparison above leaves room for the frame.
        unsafe {
            (start as *mut [u32; WORDS]).write_unaligned(load.frame);
            let port = (start + SOURCE_PORT) as *mut [u8; 2];
            *port = (u16::from_be_bytes(*port) + turn).to_be_bytes();
            // Raised by as much, the port lowers the checksum, with the carry to the other end.
            let sum = (start + CHECKSUM) as *mut [u8; 2];
            let (less, borrow) = u16::from_be_bytes(*sum).overflowing_sub(turn);
            *sum = (less - u16::from(borrow)).to_be_bytes();
        }
        // SAFETY: the helper takes numbers only.
        unsafe { bpf_redirect(load.ifindex, 0) as u32 }
    }

    /// The program that [`carrier`] runs.
    #[map]
    pub static CARRIED: ProgramArray = ProgramArray::with_max_entries(1, 0);

    /// Gives the packet the hash that its control block names, which `BPF_PROG_TEST_RUN` cannot, and
    /// goes on as the program at hand.
    #[classifier]
    pub fn carrier(ctx: TcContext) -> i32 {
        let skb = ctx.as_ptr().cast::<aya_ebpf::bindings::__sk_buff>();
        // SAFETY: the context of a classifier is a `__sk_buff`.
        unsafe { bpf_set_hash(skb, (*skb).cb[0]) };
        // SAFETY: the program at hand is a classifier too.
        let _ = unsafe { CARRIED.tail_call(&ctx, 0) };
        TC_ACT_SHOT
    }

    /// Drops all but ARP, without which a sender would lose its neighbour.
    #[classifier]
    pub fn door(ctx: TcContext) -> i32 {
        // SAFETY: the context of a classifier is a `__sk_buff`.
        let protocol = unsafe { (*ctx.as_ptr().cast::<aya_ebpf::bindings::__sk_buff>()).protocol };
        if protocol == u32::from(ETH_P_ARP.to_be()) {
            return TC_ACT_UNSPEC;
        }
        if let Some(count) = DROPPED.get_ptr_mut(0) {
            // SAFETY: the element is this CPU's own, and no other program runs between.
            unsafe { *count += 1 };
        }
        TC_ACT_SHOT
    }
}

/// The verifier proves that no panic is reached.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// No program needs a helper that asks for a licence; a loader asks for the section.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("the programs are built for bpfel-unknown-none: use `cargo xtask build`");
}
