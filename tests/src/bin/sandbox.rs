// SPDX-License-Identifier: MIT OR Apache-2.0
//! `forwarder-sandbox`: a separate Docker host with one container, the forwarder on it, and a
//! client beside it; demonstrated, kept until Ctrl-C, and removed.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use harness::{Agent, Container, Docker, Host, Lab, Peer, eventually};
use nix::sys::signal::{SigSet, Signal};

const HELP: &str = "\
Shows the forwarder on a Docker host of its own, made of network namespaces: nothing of this
machine's Docker or network is touched. Stays until Ctrl-C; takes down all it made.

  --once   show it and end";

/// The port under which the example container's port 80 is published.
const PUBLISHED: u16 = 8080;
/// How long the first request may take to succeed.
const SOON: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("forwarder-sandbox: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut once = false;
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--once" => once = true,
            "-h" | "--help" => {
                println!("{HELP}");
                return Ok(());
            }
            other => bail!("unknown argument {other}; see --help"),
        }
    }
    ensure!(
        rustix::process::geteuid().is_root(),
        "run as root: it makes network namespaces"
    );

    // A blocked signal waits until everything is set up and can be removed in order.
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
        .into_iter()
        .collect();
    signals.thread_block()?;

    println!("A Docker host of its own; nothing of this machine's is touched.\n");
    let sandbox = Sandbox::start()?;
    sandbox.show()?;
    if !once {
        sandbox.invite()?;
        signals.wait()?;
        println!();
    }
    step("taking it all down", || {
        drop(sandbox);
        Ok(())
    })
}

struct Sandbox {
    // The fields are dropped in this order.
    _agent: Agent,
    web: Container,
    host: Host,
    lab: Lab,
}

impl Sandbox {
    fn start() -> Result<Self> {
        let lab = Lab::new("sandbox")?;
        let host = step("starting dockerd, its iptables off", || {
            lab.host(Docker::replace())
        })?;
        let port = format!("{PUBLISHED}:80");
        let web = step(&format!("docker run -p {port} --name web"), || {
            host.run("web", &["-p", &port], &Peer::serve(80))
        })?;
        let agent = step("forwarder run", || host.agent().quiet().start())?;
        Ok(Self {
            _agent: agent,
            web,
            host,
            lab,
        })
    }

    /// Shows a request in, a request out, and the forwarder's view of both.
    fn show(&self) -> Result<()> {
        let (lan, host, container) = (
            self.host.gateway(),
            self.host.address(),
            self.web.ip()?.to_string(),
        );
        println!(
            "\n  a client  {lan} ──── {host}  the Docker host  ──── {container}  web\n\
             \x20 on the LAN              port {PUBLISHED}                      port 80\n"
        );

        let published = format!("{host}:{PUBLISHED}");
        let seen = eventually(SOON, || self.lab.lan().peer(&["get", &published]))?;
        println!("  in    the client asks http://{published}/");
        println!("        web answers; it saw the client itself: {seen}");

        let mut server = self.lab.lan().spawn_peer(&["serve", "80"])?;
        server.line("serving", SOON)?;
        let seen = self.web.peer(&["get", &format!("{lan}:80")])?;
        println!("  out   web asks http://{lan}/");
        println!("        the client's server answers; it saw the host: {seen}");

        for verb in ["status", "ports", "flows"] {
            println!("\n$ forwarder {verb}\n{}", self.host.cli(&[verb])?);
        }
        println!();
        Ok(())
    }

    /// Prints what to try while it runs.
    fn invite(&self) -> Result<()> {
        let lan = self.lab.lan().path().display();
        println!("It stands until Ctrl-C. To look around, from another shell:\n");
        println!(
            "nsenter --net={lan} curl http://{}:{PUBLISHED}/",
            self.host.address()
        );
        println!("docker -H {} ps", self.host.docker_cli().address());
        println!("{}", self.host.forwarder_line(&["flows"])?);
        Ok(())
    }
}

/// Does one step and prints how long it took.
fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let done = work()?;
    println!("  {what:<42} {:.1} s", start.elapsed().as_secs_f32());
    Ok(done)
}
