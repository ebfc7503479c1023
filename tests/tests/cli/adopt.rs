// SPDX-License-Identifier: MIT OR Apache-2.0
//! `forwarder adopt`: its plan, the agent in the background, and the way back.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::{Docker, Host, Lab, Peer, eventually, holds};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{SOON, assert_has, folders};

/// Returns everything of a stock host that adopting it could change: rules, programs, devices, pins.
fn traces(host: &Host) -> Result<String> {
    let rules = host.cmd(&["sh", "-c", "iptables-save; nft list ruleset"])?;
    let is_fixed = |line: &&str| !line.starts_with('#') && !line.starts_with(':');
    let without_counters = |line: &str| {
        let words = line.split_whitespace();
        let words = words.filter(|word| word.parse::<u64>().is_err());
        words.collect::<Vec<_>>().join(" ")
    };
    let rules: Vec<_> = rules
        .lines()
        .filter(is_fixed)
        .map(without_counters)
        .collect();
    let [state, pins] = folders(host)?;
    let programs = host.cmd(&["bpftool", "net"])?;
    let devices = host.ip("-br link")?;
    let there = [state.exists(), pins.exists()];
    Ok(format!(
        "{}\n{programs}\n{devices}\n{there:?}",
        rules.join("\n")
    ))
}

/// Returns a stock host with two networks, one of which a rule of somebody else matches.
fn stock(lab: &Lab) -> Result<Host> {
    let host = lab.host(Docker::stock())?;
    host.docker(&["network", "create", "--subnet=10.66.0.0/24", "db"])?;
    host.run("web", &["-p", "8080:80"], &Peer::serve(80))?;
    Ok(host)
}

const FOREIGN: &str = "DOCKER-USER -s 10.66.0.0/24 -d 10.66.0.0/24 -p tcp --dport 5432 -j DROP";

/// A plan says what would happen and changes nothing; its exit status says how much it is.
#[test]
fn adopt_plan_changes_nothing() -> Result<()> {
    let lab = Lab::new("plan")?;
    let host = stock(&lab)?;
    let before = traces(&host)?;

    let done = host.forwarder(&["adopt", "--plan"])?;
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let parts = [
        "2 bridge networks, 1 running container, 1 published port",
        "network bridge would go to the fast path",
        "network db would go to the fast path",
        "the way back is forwarder release",
    ];
    assert_has(&done.stdout, &parts);
    assert_eq!(traces(&host)?, before);

    host.cmd(&["sh", "-c", &format!("iptables -I {FOREIGN}")])?;
    let done = host.forwarder(&["adopt", "--plan"])?;
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    assert_has(&done.stdout, &["network db would follow the kernel: "]);

    let limited = FOREIGN.replace("-j", "-m limit --limit 9/sec -j");
    host.cmd(&["sh", "-c", &format!("iptables -I {limited}")])?;
    let before = traces(&host)?;
    let done = host.forwarder(&["adopt", "--plan"])?;
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    let parts = [
        "network db would stay with the kernel: ",
        "--dport 5432 -m limit --limit 9/sec -j DROP",
    ];
    assert_has(&done.stdout, &parts);
    let done = host.forwarder(&["adopt", "--plan", "-o", "json"])?;
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    let plan: Value = serde_json::from_str(&done.stdout)?;
    let shown = (
        &plan["changed"],
        &plan["would_change"],
        &plan["networks"][1]["mode"],
    );
    assert_eq!(shown, (&false.into(), &true.into(), &"off".into()));
    assert_eq!(traces(&host)?, before);

    // A host that cannot be adopted, with every reason.
    let wrong = ["adopt", "--plan", "--uplink=nope0", "--mode=replace"];
    let done = host.forwarder(&wrong)?;
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    assert_has(&done.stdout, &["unknown uplink nope0", "mode is replace"]);
    assert_eq!(traces(&host)?, before);
    Ok(())
}

/// The agent that adopt starts outlives the command and its terminal, and release undoes it.
#[test]
fn adopt_starts_an_agent_that_release_ends() -> Result<()> {
    let lab = Lab::new("adopts")?;
    let host = stock(&lab)?;
    host.cmd(&["sh", "-c", &format!("iptables -I {FOREIGN}")])?;
    let before = traces(&host)?;
    let file = host.configure("flows = 4096\n")?;
    let said = host.cli(&["adopt", &format!("--config={}", file.display())])?;
    let parts = [
        "checked   Docker ",
        "started   pid ",
        "ready     after ",
        "network bridge is on the fast path",
        "network db follows the kernel: ",
        "the way back is forwarder release",
    ];
    assert_has(&said, &parts);
    lab.lan().peer(&["get", "198.18.1.1:8080"])?;

    let status = host.json("status")?;
    assert_eq!(status["mode"], "adopt", "{status:#}");
    let pid = status["agent"]["pid"].as_u64().context("no agent")?;
    // Its session is its own, and has no terminal: the kernel sends it no SIGHUP.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("no name")?;
    let fields: Vec<_> = fields.split(' ').collect();
    assert_eq!((fields[3], fields[4]), (pid.to_string().as_str(), "0"));

    // What the file says is the file's to change.
    host.configure("flows = 8192\n")?;
    let process = Pid::from_raw(i32::try_from(pid)?).context("no process")?;
    kill_process(process, Signal::HUP)?;
    let log = host.state_dir().join("agent.log");
    eventually(SOON, || {
        let log = fs::read_to_string(&log)?;
        let restart = "changed, but not applied before a restart of the agent: flows";
        ensure!(log.contains(restart), "{log}");
        Ok(())
    })?;

    // A second call finds it.
    let again: Value = serde_json::from_str(&host.cli(&["adopt", "-o", "json"])?)?;
    let shown = (&again["changed"], &again["would_change"], &again["agent"]);
    assert_eq!(shown, (&false.into(), &false.into(), &pid.into()));
    assert_has(&host.cli(&["adopt", "--plan"])?, &["runs here already"]);

    host.cli(&["release"])?;
    assert_eq!(traces(&host)?, before);

    // The same for programs; then nothing of an agent that fails is left.
    // The terminal that it is called from ends with the command.
    let line = host.forwarder_line(&["adopt", "-o", "json"])?;
    let said = host.cmd(&["script", "-qec", &line, "/dev/null"])?;
    let first: Value = serde_json::from_str(&said)?;
    let shown = (&first["changed"], &first["would_change"]);
    assert_eq!(shown, (&true.into(), &false.into()), "{first:#}");
    let pid = &first["agent"];
    holds(Duration::from_secs(1), || {
        ensure!(host.json("status")?["agent"]["pid"] == *pid, "it has ended");
        Ok(())
    })?;
    host.cli(&["release"])?;
    let failed = host.forwarder(&["adopt", "--log=forwarder=loud"])?;
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    let parts = ["the agent ended before it was ready: --log forwarder=loud"];
    assert_has(&failed.stderr, &parts);
    assert_eq!(traces(&host)?, before);
    Ok(())
}

/// Without Docker's rules there is nothing to come on top of.
#[test]
fn adopt_needs_docker_rules() -> Result<()> {
    let lab = Lab::new("norules")?;
    let host = lab.host(Docker::replace())?;
    for arguments in [&["adopt"][..], &["adopt", "--plan"]] {
        let done = host.forwarder(arguments)?;
        assert_eq!(done.status.code(), Some(1), "{done:?}");
        assert_has(
            &done.stdout,
            &["nothing to come on top of", "forwarder run"],
        );
    }
    Ok(())
}
