// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! Flow operations: programs on no hook, which the agent and the command line run
//! (`BPF_PROG_TEST_RUN`). User space cannot create or delete a flow itself, because that takes a
//! compare-and-swap on a map element.

use aya_ebpf::programs::TcContext;
use forwarder_common::abi::FlowRef;
use forwarder_common::conntrack::flow_operation::{self, Ending, Followed, Following};
use forwarder_common::family::V4;

use crate::kernel::Kernel;
use crate::skb::frame;

/// Records that one run inspects: about a tenth of a millisecond, because packets may have to wait
/// for it.
const RECORDS: u32 = 4_096;

/// Deletes the flow whose index and generation, in host order, are the frame's first bytes; returns
/// the number of an [`Ending`].
#[inline(always)]
pub fn end_flow(ctx: TcContext) -> i32 {
    let frame = frame(&ctx);
    let (Some(index), Some(id)) = (frame.read::<u32>(0), frame.read::<u32>(4)) else {
        return Ending::Absent as i32;
    };
    flow_operation::end(&Kernel { ctx }, FlowRef { index, id }) as i32
}

/// Inspects some records; returns how many.
#[inline(always)]
pub fn collect_flows(ctx: TcContext) -> i32 {
    flow_operation::collect(&Kernel { ctx }, RECORDS);
    RECORDS as i32
}

/// Follows the connection that is the frame's beginning; returns the number of a [`Following`].
#[inline(always)]
pub fn follow_connection(ctx: TcContext) -> i32 {
    let Some(connection) = Followed::<V4>::read(&frame(&ctx)) else {
        return Following::Refused as i32;
    };
    flow_operation::follow(&Kernel { ctx }, &connection) as i32
}
