// SPDX-License-Identifier: MIT OR Apache-2.0
//! Others' rules of netfilter: they do not translate what the kernel's path carries for us, and what
//! they would have done is told.

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::{Peer, Scene, eventually, serve};

/// How long the agent may take to notice.
const SOON: Duration = Duration::from_secs(3);
/// Bytes of a datagram that the sender cuts: by the kernel's path.
const LONG: usize = 3000;

fn run(scene: &Scene, words: &str) -> Result<String> {
    let argv: Vec<_> = words.split(' ').collect();
    scene.host.cmd(&argv)
}

/// Whether the rule is there that keeps our packets from being tracked.
fn is_untracked(scene: &Scene) -> Result<()> {
    let rules = run(scene, "nft list ruleset")?;
    ensure!(
        rules.contains("notrack comment \"forwarder\""),
        "no rule: {rules}"
    );
    Ok(())
}

/// As wg-quick and many a firewall have it.
#[test]
fn foreign_masquerade_translates_nothing() -> Result<()> {
    let scene = Scene::new("masquerade")?;
    let _server = serve(scene.lan(), 7)?;
    let web = scene.run("web", &["-p", "8080:80/udp"], &Peer::serve(80))?;
    ensure!(is_untracked(&scene).is_err(), "a rule though nobody tracks");
    run(
        &scene,
        "iptables -t nat -A POSTROUTING -o up0 -j MASQUERADE",
    )?;
    eventually(SOON, || is_untracked(&scene))?;
    let long = "x".repeat(LONG);
    for _ in 0..3 {
        scene.lan().peer(&["udp", "198.18.1.1:8080", &long])?;
        web.peer(&["udp", "198.18.1.2:7", &long])?;
    }
    // Whoever loads his own rules takes it away.
    run(&scene, "nft delete table ip forwarder")?;
    eventually(SOON, || is_untracked(&scene))?;
    scene.host.cli(&["cleanup", "--force"])?;
    ensure!(is_untracked(&scene).is_err(), "the rule outlives cleanup");
    Ok(())
}

#[test]
fn foreign_rules_are_reported() -> Result<()> {
    let mut scene = Scene::new("told-rules")?;
    scene.run("web", &["-p", "8080:80"], &Peer::serve(80))?;
    // About what is for the host itself, and about others than containers.
    run(&scene, "iptables -A INPUT -p tcp --dport 9 -j DROP")?;
    run(&scene, "iptables -A FORWARD -i tun7 -o tun8 -j DROP")?;
    run(
        &scene,
        "iptables -A FORWARD -d 172.17.0.2 -p tcp --dport 80 -j DROP",
    )?;
    run(
        &scene,
        "iptables -t mangle -A PREROUTING -i docker0 -j MARK --set-mark 7",
    )?;
    run(&scene, "ip rule add fwmark 7 lookup 100")?;
    run(&scene, "nft add table inet theirs")?;
    let chain = "{ type filter hook forward priority 0 ; policy drop ; }";
    scene
        .host
        .cmd(&["nft", "add", "chain", "inet", "theirs", "mine", chain])?;
    let expected = [
        "-A FORWARD -d 172.17.0.2/32 -p tcp",
        "--set-xmark 0x7",
        "fwmark 0x7",
        "the policy of inet theirs mine",
    ];
    let has = |text: &str| -> Result<()> {
        for part in expected {
            ensure!(text.contains(part), "nothing of {part}: {text}");
        }
        for part in ["--dport 9", "tun7"] {
            ensure!(!text.contains(part), "needless: {text}");
        }
        Ok(())
    };
    eventually(SOON, || has(&scene.agent.log()))?;
    has(&scene.host.json("status")?["others"].to_string())?;
    has(&scene.host.cli(&["status", "-v"])?)?;
    let doctor = scene.host.forwarder(&["doctor"])?;
    has(&doctor.stdout)?;
    // None of it keeps the next agent from starting.
    scene.agent.stop()?;
    let next = scene.host.agent().start()?;
    has(&next.log())
}
