// SPDX-License-Identifier: MIT OR Apache-2.0
//! The shim that dockerd starts for each published port (`--userland-proxy-path`), in
//! docker-proxy's place.
//!
//! dockerd waits until its proxy reports that the port is served. The shim uses this moment: it
//! reserves the port ([`reserve`]), has the agent program the mapping ([`agent`]), and only then
//! reports to dockerd that the container may start ([`dockerd`]). So a container's ports are in the
//! kernel's map before its first instruction runs. From then on the shim sleeps ([`asleep`]), with
//! its connection to the agent open, until a signal or the agent wakes it ([`signals`]). There is
//! one process per port, perhaps a thousand, so each keeps almost nothing in memory.
//!
//! With SIGINT dockerd says that the port is free again. If dockerd itself dies (the kernel sends
//! SIGTERM), the shim continues as an *orphan*: port and mapping stay until a new dockerd's shim,
//! or the agent, reclaims them.
//!
//! The command line is docker-proxy's ([`args`]). For ports that the agent does not serve (IPv6
//! host addresses and SCTP), the shim replaces itself by Docker's own docker-proxy.

mod agent;
mod args;
mod asleep;
mod dockerd;
mod reserve;
mod signals;

use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use forwarder_protocol::shim::{Binding, ShimReply, ShimRequest};

use agent::Agent;
use args::Args;
use dockerd::Dockerd;
use reserve::Reservation;
use signals::{Signals, Woken};

/// The time limit of the start. dockerd gives up after 16 seconds, and should receive the reason
/// before.
const START: Duration = Duration::from_secs(15);
/// The maximum time from SIGINT to the end, because dockerd waits for it.
const PARTING: Duration = Duration::from_secs(5);
/// The pause between two attempts to find the agent at the start.
const TRY: Duration = Duration::from_millis(100);
/// The pause between two attempts to find the agent again.
const RETRY: Duration = Duration::from_secs(1);
/// How long a port may still be in use after an orphan has released it.
const LINGER: Duration = Duration::from_millis(500);

/// Why the shim ends.
enum End {
    /// dockerd or the agent has ended the shim's work.
    Done,
    /// The work failed, for this reason.
    Failed(String),
}

impl From<String> for End {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

fn main() -> ExitCode {
    let mut dockerd = Dockerd::inherited();
    let end = match Args::parse(std::env::args().skip(1)) {
        Ok(args) if args.is_ours() => run(&args, &mut dockerd),
        Ok(args) => End::Failed(match announce_proxy(&args) {
            Ok(()) => dockerd::become_docker_proxy(&args),
            Err(why) => why,
        }),
        Err(why) => End::Failed(why),
    };
    match end {
        End::Done => ExitCode::SUCCESS,
        End::Failed(why) => {
            eprintln!("forwarder-proxy: {why}");
            dockerd.failed(&why);
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args, dockerd: &mut Dockerd) -> End {
    // SIGTERM reports the death of this process, so its id is read before the signal can arrive.
    let parent = rustix::process::getppid();
    let started = Signals::block()
        .map_err(End::Failed)
        .and_then(|signals| start(args, &signals).map(|held| (signals, held)));
    match started {
        Ok((signals, (agent, reservation))) => {
            dockerd.started();
            asleep::let_go();
            let orphaned = || rustix::process::getppid() != parent;
            stay(args, &signals, agent, reservation, orphaned)
        }
        Err(end) => end,
    }
}

/// Reserves the port and has the agent program the mapping.
fn start(args: &Args, signals: &Signals) -> Result<(Agent, Reservation), End> {
    let deadline = Instant::now() + START;
    let mut agent = find(signals)?;
    let reservation = match Reservation::make(args) {
        Err(busy) if busy.kind() == ErrorKind::AddrInUse => {
            // An orphan of a dead dockerd may hold the port. If there is none, the first error
            // stands.
            let request = ShimRequest::Reclaim(args.binding);
            match ask(&mut agent, &request, None, signals, deadline) {
                Ok(()) => again(args),
                Err(End::Failed(_)) => Err(busy),
                Err(done) => return Err(done),
            }
        }
        made => made,
    };
    let reservation = reservation.map_err(|error| format!("cannot listen on {args}: {error}"))?;
    let request = ShimRequest::Bind(args.binding);
    ask(
        &mut agent,
        &request,
        reservation.socket(),
        signals,
        deadline,
    )?;
    Ok((agent, reservation))
}

/// Has the agent program the access list of an IPv6 port before docker-proxy serves it. The signal
/// mask stays unchanged, because docker-proxy would inherit blocked signals.
fn announce_proxy(args: &Args) -> Result<(), String> {
    if args.binding.host_ip.is_ipv4() {
        return Ok(());
    }
    let patience = Instant::now() + agent::patience()?;
    let mut agent = loop {
        match Agent::connect() {
            Ok(agent) => break agent,
            Err(why) if Instant::now() >= patience => return Err(why),
            Err(_) => sleep(TRY),
        }
    };
    let deadline = Instant::now() + START;
    agent.say(&ShimRequest::Proxy(args.binding))?;
    loop {
        match agent.hear_until(deadline)? {
            Some(ShimReply::Ok(())) => return Ok(()),
            Some(ShimReply::Error(why)) => return Err(why),
            Some(ShimReply::Release(())) | None => {}
        }
    }
}

/// Reserves the port once its holder has released it.
fn again(args: &Args) -> std::io::Result<Reservation> {
    let deadline = Instant::now() + LINGER;
    loop {
        match Reservation::make(args) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                sleep(Duration::from_millis(5));
            }
            made => return made,
        }
    }
}

/// Connects to the agent: at once, or when it appears if the configuration says to wait.
fn find(signals: &Signals) -> Result<Agent, End> {
    let deadline = Instant::now() + agent::patience()?;
    loop {
        match Agent::connect() {
            Ok(agent) => return Ok(agent),
            Err(why) if Instant::now() >= deadline => return Err(why.into()),
            Err(_) => match signals.wait(None, Some(TRY))? {
                Woken::Nothing | Woken::Agent => {}
                Woken::Interrupted | Woken::Terminated => return Err(End::Done),
            },
        }
    }
}

/// Sends a request to the agent and waits for its reply.
fn ask(
    agent: &mut Agent,
    request: &ShimRequest,
    socket: Option<BorrowedFd<'_>>,
    signals: &Signals,
    deadline: Instant,
) -> Result<(), End> {
    agent.say_with(request, socket)?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(End::Failed("the forwarder's agent gives no answer".into()));
        }
        match signals.wait(Some(agent), Some(left))? {
            // dockerd no longer waits for the shim.
            Woken::Interrupted | Woken::Terminated => return Err(End::Done),
            Woken::Nothing => {}
            Woken::Agent => match agent.hear()? {
                Some(ShimReply::Ok(())) => return Ok(()),
                Some(ShimReply::Error(why)) => return Err(End::Failed(why)),
                Some(ShimReply::Release(())) => return Err(End::Done),
                None => {}
            },
        }
    }
}

