// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! Steps of the flow lifecycle as global BPF functions: the verifier proves each once, by itself,
//! and not again on every path that leads to a call. They take and return plain numbers.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::EbpfContext;
use forwarder_common::abi::FlowRef;
use forwarder_common::crc::Shift;
use forwarder_common::event::EventKind;
use forwarder_common::flow::{self, End, FlowState};
use forwarder_common::quota;
use forwarder_common::sctp;
use forwarder_common::tables::Tables as _;
use forwarder_common::window::{self, PreCheck, Segment, Transition, Verdict};

use crate::kernel::Kernel;

/// Stands for a program's context: these steps access maps only.
struct Nowhere;

impl EbpfContext for Nowhere {
    fn as_ptr(&self) -> *mut c_void {
        ptr::null_mut()
    }
}

/// What [`take_record`] and [`charge`] return for "none".
pub const NONE: u64 = u64::MAX;

/// [`flow::take_record`]: the index in the low half, the generation in the high one; or [`NONE`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn take_record(originator: u32) -> u64 {
    match flow::take_record(&Kernel { ctx: Nowhere }, originator) {
        Some(FlowRef { index, id }) => (id as u64) << 32 | index as u64,
        None => NONE,
    }
}

/// [`flow::sweep_some`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sweep_some() -> u64 {
    flow::sweep_some(&Kernel { ctx: Nowhere });
    0
}

/// [`flow::publish`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn publish(index: u32, id: u32) -> u64 {
    flow::publish(&Kernel { ctx: Nowhere }, FlowRef { index, id });
    0
}

/// [`window::prepare`]: a segment packed into two words, the result into one.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn prepare(index: u32, flow_state: u64, numbers: u64, facts: u64) -> u64 {
    let Some(flow) = (Kernel { ctx: Nowhere }).flow(index) else {
        return PreCheck::Decided(Verdict::Ignore).pack();
    };
    let segment = Segment::unpack([numbers, facts]);
    window::prepare(&flow.windows, FlowState(flow_state), &segment).pack()
}

/// [`window::settle`]: packed as for [`prepare`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn settle(index: u32, transition: u64, numbers: u64, facts: u64) -> u64 {
    let kernel = Kernel { ctx: Nowhere };
    let Some(flow) = kernel.flow(index) else {
        return Verdict::Ignore.pack();
    };
    let (transition, segment) = (
        Transition::unpack(transition),
        Segment::unpack([numbers, facts]),
    );
    window::settle(&kernel, &flow.windows, transition, &segment).pack()
}

/// [`flow::claim`], with the event kind's number: 1 if the claim succeeded.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn claim(index: u32, flow_state: u64, why: u32) -> u64 {
    let kernel = Kernel { ctx: Nowhere };
    flow::claim(
        &kernel,
        index,
        FlowState(flow_state),
        EventKind::from_u32(why),
    ) as u64
}

/// [`quota::charge`]: the reason's number, or [`NONE`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn charge(slot: u32, generation: u32) -> u64 {
    let originator = End { slot, generation };
    quota::charge(&Kernel { ctx: Nowhere }, originator).map_or(NONE, |reason| reason as u64)
}

/// [`crc::shift`](forwarder_common::crc::shift).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn shift(register: u32, octets: u32) -> u64 {
    let mut shift = Shift::new(register, octets as u16);
    Kernel { ctx: Nowhere }.attempt(Shift::STEPS, &mut shift);
    shift.register as u64
}

/// [`sctp::follow`]: the state's number in the low half, the timeout in the high one.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn follow(state: u32, chunk: u32, reply: u32, trusted: u32) -> u64 {
    let state = sctp::State::from_u8(state as u8);
    let (state, span) = sctp::follow(state, chunk as u8, reply != 0, trusted != 0);
    (span as u64) << 32 | state as u64
}
