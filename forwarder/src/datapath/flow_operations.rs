// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is done to flows by hand: programs that are on no hook, run on the pinned maps, with an agent
//! or without.

use std::path::Path;

use anyhow::{Context, Result, bail};
use aya::Ebpf;
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use forwarder_common::flow_operation::Ending;

use super::maps::{FlowSnapshot, Maps};
use super::pins::Pins;

/// The programs' names in the object.
const END: &str = "end_flow";
const COLLECT: &str = "collect_flows";
/// The shortest frame that the kernel runs a program on is an Ethernet header; this is two words more.
const FRAME: usize = 16;
/// How often a flow is tried to be ended whose packets change its state all the time.
const TRIES: usize = 1000;

/// The loaded programs.
pub struct FlowOperations {
    ebpf: Ebpf,
    flows: u32,
}

impl FlowOperations {
    /// Loads them over the maps that are pinned below `bpffs_dir`.
    ///
    /// # Errors
    /// Nothing of this version is pinned there, or the kernel refuses a program.
    pub fn open(bpffs_dir: &Path) -> Result<Self> {
        let dir = Pins::below(bpffs_dir).maps();
        let flows = Maps::open(&dir)?.settings()?.flows;
        let mut ebpf = super::load(&dir, flows)?;
        for name in [END, COLLECT] {
            program(&mut ebpf, name)?
                .load()
                .with_context(|| format!("the kernel refuses the program {name}"))?;
        }
        Ok(Self { ebpf, flows })
    }

    /// Ends a flow, both keys and the record; whether it was still there to be ended.
    ///
    /// # Errors
    /// The kernel does not run the program.
    pub fn end(&mut self, flow: &FlowSnapshot) -> Result<bool> {
        let mut frame = [0; FRAME];
        frame[..4].copy_from_slice(&flow.index.to_ne_bytes());
        frame[4..8].copy_from_slice(&flow.flow_state.id().to_ne_bytes());
        for _ in 0..TRIES {
            let ending = self.run(END, &frame)?;
            if ending != Ending::Busy as u32 {
                return Ok(ending == Ending::Ended as u32);
            }
        }
        bail!("a flow's state changes faster than it can be ended: try again");
    }

    /// Collects all flows whose time is over.
    ///
    /// # Errors
    /// The kernel does not run the program.
    pub fn collect(&mut self) -> Result<()> {
        let mut looked = 0;
        while looked < self.flows {
            // At least one, lest a program of no use keeps us here.
            looked += self.run(COLLECT, &[0; FRAME])?.max(1);
        }
        Ok(())
    }

    fn run(&mut self, name: &str, frame: &[u8]) -> Result<u32> {
        let options = TestRunOptions {
            data_in: Some(frame),
            repeat: 1,
            ..TestRunOptions::default()
        };
        let run = program(&mut self.ebpf, name)?.test_run(options);
        Ok(run
            .with_context(|| format!("cannot run {name}"))?
            .return_value)
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = ebpf.program_mut(name).context("not in the object")?;
    Ok(program.try_into()?)
}
