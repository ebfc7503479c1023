// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connections that the kernel tracks, in the index of flows: no flow takes their tuples, and their
//! packets are left to the kernel.

use anyhow::{Context, Result};
use aya::maps::MapError;
use forwarder_common::abi::{FlowRef, Tuple};

use super::Datapath;
use super::families::MapFamily;
use super::maps::{Maps, Wire};
use super::unless_absent;

/// `BPF_NOEXIST`.
const NEW: u64 = 1;

impl Datapath {
    /// Leaves the connection of a tuple to the kernel. Returns the flow that has the tuple already
    /// and has to end first.
    ///
    /// # Errors
    /// The index is full.
    pub fn leave_to_kernel<F: MapFamily>(&mut self, tuple: Tuple<F>) -> Result<Option<FlowRef>> {
        let index = &mut F::of_mut(&mut self.maps).flow_index;
        match index.insert(Wire(tuple), Wire(FlowRef::KERNEL), NEW) {
            Ok(()) => Ok(None),
            Err(error) => match index.get(&Wire(tuple), 0) {
                Ok(Wire(FlowRef::KERNEL)) => Ok(None),
                Ok(Wire(flow)) => Ok(Some(flow)),
                Err(MapError::KeyNotFound) => {
                    Err(error).context("the index of flows has no room for a connection")
                }
                Err(error) => Err(error).context("cannot read the index of flows"),
            },
        }
    }

    /// Forgets a tuple whose connection the kernel tracks no longer: whoever comes next gets a flow.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn forget_kernel_owned<F: MapFamily>(&mut self, tuple: Tuple<F>) -> Result<(), MapError> {
        let index = &mut F::of_mut(&mut self.maps).flow_index;
        match index.get(&Wire(tuple), 0) {
            Ok(Wire(FlowRef::KERNEL)) => unless_absent(index.remove(&Wire(tuple))),
            _ => Ok(()),
        }
    }

    /// Returns the tuples that stand for connections of the kernel, in any order.
    #[must_use]
    pub fn kernel_owned<F: MapFamily>(&self) -> Vec<Tuple<F>> {
        self.maps.kernel_owned()
    }
}

impl Maps {
    /// Returns the tuples that stand for connections of the kernel, in any order.
    pub(super) fn kernel_owned<F: MapFamily>(&self) -> Vec<Tuple<F>> {
        let entries = F::of(self).flow_index.iter().flatten();
        let kernels = entries.filter(|(_, reference)| reference.0 == FlowRef::KERNEL);
        kernels.map(|(tuple, _)| tuple.0).collect()
    }
}
