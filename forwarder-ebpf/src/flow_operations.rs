// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! Programs that are on no hook: the command line runs them (`BPF_PROG_TEST_RUN`), since a flow is
//! ended by compare-and-swap only, which user space has not.

use aya_ebpf::programs::TcContext;
use forwarder_common::abi::FlowRef;
use forwarder_common::flow_operation::{self, Ending};

use crate::kernel::Kernel;
use crate::tc::frame;

/// Records that one run looks at: a tenth of a millisecond, since packets may have to wait for it.
const RECORDS: u32 = 4_096;

/// Ends the flow whose index and id, in the machine's order, are the frame's first bytes: the
/// number of an [`Ending`].
#[inline(always)]
pub fn end_flow(ctx: TcContext) -> i32 {
    let frame = frame(&ctx);
    let (Some(index), Some(id)) = (frame.read::<u32>(0), frame.read::<u32>(4)) else {
        return Ending::Absent as i32;
    };
    flow_operation::end(&Kernel { ctx }, FlowRef { index, id }) as i32
}

/// Looks at some records; how many.
#[inline(always)]
pub fn collect_flows(ctx: TcContext) -> i32 {
    flow_operation::collect(&Kernel { ctx }, RECORDS);
    RECORDS as i32
}
