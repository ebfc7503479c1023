// SPDX-License-Identifier: MIT OR Apache-2.0
//! Flow operations (end, collect): programs that are attached to no hook and run on the pinned
//! maps, with or without an agent.

use std::path::Path;

use anyhow::{Context, Result, bail};
use aya::Ebpf;
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use forwarder_common::abi::FlowRef;
use forwarder_common::conntrack::flow_operation::Ending;

use super::maps::Maps;
use super::pins::Pins;

/// The names of the programs in the object.
const END: &str = "end_flow";
const COLLECT: &str = "collect_flows";
/// The length of the test frame. The kernel requires at least an Ethernet header; this has two
/// bytes more.
const FRAME: usize = 16;
/// The maximum number of attempts to end a flow whose packets change its state all the time.
const TRIES: usize = 1000;

/// The loaded programs.
pub struct FlowOperations {
    ebpf: Ebpf,
    flows: u32,
}

impl FlowOperations {
    /// Loads the programs with the maps that are pinned under `bpffs_dir`.
    ///
    /// # Errors
    /// No datapath of this version is pinned there, or the kernel refuses a program.
    pub fn open(bpffs_dir: &Path) -> Result<Self> {
        let dir = Pins::below(bpffs_dir).maps();
        let flows = Maps::open(&dir)?.settings()?.flows;
        let mut ebpf = super::load(&dir, flows, None)?;
        for name in [END, COLLECT] {
            program(&mut ebpf, name)?
                .load()
                .with_context(|| format!("the kernel refuses the program {name}"))?;
        }
        Ok(Self { ebpf, flows })
    }

    /// Ends a flow: removes both keys and the record. Returns whether the flow still existed.
    ///
    /// # Errors
    /// The kernel does not run the program.
    pub fn end(&mut self, flow: FlowRef) -> Result<bool> {
        let mut frame = [0; FRAME];
        frame[..4].copy_from_slice(&flow.index.to_ne_bytes());
        frame[4..8].copy_from_slice(&flow.id.to_ne_bytes());
        for _ in 0..TRIES {
            let ending = self.run(END, &frame)?;
            if ending != Ending::Busy as u32 {
                return Ok(ending == Ending::Ended as u32);
            }
        }
        bail!("a flow's state changes faster than it can be ended: try again");
    }

    /// Collects all expired flows.
    ///
    /// # Errors
    /// The kernel does not run the program.
    pub fn collect(&mut self) -> Result<()> {
        let mut looked = 0;
        while looked < self.flows {
            // This counts at least one flow, so that a faulty program cannot keep the loop running
            // for ever.
            looked += self.run(COLLECT, &[0; FRAME])?.max(1);
        }
        Ok(())
    }

    fn run(&mut self, name: &str, frame: &[u8]) -> Result<u32> {
        run(program(&mut self.ebpf, name)?, name, frame)
    }
}

/// Runs a program of a flow operation on a frame; returns its result.
pub(super) fn run(program: &SchedClassifier, name: &str, frame: &[u8]) -> Result<u32> {
    let options = TestRunOptions {
        data_in: Some(frame),
        repeat: 1,
        ..TestRunOptions::default()
    };
    let run = program.test_run(options);
    Ok(run
        .with_context(|| format!("cannot run {name}"))?
        .return_value)
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = ebpf.program_mut(name).context("not in the object")?;
    Ok(program.try_into()?)
}
