// SPDX-License-Identifier: MIT OR Apache-2.0
//! Waiting for dockerd's signals and for the agent, in one place.

use std::os::fd::AsFd as _;
use std::time::Duration;

use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::agent::Agent;

/// Why the wait has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Woken {
    /// SIGINT: the port is no longer published.
    Interrupted,
    /// SIGTERM: dockerd, or a thread of it, has ended.
    Terminated,
    /// The agent has sent something, or has gone.
    Agent,
    /// The timeout has passed.
    Nothing,
}

/// The signals, which arrive only in [`Self::wait`] after [`Self::block`].
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Blocks the signals. SIGHUP of a closed terminal is not handled.
    pub(crate) fn block() -> Result<Self, String> {
        let heard: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
        let mut blocked = heard;
        blocked.add(Signal::SIGHUP);
        blocked
            .thread_block()
            .and_then(|()| {
                SignalFd::with_flags(&heard, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            })
            .map(Self)
            .map_err(|error| format!("cannot block signals: {error}"))
    }

    /// Sleeps until something arrives, at most for `timeout`.
    pub(crate) fn wait(
        &self,
        agent: Option<&Agent>,
        timeout: Option<Duration>,
    ) -> Result<Woken, String> {
        if agent.is_some_and(Agent::has_heard) {
            return Ok(Woken::Agent);
        }
        let timeout = timeout.map(|time| Timespec {
            tv_sec: time.as_secs().cast_signed(),
            tv_nsec: time.subsec_nanos().into(),
        });
        let broken = |error: &dyn std::fmt::Display| format!("cannot wait: {error}");
        let wanted = PollFlags::IN;
        let own = PollFd::new(&self.0, wanted);
        let signalled = match agent {
            Some(agent) => {
                let mut both = [own, PollFd::from_borrowed_fd(agent.as_fd(), wanted)];
                match poll(&mut both, timeout.as_ref()) {
                    Ok(0) => return Ok(Woken::Nothing),
                    Ok(_) => !both[0].revents().is_empty(),
                    Err(error) => return Err(broken(&error)),
                }
            }
            None => match poll(&mut [own], timeout.as_ref()) {
                Ok(0) => return Ok(Woken::Nothing),
                Ok(_) => true,
                Err(error) => return Err(broken(&error)),
            },
        };
        if !signalled {
            return Ok(Woken::Agent);
        }
        match self.0.read_signal() {
            Ok(Some(signal)) if signal.ssi_signo == libc::SIGINT.cast_unsigned() => {
                Ok(Woken::Interrupted)
            }
            Ok(Some(_)) => Ok(Woken::Terminated),
            Ok(None) => Ok(Woken::Nothing),
            Err(error) => Err(broken(&error)),
        }
    }
}
