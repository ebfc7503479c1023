// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the verbs show: tables and JSON, once or as it changes.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use forwarder_common::abi::LAYOUT;
use harness::{Docker, Lab, Peer, eventually, holds};
use serde_json::Value;

use crate::{SOON, assert_has, one_line};

#[test]
fn stdout_is_json_only() -> Result<()> {
    let lab = Lab::new("json")?;
    let host = lab.host(Docker::replace())?;
    let web = host.run(
        "web",
        &["-p", "8080:80", "-p", "9053:53/udp"],
        &Peer::serve(80),
    )?;
    let mut agent = host.agent().arg("--log=debug").start()?;
    eventually(SOON, || lab.lan().peer(&["get", "198.18.1.1:8080"]))?;

    let address = web.ip()?.to_string();
    let row = |proto: &str, host_port: u16, container_port: u16| {
        serde_json::json!({
            "proto": proto, "host_ip": "0.0.0.0", "host_port": host_port,
            "container": "web", "network": "bridge", "container_ip": address,
            "container_port": container_port,
        })
    };
    let ports = host.json("ports")?;
    assert_eq!(
        ports,
        Value::from(vec![row("tcp", 8080, 80), row("udp", 9053, 53)])
    );
    let of = |name: &str| host.cli(&["ports", name]);
    assert_eq!(of("web")?.lines().count(), 3);
    assert_eq!(of("db")?.lines().count(), 1, "{}", of("db")?);
    let networks = host.json("networks")?;
    assert_eq!(
        (&networks[0]["name"], &networks[0]["programmed"]),
        (&"bridge".into(), &true.into())
    );
    let endpoints = host.json("endpoints")?;
    assert_eq!(endpoints[0]["container"], "web");
    assert_eq!(endpoints[0]["hooked"], true, "{endpoints}");

    let status = host.json("status")?;
    assert_eq!(status["agent"]["pid"], agent.pid());
    assert!(status["packets"]["fast"].is_u64(), "{status}");
    assert!(status["reasons"].is_object(), "{status}");
    assert_eq!(
        status["hooks"]["up0"],
        serde_json::json!(["outside_in", "outside_out"])
    );
    assert!(status["maps"]["FLOWS"]["size"].is_u64(), "{status}");
    let flow = |flows: &Value| -> Result<Value> {
        let all = flows.as_array().context("no list")?;
        let ours = all.iter().find(|flow| flow["original"]["dport"] == 8080);
        ours.cloned()
            .with_context(|| format!("no flow to port 8080 in {flows}"))
    };
    let seen = flow(&host.json("flows")?)?;
    assert_eq!(
        (&seen["proto"], &seen["original"]["src"]),
        (&"tcp".into(), &"198.18.1.2".into())
    );
    assert_eq!(
        (&seen["reply"]["src"], &seen["reply"]["sport"]),
        (&address.as_str().into(), &80.into())
    );
    assert!(seen["packets"].as_u64() > Some(3), "{seen}");

    agent.kill()?;
    let status = host.json("status")?;
    assert_eq!(status["agent"], Value::Null);
    assert!(status["hooks"]["up0"].is_array(), "{status}");
    flow(&host.json("flows")?).context("flows need no agent")?;
    Ok(())
}

/// Flows are shown with the names that the agent knows, and counted.
#[test]
fn flows_have_names_and_a_footer() -> Result<()> {
    let lab = Lab::new("names")?;
    let host = lab.host(Docker::replace())?;
    let web = host.run("web", &["-p", "8080:80"], &Peer::serve(80))?;
    let mut agent = host.agent().start()?;
    for _ in 0..2 {
        eventually(SOON, || lab.lan().peer(&["get", "198.18.1.1:8080"]))?;
    }
    let shown = host.cli(&["flows", "--port=8080", "--limit=1", "--sort=age"])?;
    assert_has(&shown, &[" > :8080 ", "web:80 > 198.18.1.2:"]);
    let footer = shown.lines().last().unwrap_or_default();
    assert!(
        footer.starts_with("1 of ") && footer.ends_with(" of 262144)"),
        "{shown}"
    );
    assert_eq!(shown.lines().count(), 3, "{shown}");
    agent.kill()?;
    let shown = host.cli(&["flows", "--port=8080"])?;
    assert_has(&shown, &[&format!("{}:80 > 198.18.1.2:", web.ip()?)]);
    Ok(())
}

/// A list that is watched is shown whenever it changes, also by the agent's successor.
#[test]
fn watched_list_follows_changes() -> Result<()> {
    let lab = Lab::new("watched")?;
    let host = lab.host(Docker::stock())?;
    let agent = host.agent().start()?;
    let mut table = host.spawn_forwarder(&["ports", "--watch"])?;
    let mut json = host.spawn_forwarder(&["endpoints", "-w", "-o", "json"])?;
    table.line("PROTO  HOST", SOON)?;
    ensure!(json.line("[", SOON)? == "[]");
    let web = host.run("web", &["-p=8080:80"], &Peer::serve(80))?;
    table.line("tcp    0.0.0.0:8080  web", SOON)?;
    let line = json.line("[{", SOON)?;
    let endpoints: Value = serde_json::from_str(&line)?;
    ensure!(endpoints[0]["container"] == "web", "{line}");
    drop(agent);
    // Both watchers have one log.
    let said = || {
        let said = table.log();
        ensure!(said.matches("no agent").count() == 2, "{said}");
        Ok(())
    };
    eventually(SOON, said)?;
    holds(Duration::from_secs(2), said)?;
    let _agent = host.agent().start()?;
    table.line("tcp    0.0.0.0:8080  web", SOON)?;
    web.remove()?;
    table.line("PROTO  HOST", SOON)?;
    json.line("[]", SOON)?;
    // A list that did not change is shown again only by the agent's successor.
    let shown = json.lines();
    let same = shown.windows(2).filter(|two| two[0] == two[1]).count();
    ensure!(same == 1, "{shown:?}");
    Ok(())
}

