// SPDX-License-Identifier: MIT OR Apache-2.0
//! The sweep: collects expired flows, a few records before each new flow.

use core::marker::PhantomData;

use crate::attempt::Attempt;
use crate::clock::Ticks;
use crate::conntrack::flow::{is_current, retire};
use crate::event::EventKind;
use crate::family::Family;
use crate::subprograms::Tracking;

/// How many records each new flow inspects to collect expired flows: the whole table is swept once
/// in `flows / SWEEP` insertions, without the agent and without a timer.
const SWEEP: u32 = 2;

/// The same while more than half of the table is in use.
const SWEEP_FULL: u32 = 16;

/// Collects some expired flows. Runs before each new flow, also before one that is then refused:
/// otherwise nothing would be collected while all new flows are refused.
#[inline(always)]
pub fn sweep_some<F: Family, T: Tracking<F>>(tables: &T) {
    let is_full = tables.used() > tables.settings().flows / 2;
    let records = if is_full { SWEEP_FULL } else { SWEEP };
    tables.attempt(records, &mut Sweeper::new(tables));
}

/// One step of the sweep, for [`Runtime::attempt`](crate::environment::Runtime::attempt).
pub(crate) struct Sweeper<'a, F, T> {
    tables: &'a T,
    now: Ticks,
    family: PhantomData<F>,
}

impl<'a, F: Family, T: Tracking<F>> Sweeper<'a, F, T> {
    /// A sweeper whose clock is read now.
    #[inline(always)]
    pub(crate) fn new(tables: &'a T) -> Self {
        Self {
            tables,
            now: tables.now(),
            family: PhantomData,
        }
    }
}

impl<F: Family, T: Tracking<F>> Attempt for Sweeper<'_, F, T> {
    #[inline(always)]
    fn once(&mut self) -> bool {
        sweep(self.tables, self.now);
        false
    }
}

/// Inspects the next record of the sweep and frees it if its flow has expired or one of its
/// endpoints is gone. Otherwise a container that restarts again and again could fill the table with
/// flows that count against no quota.
#[inline(always)]
fn sweep<F: Family, T: Tracking<F>>(tables: &T, now: Ticks) {
    let index = tables.next_sweep();
    let Some(flow) = tables.flow(index) else {
        return;
    };
    let flow_state = tables.flow_state(flow);
    if flow_state.is_live() && !is_current(tables, flow, now) {
        retire(tables, index, flow_state, EventKind::Over);
    }
}