/// Sleeps until the port must be released.
fn stay(
    args: &Args,
    signals: &Signals,
    agent: Agent,
    mut reservation: Reservation,
    orphaned: impl Fn() -> bool,
) -> End {
    let mut agent = Some(agent);
    let mut orphan = false;
    loop {
        let timeout = agent.is_none().then_some(RETRY);
        let lost = match signals.wait(agent.as_ref(), timeout) {
            Err(why) => return End::Failed(why),
            Ok(Woken::Interrupted) => return part(agent, reservation),
            // The kernel also sends the signal when only a thread of dockerd ends: then nothing has
            // happened.
            Ok(Woken::Terminated) if orphan || !orphaned() => false,
            Ok(Woken::Terminated) => {
                orphan = true;
                reservation.outlive_dockerd();
                announce(args, &mut agent, &reservation, orphan)
            }
            Ok(Woken::Nothing) => {
                agent = Agent::connect().ok();
                announce(args, &mut agent, &reservation, orphan)
            }
            Ok(Woken::Agent) => match agent.as_mut().map(Agent::hear) {
                Some(Ok(Some(ShimReply::Release(())))) => {
                    // The port is free before the agent sees the connection end.
                    drop(reservation);
                    return End::Done;
                }
                // Another shim has the port now.
                Some(Ok(Some(ShimReply::Error(_)))) if orphan => return End::Done,
                Some(Ok(Some(ShimReply::Error(_))) | Err(_)) => true,
                Some(Ok(Some(ShimReply::Ok(())) | None)) | None => false,
            },
        };
        if lost {
            agent = None;
        }
    }
}

/// Sends the shim's claim; returns whether the agent is lost.
fn announce(
    args: &Args,
    agent: &mut Option<Agent>,
    reservation: &Reservation,
    orphan: bool,
) -> bool {
    let request = ShimRequest::Bind(Binding {
        orphan,
        ..args.binding
    });
    agent
        .as_mut()
        .is_some_and(|agent| agent.say_with(&request, reservation.socket()).is_err())
}

/// Ends the publication of the port: first the mapping is removed, then the reservation.
fn part(agent: Option<Agent>, reservation: Reservation) -> End {
    let Some(mut agent) = agent else {
        return End::Done;
    };
    let deadline = Instant::now() + PARTING;
    if agent.say(&ShimRequest::Unbind).is_ok() {
        // An earlier request may still be without a reply. The agent closes the connection when it
        // has released the port.
        while agent.hear_until(deadline).is_ok() {}
    }
    drop(reservation);
    End::Done
}