/// Dropped packets are counted by reason, with and without an agent, and shown with containers' names
/// while somebody watches; of a flood a sample is shown, and the number of the others.
#[test]
fn drops_are_counted_and_shown() -> Result<()> {
    let lab = Lab::new("drops")?;
    let host = lab.host(Docker::replace())?;
    let list = "--label=forwarder.ingress.allow=198.18.1.99";
    let ports = ["-p=8080:80", "-p=8080:80/udp", list];
    host.run("web", &ports, &Peer::serve(80))?;
    host.run("db", &["-p=9090:80", list], &Peer::serve(80))?;
    host.docker(&["network", "create", "other"])?;
    let other = host.run("other", &["--network=other"], &Peer::idle())?;
    let mut agent = host.agent().start()?;
    let ask_at = |to| lab.lan().peer(&["get", to, "--timeout=300"]);
    let ask = || ask_at("198.18.1.1:8080");
    let mut table = host.spawn_forwarder(&["drops", "--watch"])?;
    table.line("TIME", SOON)?;
    let shown = |watcher: &harness::Process, parts: &[&str]| {
        let has = |line: &String| parts.iter().all(|part| line.contains(part));
        eventually(SOON, || {
            let lines = watcher.lines();
            let found = lines.iter().find(|line| has(line)).cloned();
            found.with_context(|| format!("no line with {parts:?}: {lines:?}"))
        })
    };
    ensure!(ask().is_err(), "the list lets its client in");
    let line = shown(&table, &["policy", "tcp", "198.18.1.2:"])?;
    assert_has(&line, &[host.uplink(), " > 198.18.1.1:8080 (web)"]);
    let second = one_line(&host.forwarder(&["drops", "--watch"])?)?;
    assert_has(&second, &["another `forwarder drops --watch`"]);

    let web = format!("{}:80", host.container("web").ip()?);
    let reach = other.space()?.peer(&["get", &web, "--timeout=300"]);
    ensure!(reach.is_err(), "networks are not isolated");
    let line = shown(&table, &["isolated", "tcp"])?;
    assert_has(&line, &["  other  ", "other:", " > web:80"]);
    let tagged = format!(
        "ffffffffffff020000000001{}{}",
        "810000050800",
        "00".repeat(46)
    );
    other.space()?.peer(&["raw", "eth0", &tagged])?;
    shown(&table, &["vlan 5", "  other  "])?;
    table.kill()?;
    eventually(SOON, || {
        let map = host.bpffs_dir().join(format!("v{LAYOUT}/maps/DROPS_WATCH"));
        let dump = [
            "bpftool",
            "-j",
            "map",
            "dump",
            "pinned",
            &map.display().to_string(),
        ];
        let dump: Value = serde_json::from_str(&host.cmd(&dump)?)?;
        let is_zero = |byte: &Value| byte == "0x00";
        let value = dump[0]["value"].as_array().context("no value")?;
        ensure!(
            value.iter().all(is_zero),
            "the lease of a killed watcher stays: {dump}"
        );
        Ok(())
    })?;
    let unknown = one_line(&host.forwarder(&["drops", "-w", "--container=wep"])?)?;
    assert_has(
        &unknown,
        &["no container on a bridge network has the name wep"],
    );

    let words = [
        "drops",
        "-w",
        "-o",
        "json",
        "--container=web",
        "--reason=policy",
    ];
    let mut json = host.spawn_forwarder(&words)?;
    json.line("{\"event\":\"watching\"", SOON)?;
    ensure!(
        other
            .space()?
            .peer(&["get", &web, "--timeout=300"])
            .is_err()
    );
    ensure!(ask_at("198.18.1.1:9090").is_err() && ask().is_err());
    let line = shown(&json, &["policy"])?;
    let row: Value = serde_json::from_str(&line)?;
    ensure!(row["dst"] == "198.18.1.1" && row["dport"] == 8080, "{row}");
    let others = |line: &String| line.contains("isolated") || line.contains("9090");
    ensure!(!json.lines().iter().any(others), "{:?}", json.lines());
    drop(json);

    let mut flood = host.spawn_forwarder(&["drops", "--watch", "--output=json"])?;
    flood.line("{\"event\":\"watching\"", SOON)?;
    let sender = ["datagrams", "198.18.1.1:8080", "--rate=20000"];
    let _sender = lab.lan().spawn_peer(&sender)?;
    let missed: Value = serde_json::from_str(&flood.line("{\"event\":\"missed\"", SOON)?)?;
    let packets = missed["packets"].as_u64().unwrap_or_default();
    ensure!(packets > 1000, "{missed}");
    let row: Value = serde_json::from_str(&shown(&flood, &["\"udp\""])?)?;
    ensure!(row["reason"] == "policy" && row["dport"] == 8080, "{row}");
    drop(flood);

    agent.kill()?;
    let counted = host.cli(&["drops"])?;
    assert_has(&counted, &["REASON", "isolated", "policy"]);
    let json = host.json("drops")?;
    let rows = json.as_array().context("no list")?;
    ensure!(rows[0]["reason"] == "policy" && rows.len() > 20, "{json}");
    Ok(())
}
