// SPDX-License-Identifier: MIT OR Apache-2.0
//! The TCP servers and clients: nginx with wrk, sockperf, iperf3, run inside namespaces.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::{Finished, Process, Space, eventually, finish};

use crate::arms::Route;
use crate::cpu::Cpu;
use crate::parse;

/// The ports of the servers, the same in a container and published.
pub(crate) const HTTP: u16 = 8080;
pub(crate) const LATENCY: u16 = 11111;
pub(crate) const STREAM: u16 = 5201;

/// The time limit from the start of a server until it listens.
const START: Duration = Duration::from_secs(10);
/// The number of connections that wrk keeps busy: enough to keep both ends working.
const CONNECTIONS: &str = "8";

/// The servers in one namespace. They are killed when this is dropped.
pub(crate) struct Servers(#[expect(dead_code, reason = "held until it is dropped")] [Process; 3]);

impl Servers {
    /// Starts them and waits until they listen. Their files go into `folder`, which is created.
    ///
    /// # Errors
    /// A server does not start.
    pub(crate) fn start(space: &Space, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let spawn = |argv: &[&str], port: u16| {
            let log = folder.join(format!("{}.log", argv[0]));
            let mut command = command(space, argv)?;
            let mut server = Process::spawn(argv[0], &mut command, &log)?;
            let up = eventually(START, || listens(space, port));
            up.with_context(|| {
                let _ = server.kill();
                format!(
                    "{} does not listen in {}: {}",
                    argv[0],
                    space.name(),
                    server.log()
                )
            })?;
            anyhow::Ok(server)
        };
        let config = folder.join("nginx.conf");
        fs::write(&config, nginx(folder))?;
        let path = |path: &Path| path.display().to_string();
        let http = ["nginx", "-p", &path(folder), "-c", &path(&config)];
        let latency = ["sockperf", "server", "--tcp", "-p", &LATENCY.to_string()];
        let stream = ["iperf3", "-s", "-p", &STREAM.to_string()];
        Ok(Self([
            spawn(&http, HTTP)?,
            spawn(&latency, LATENCY)?,
            spawn(&stream, STREAM)?,
        ]))
    }
}

/// Returns the configuration of one process (so that killing it leaves none behind) that answers
/// two bytes from memory.
fn nginx(folder: &Path) -> String {
    let folder = folder.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {folder}/{kind}; "))
        .collect();
    format!(
        "daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr;\n\
         events {{ worker_connections 1024; }}\n\
         http {{ access_log off; keepalive_requests 1000000000; {temporary}\n\
         server {{ listen {HTTP} backlog=1024; location / {{ return 200 ok; }} }} }}\n"
    )
}

/// Checks that a TCP socket listens on a port. Checking by a connection would disturb iperf3.
fn listens(space: &Space, port: u16) -> Result<()> {
    let tables = space.enter(|| {
        ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("/proc/thread-self/net/{table}")))
    })?;
    let tables = tables.into_iter().collect::<Result<Vec<_>, _>>()?.concat();
    ensure!(
        listening(&tables, port),
        "nothing listens on port {port} of {}",
        space.name()
    );
    Ok(())
}

/// Whether a table of `/proc/net/tcp` has a port in the state LISTEN.
fn listening(table: &str, port: u16) -> bool {
    let local = format!(":{port:04X}");
    table.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        words.next().is_some_and(|word| word.ends_with(&local)) && words.nth(1) == Some("0A")
    })
}

/// Returns a command inside, pinned to the CPU.
fn command(space: &Space, argv: &[&str]) -> Result<Command> {
    let mut command = space.command("taskset");
    command
        .arg("-c")
        .arg(Cpu::Work.number()?.to_string())
        .args(argv);
    Ok(command)
}

/// Runs a client to its end and returns what it printed.
fn client(route: &Route, argv: &[&str]) -> Result<Finished> {
    finish(&mut command(&route.client, argv)?)
}

/// Returns half a round trip, in µs.
pub(crate) fn ping_pong(route: &Route, seconds: u32) -> Result<f64> {
    let seconds = seconds.to_string();
    let (address, port) = (route.address.to_string(), LATENCY.to_string());
    let (to, what) = (["-i", &address, "-p", &port], ["-m", "14", "-t", &seconds]);
    let argv = [&["sockperf", "ping-pong", "--tcp"], &to[..], &what].concat();
    parse::sockperf(&client(route, &argv)?.stdout)
}

/// Returns the requests per second, each on its own connection.
pub(crate) fn connections(route: &Route, seconds: u32) -> Result<f64> {
    wrk(route, seconds, &["-H", "Connection: close"])
}

/// Returns the requests per second on open connections.
pub(crate) fn keep_alive(route: &Route, seconds: u32) -> Result<f64> {
    wrk(route, seconds, &[])
}

fn wrk(route: &Route, seconds: u32, options: &[&str]) -> Result<f64> {
    let seconds = seconds.to_string();
    let url = format!("http://{}:{HTTP}/", route.address);
    let fixed = ["wrk", "-t", "1", "-c", CONNECTIONS, "-d", &seconds];
    let argv = [&fixed[..], options, &[&url]].concat();
    parse::wrk(&client(route, &argv)?.success()?)
}

/// Returns the throughput of one stream, in Gbit/s. A long one is measured after its first second.
pub(crate) fn stream(route: &Route, seconds: u32) -> Result<f64> {
    let omitted = if seconds > 1 { "1" } else { "0" };
    let seconds = seconds.to_string();
    let (address, port) = (route.address.to_string(), STREAM.to_string());
    let to = ["-c", &address, "-p", &port];
    let argv = [&["iperf3", "-J", "-O", omitted, "-t", &seconds], &to[..]].concat();
    // With -J the JSON also contains errors.
    parse::iperf3(&client(route, &argv)?.stdout)
}

#[cfg(test)]
mod tests {
    use super::listening;

    #[test]
    fn listening_is_a_state_and_a_local_port() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when\n\
             \x20  0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000\n\
             \x20  1: 0100007F:1451 0100007F:C350 01 00000000:00000000 00:00000000\n\
             \x20  2: 0100007F:C351 00000000:2B67 0A 00000000:00000000 00:00000000\n";
        assert!(listening(table, 8080));
        assert!(!listening(table, 5201), "established, not listening");
        assert!(!listening(table, 11111), "the remote port");
    }
}
