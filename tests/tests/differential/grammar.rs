// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which step comes next, and how often each kind comes.

use crate::trace::{Action, Step, Trace};

impl Trace {
    /// The next step.
    pub(crate) fn next_step(&mut self) -> Step {
        if let Some(step) = self.parting.take() {
            if matches!(step.action, Some(Action::EndFlows)) {
                for flow in &mut self.flows {
                    flow.over = true;
                }
            }
            return step;
        }
        loop {
            if let Some(step) = self.draw() {
                return step;
            }
        }
    }

    /// A step, unless it would need a flow that there is not.
    fn draw(&mut self) -> Option<Step> {
        match self.rng.below(100) {
            0..=13 => Some(self.open_plain()),
            14..=15 => Some(self.association()),
            16..=25 => Some(self.open_tcp()),
            26..=27 => Some(self.half_open()),
            28 if self.rng.once_in(4) => self.published_source(),
            28 => Some(self.simultaneous()),
            29..=42 => self.go_on(),
            43..=45 => self.close(),
            46..=47 => self.reset(),
            48..=50 => self.reopen(),
            51..=55 => Some(self.clash()),
            56 => Some(self.after_clash()),
            57 => self.pressure(),
            58..=59 => self.strangers(),
            60..=67 => self.error(),
            68 => self.damaged_error(),
            69 if self.rng.once_in(2) => self.misdirected_error(),
            69 => Some(self.stray_error()),
            70..=72 => Some(self.hops()),
            73..=75 => Some(self.with_options()),
            76..=77 => Some(self.damaged()),
            78..=79 => Some(self.stray_segment()),
            80..=81 => self.outside_window(),
            82..=83 => Some(self.ask_host()),
            84 => Some(self.direct()),
            85 => Some(self.among_containers()),
            86 => Some(self.spoofed()),
            87 => Some(self.nowhere()),
            88..=89 => Some(self.other_protocol()),
            90 => Some(self.other_query()),
            91..=92 => Some(self.large()),
            93..=97 => Some(self.in_pieces()),
            98 if self.rng.once_in(8) => Some(self.narrow_uplink()),
            99 if self.rng.once_in(8) => Some(self.churn()),
            _ => None,
        }
    }
}
