// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent's log, and what becomes of it when its terminal or its configuration changes.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::{Docker, Lab, Peer, eventually, finish, holds};
use rustix::process::Signal;
use serde_json::Value;

use crate::{SOON, assert_has};

#[test]
fn waiting_for_docker_is_logged_once() -> Result<()> {
    let lab = Lab::new("waits")?;
    let host = lab.host(Docker::replace())?;
    host.stop_docker()?;
    let mut agent = host.agent().spawn()?;
    let waiting = |agent: &harness::Agent| agent.log().matches("waiting for Docker").count();
    eventually(SOON, || {
        ensure!(waiting(&agent) > 0, "it does not say so: {}", agent.log());
        Ok(())
    })?;
    holds(Duration::from_secs(2), || {
        ensure!(waiting(&agent) == 1, "more than once: {}", agent.log());
        Ok(())
    })?;
    host.start_docker()?;
    agent.ready()?;
    Ok(())
}

/// Waits for a line of the agent's log that ends so, and checks that it is there once.
fn logged(agent: &harness::Agent, end: &str) -> Result<()> {
    eventually(SOON, || {
        let log = agent.log();
        let lines = log.lines().filter(|line| line.ends_with(end));
        let count = lines.count();
        ensure!(count == 1, "{count} lines end with {end:?}:\n{log}");
        Ok(())
    })
}

/// The log has a line for what an operator cares about, by its names, once.
#[test]
fn log_says_what_was_applied() -> Result<()> {
    let lab = Lab::new("notices")?;
    let host = lab.host(Docker::replace())?;
    host.run("old", &["-p", "8079:80"], &Peer::serve(80))?;
    let mut agent = host.agent().start()?;
    // What is in place at the start is one line.
    let first = " INFO in place: networks 1 on the fast path, 0 decided by the kernel; containers 1; \
                 ports 1";
    logged(&agent, first)?;
    ensure!(!agent.log().contains(" INFO published "), "{}", agent.log());

    let network = [
        "network",
        "create",
        "-o",
        "com.docker.network.bridge.name=br-shop",
        "shop",
    ];
    host.docker(&network)?;
    logged(&agent, " INFO network shop (br-shop): on the fast path")?;
    let options = ["--network=shop", "--ip=172.30.0.9", "-p", "8080:80"];
    host.docker(&["network", "rm", "shop"])?;
    logged(&agent, " INFO network shop (br-shop): gone")?;
    host.docker(&[&network[..], &["--subnet=172.30.0.0/24"]].concat())?;
    host.run("web", &options, &Peer::serve(80))?;
    let published = "published tcp 0.0.0.0:8080 → web 172.30.0.9:80 (shop)";
    logged(&agent, &format!(" INFO {published}"))?;
    let attached = |what: &str| {
        let begin = format!(" INFO {what} web 172.30.0.9 (shop) at veth");
        eventually(SOON, || {
            let log = agent.log();
            ensure!(
                log.matches(&begin).count() == 1,
                "not one {begin:?}:\n{log}"
            );
            Ok(())
        })
    };
    attached("attached")?;
    host.docker(&["rm", "-f", "web"])?;
    logged(&agent, &format!(" INFO un{published}"))?;
    attached("detached")?;
    agent.stop()?;
    let stop = " INFO stopping on SIGTERM: what is armed stays in place";
    logged(&agent, stop)?;

    // A later agent finds all in place, and still names what goes.
    let agent = host.agent().start()?;
    host.docker(&["rm", "-f", "old"])?;
    eventually(SOON, || {
        let log = agent.log();
        let part = " INFO unpublished tcp 0.0.0.0:8079 → old 172.";
        ensure!(log.contains(part), "no {part:?}:\n{log}");
        Ok(())
    })?;
    host.cli(&["cleanup", "--force"])?;
    logged(&agent, " INFO forwarder cleanup removes everything")
}

/// With JSON, each line of the log is an object, and what it says has fields.
#[test]
fn json_log_is_json_only() -> Result<()> {
    let lab = Lab::new("jsonlog")?;
    let host = lab.host(Docker::replace())?;
    let mut agent = host.agent().arg("--log-format=json").start()?;
    host.run("web", &["-p", "8080:80"], &Peer::serve(80))?;
    eventually(SOON, || {
        ensure!(agent.log().contains("\"published\""), "{}", agent.log());
        Ok(())
    })?;
    // A refusal is an object too, which no level leaves out.
    let second = host.agent().apart("2").arg("--log-format=json");
    let second = second.arg("--log=off").finish()?;
    agent.stop()?;
    let log = agent.log() + &second.stderr;
    let events = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).with_context(|| line.to_owned()))
        .collect::<Result<Vec<_>>>()?;
    for event in &events {
        let all = ["timestamp", "level", "message"].map(|key| event[key].is_string());
        assert_eq!(all, [true; 3], "{event}");
    }
    let published = events.iter().find(|event| event["event"] == "published");
    let published = published.context("no such event")?;
    let shown = ["proto", "host_ip", "container", "network"].map(|key| &published[key]);
    assert_eq!(shown, ["tcp", "0.0.0.0", "web", "bridge"], "{published}");
    assert_eq!(
        (&published["host_port"], &published["container_port"]),
        (&8080.into(), &80.into())
    );
    let refusal = events.last().context("no events")?;
    assert_eq!(refusal["level"], "ERROR", "{refusal}");
    assert_has(&refusal.to_string(), &["another agent runs"]);
    Ok(())
}

/// SIGHUP reads the configuration again: tables apply, and what waits for a restart is named.
#[test]
fn hangup_reads_the_configuration_again() -> Result<()> {
    let lab = Lab::new("hangup")?;
    let host = lab.host(Docker::replace())?;
    let mut agent = host.agent().config("flows = 4096\n")?.start()?;
    agent.signal(Signal::HUP)?;
    logged(&agent, ": read again on SIGHUP")?;
    host.configure("flows = 8192\nlog-format = 'json'\n")?;
    logged(&agent, ": read again")?;
    let restart = " WARN changed, but not applied before a restart of the agent: flows, \
                   flow-quota, log-format";
    logged(&agent, restart)?;
    host.configure("flows = 'many'\n")?;
    agent.signal(Signal::HUP)?;
    eventually(SOON, || {
        let log = agent.log();
        ensure!(log.contains("the configuration stays as it was"), "{log}");
        Ok(())
    })?;
    assert_eq!(agent.ended()?, None);
    Ok(())
}

/// An agent in the foreground outlives its terminal, though nobody reads its log any more.
#[test]
fn agent_outlives_its_terminal() -> Result<()> {
    let lab = Lab::new("terminal")?;
    let host = lab.host(Docker::replace())?;
    let line = host.forwarder_line(&["run"])?;
    let mut command = host.command("timeout");
    command.args(["--signal=KILL", "6", "script", "-qec", &line, "/dev/null"]);
    finish(&mut command)?;
    let pid = host.json("status")?["agent"]["pid"].clone();
    ensure!(pid.is_u64(), "the agent has ended with its terminal");
    // It has much to say.
    host.run("web", &["-p", "8080:80"], &Peer::serve(80))?;
    lab.lan().peer(&["get", "198.18.1.1:8080"])?;
    holds(Duration::from_secs(2), || {
        ensure!(host.json("status")?["agent"]["pid"] == pid, "it has ended");
        Ok(())
    })?;
    host.cli(&["cleanup", "--force"])?;
    Ok(())
}
