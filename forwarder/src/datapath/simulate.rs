// SPDX-License-Identifier: MIT OR Apache-2.0
//! Simulation: runs a loaded program on a packet once in the kernel, outside of any device
//! (`BPF_PROG_TEST_RUN`). Redirects are decided but not performed; flows are really created.

use anyhow::{Context, Result};
use aya::programs::{ProgramFd, SchedClassifier, TestRun, TestRunOptions};
use forwarder_state::desired_state::{Hook, SocketHook};

use super::Datapath;

/// How a packet arrives at a hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Arrival {
    /// The device that the hook is on. It must exist in this network namespace.
    pub ifindex: u32,
    /// On egress: the device that the packet arrived through, 0 for the host's own packets.
    pub ingress_ifindex: u32,
    /// The packet's mark.
    pub mark: u32,
    /// The packet's hash. Only a carrier program can set it: see [`Datapath::simulate`].
    pub hash: u32,
    /// The transport payload per segment of a GSO packet, 0 for other packets.
    pub segment: u32,
}

/// The result of a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Simulated {
    /// The program's verdict: `TC_ACT_*` as an `i32`, or `XDP_*`.
    pub code: i32,
    /// The frame afterwards.
    pub frame: Vec<u8>,
    /// The mark afterwards.
    pub mark: u32,
    /// The duration of one run in nanoseconds, by the kernel's clock.
    pub nanoseconds: u64,
}

/// Offsets in `struct __sk_buff` (`linux/bpf.h`).
mod skb {
    pub(super) const SIZE: usize = 192;
    pub(super) const MARK: usize = 8;
    pub(super) const INGRESS_IFINDEX: usize = 36;
    pub(super) const IFINDEX: usize = 40;
    pub(super) const CB: usize = 48;
    pub(super) const GSO_SIZE: usize = 176;
}

/// Offsets in `struct xdp_md`.
mod xdp {
    pub(super) const SIZE: usize = 24;
    pub(super) const DATA_END: usize = 4;
    pub(super) const INGRESS_IFINDEX: usize = 12;
}

impl Datapath {
    /// Returns a hook's program, for a caller that runs it by a tail call.
    ///
    /// # Errors
    /// The kernel refuses the program.
    pub fn program(&mut self, hook: Hook) -> Result<ProgramFd> {
        Ok(self.hooks.programs.classifier(hook)?.fd()?.try_clone()?)
    }

    /// Runs a hook's program on a frame, `repeat` times. With a `carrier`, the carrier runs first:
    /// it sets the packet's hash from the control block and tail-calls the program.
    ///
    /// # Errors
    /// The kernel refuses: the frame has fewer than 14 bytes, or the device does not exist.
    pub fn simulate(
        &mut self,
        hook: Hook,
        frame: &[u8],
        arrival: Arrival,
        repeat: u32,
        carrier: Option<&SchedClassifier>,
    ) -> Result<Simulated> {
        let mut out = vec![0; frame.len() + 64];
        let mut context = Vec::new();
        let mut put = |size: usize, offset: usize, value: u32| {
            context.resize(size, 0);
            context[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        };
        if hook == Hook::Uplink {
            put(xdp::SIZE, xdp::DATA_END, frame.len() as u32);
            put(xdp::SIZE, xdp::INGRESS_IFINDEX, arrival.ifindex);
        } else {
            put(skb::SIZE, skb::MARK, arrival.mark);
            put(skb::SIZE, skb::INGRESS_IFINDEX, arrival.ingress_ifindex);
            put(skb::SIZE, skb::IFINDEX, arrival.ifindex);
            put(skb::SIZE, skb::CB, arrival.hash);
            put(skb::SIZE, skb::GSO_SIZE, arrival.segment);
        }
        let mut context_out = vec![0; context.len()];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ctx_out: Some(&mut context_out),
            repeat,
            ..TestRunOptions::default()
        };
        let run = if hook == Hook::Uplink {
            self.hooks.programs.xdp()?.test_run(options)
        } else if let Some(carrier) = carrier {
            carrier.test_run(options)
        } else {
            self.hooks.programs.classifier(hook)?.test_run(options)
        };
        let run = run.with_context(|| format!("cannot run {}", hook.program()))?;
        out.truncate(run.data_size_out as usize);
        let mark = match context_out.get(skb::MARK..skb::MARK + 4) {
            Some(&[a, b, c, d]) if hook != Hook::Uplink => u32::from_ne_bytes([a, b, c, d]),
            _ => arrival.mark,
        };
        Ok(Simulated {
            code: run.return_value as i32,
            frame: out,
            mark,
            nanoseconds: run.duration.as_nanos() as u64,
        })
    }

    /// Returns the verifier's figures for a hook's program: the instructions that it verified, and
    /// the program's size in bytes after translation.
    ///
    /// # Errors
    /// The kernel refuses the program, or does not say.
    pub fn verified(&mut self, hook: Hook) -> Result<(u32, u32)> {
        let info = if hook == Hook::Uplink {
            self.hooks.programs.xdp()?.info()?
        } else {
            self.hooks.programs.classifier(hook)?.info()?
        };
        let walked = info
            .verified_instruction_count()
            .context("the kernel does not say")?;
        Ok((walked, info.size_translated().unwrap_or_default()))
    }

    /// Returns the verifier's figures for a socket program.
    ///
    /// # Errors
    /// As [`Self::verified`].
    pub fn verified_socket(&mut self, hook: SocketHook) -> Result<(u32, u32)> {
        let info = if hook.is_on_cgroup() {
            self.hooks.programs.sock_addr(hook)?.info()?
        } else {
            self.hooks.programs.sk_lookup()?.info()?
        };
        let walked = info
            .verified_instruction_count()
            .context("the kernel does not say")?;
        Ok((walked, info.size_translated().unwrap_or_default()))
    }
}
