// SPDX-License-Identifier: MIT OR Apache-2.0
//! Followed flows: creates the flow of a connection that the kernel tracks, and reads it.

use anyhow::Result;
use forwarder_common::abi::Tuple;
use forwarder_common::conntrack::flow_operation::{Followed, Following};
use forwarder_common::family::V4;
use forwarder_common::wire::frame::Frame;

use super::Datapath;
use super::families::MapFamily;
use super::flow_operations::run;
use super::flows::FlowSnapshot;
use super::maps::{Maps, Wire};

/// The name of the program in the object.
const FOLLOW: &str = "follow_connection";

impl Datapath {
    /// Creates the flow of a connection that the kernel tracks.
    ///
    /// # Errors
    /// The kernel refuses the program or does not run it.
    pub fn follow(&mut self, connection: &Followed<V4>) -> Result<Following> {
        let mut frame = [0; Followed::<V4>::LEN];
        let fits = connection.write(&mut Frame::new(&mut frame));
        debug_assert!(fits, "the frame has the length of a connection");
        Ok(
            match run(self.hooks.programs.named(FOLLOW)?, FOLLOW, &frame)? {
                code if code == Following::Followed as u32 => Following::Followed,
                code if code == Following::Taken as u32 => Following::Taken,
                _ => Following::Refused,
            },
        )
    }

    /// Returns the followed flow of a tuple, if it has one.
    #[must_use]
    pub fn followed<F: MapFamily>(&self, tuple: Tuple<F>) -> Option<FlowSnapshot> {
        self.maps.followed(tuple)
    }
}

impl Maps {
    fn followed<F: MapFamily>(&self, tuple: Tuple<F>) -> Option<FlowSnapshot> {
        let maps = F::of(self);
        let Wire(reference) = maps.flow_index.get(&Wire(tuple), 0).ok()?;
        let record = maps.flows.get(&reference.index, 0).ok()?;
        let flow = FlowSnapshot::of(reference.index, &record.flow());
        (flow.reference() == reference && flow.flow_state.is_followed()).then_some(flow)
    }
}
