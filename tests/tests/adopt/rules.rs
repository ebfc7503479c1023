// SPDX-License-Identifier: MIT OR Apache-2.0
//! Other people's rules on an adopted host: those that can match a network's packets decide, all
//! others do not take the fast path away; and our own rules come back when they are removed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use harness::{Agent, Docker, Host, Lab, Peer, eventually};

use crate::{OUTSIDE, PUBLISHED, SOON, Stock};

/// How long the agent may take to follow a change of the rules.
const FOLLOWED: Duration = Duration::from_secs(1);
/// The client whom rules ban.
const CLIENT: &str = "198.18.1.2";
/// What ufw adds behind Docker's rules, shortened.
const UFW: &str = "*filter\n:ufw-before-logging-forward - [0:0]\n:ufw-before-forward - [0:0]\n\
    :ufw-reject-forward - [0:0]\n:ufw-user-forward - [0:0]\n:ufw-before-input - [0:0]\n\
    :f2b-sshd - [0:0]\n-A INPUT -p tcp -m multiport --dports 22 -j f2b-sshd\n\
    -A INPUT -j ufw-before-input\n\
    -A FORWARD -j ufw-before-logging-forward\n-A FORWARD -j ufw-before-forward\n\
    -A FORWARD -j ufw-reject-forward\n\
    -A f2b-sshd -s 198.18.1.77/32 -j REJECT --reject-with icmp-port-unreachable\n\
    -A ufw-before-input -p icmp -m limit --limit 3/min -j LOG --log-prefix ufw\n\
    -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
    -A ufw-before-forward -j ufw-user-forward\n\
    -A ufw-before-logging-forward -m limit --limit 3/min -j LOG --log-prefix ufw\n\
    -A ufw-reject-forward -j REJECT --reject-with icmp-port-unreachable\n\
    -A ufw-user-forward -s 203.0.113.9/32 -j DROP\nCOMMIT\n";

fn shell(host: &Host, script: &str) -> Result<String> {
    host.cmd(&["sh", "-c", script])
}

/// Returns the networks that are left to the kernel, each with the rule.
fn left(host: &Host) -> Result<Vec<(String, String)>> {
    let networks = host.json("networks")?;
    let networks = networks.as_array().context("no list of networks")?;
    let left = networks.iter().filter_map(|network| {
        let why = network["rule"].as_str()?;
        Some((network["name"].as_str()?.to_owned(), why.to_owned()))
    });
    Ok(left.collect())
}

fn is_left(host: &Host, network: &str, wanted: bool) -> Result<()> {
    let left = left(host)?;
    let is_left = left.iter().any(|(name, _)| name == network);
    ensure!(is_left == wanted, "left are {left:?}");
    Ok(())
}

impl Stock {
    fn serves(&self) -> Result<()> {
        let answer = self.lab.lan().peer(&["get", PUBLISHED, "--timeout=300"])?;
        ensure!(answer.starts_with(CLIENT), "{answer}");
        Ok(())
    }

    fn refuses(&self) -> Result<()> {
        ensure!(self.serves().is_err(), "the client is served");
        Ok(())
    }
}

/// ufw's rules come behind Docker's, and never meet what Docker's accept. Neither does what only
/// the host itself receives, nor a translation on a VPN's device.
#[test]
fn rules_behind_dockers_leave_the_fast_path() -> Result<()> {
    let stock = Stock::new("ufw")?;
    let host = &stock.host;
    host.ip("link add wg0 type veth peer name wg1")?;
    host.ip("link set wg0 up")?;
    host.cmd(&[
        "iptables",
        "-t",
        "nat",
        "-A",
        "POSTROUTING",
        "-o",
        "wg0",
        "-j",
        "MASQUERADE",
    ])?;
    shell(
        host,
        &format!(
            "printf '%b' '{}' | iptables-restore -n",
            UFW.replace('\n', "\\n")
        ),
    )?;
    stock.serves().context("on the stock host")?;
    let _agent = host.agent().start()?;
    ensure!(left(host)?.is_empty(), "left are {:?}", left(host)?);
    stock.serves()?;
    // ufw comes up again, before Docker's rules: now it decides.
    shell(host, "iptables -I FORWARD 2 -j ufw-before-logging-forward")?;
    eventually(FOLLOWED, || is_left(host, "app", true))?;
    stock.serves()
}

/// A ban in `DOCKER-USER` holds for connections that run and for new ones, within a second, and its
/// end brings the network back.
#[test]
fn ban_in_docker_user_holds_and_ends() -> Result<()> {
    let stock = Stock::new("ban")?;
    let host = &stock.host;
    let _agent = host.agent().start()?;
    let lan = stock.lab.lan();
    let far = stock.lab.far()?;
    let mut banned = lan.spawn_peer(&["hold", "5", PUBLISHED, "--timeout=500"])?;
    let mut free = far.spawn_peer(&["hold", "5", PUBLISHED])?;
    for process in [&mut banned, &mut free] {
        process.line("open 5", SOON)?;
    }
    is_left(host, "app", false)?;
    host.cmd(&["iptables", "-I", "DOCKER-USER", "-s", CLIENT, "-j", "DROP"])?;
    let since = Instant::now();
    eventually(FOLLOWED, || stock.refuses())?;
    println!("new connections are refused after {:?}", since.elapsed());
    banned.tell("")?;
    free.tell("")?;
    free.line("alive 5", SOON)?;
    let banned = banned.line("alive ", SOON * 2)?;
    ensure!(banned == "alive 0", "of those banned, {banned}");
    host.cmd(&["iptables", "-D", "DOCKER-USER", "1"])?;
    eventually(FOLLOWED * 2, || is_left(host, "app", false))?;
    stock.serves()?;
    free.tell("")?;
    free.line("alive 5", SOON).map(drop)
}

/// The administrator puts a network on the fast path past the rules, or takes it off, by file.
#[test]
fn mode_by_file_changes_hands() -> Result<()> {
    let stock = Stock::new("mode")?;
    let host = &stock.host;
    let _agent = host.agent().config("")?.start()?;
    let traffic = stock.traffic()?;
    host.configure("[network.app]\nmode = \"off\"\n")?;
    eventually(SOON, || is_left(host, "app", true))?;
    stock.serves().context("off")?;
    host.cmd(&[
        "iptables",
        "-I",
        "DOCKER-USER",
        "-s",
        "198.18.1.77",
        "-j",
        "DROP",
    ])?;
    host.configure("[network.app]\nmode = \"own\"\n")?;
    eventually(SOON, || {
        is_left(host, "app", false)?;
        is_left(host, "db", true)
    })?;
    stock.serves().context("own")?;
    host.configure("")?;
    eventually(SOON, || is_left(host, "app", true))?;
    host.cmd(&["iptables", "-F", "DOCKER-USER"])?;
    eventually(SOON, || is_left(host, "app", false))?;
    traffic.check()
}

/// What the fast path passes to the kernel needs our rules, which others remove.
#[test]
fn own_rules_come_back() -> Result<()> {
    let stock = Stock::new("back")?;
    let host = &stock.host;
    let _agent = own_rules(&stock, "iptables")?;
    host.cmd(&["nft", "flush", "ruleset"])?;
    eventually(FOLLOWED, || stock.serves()).context("without any rule")?;
    host.restart_docker()?;
    host.docker(&["start", "web", "inside"])?;
    eventually(SOON, || first_rule(host, "iptables")).context("after a restart of Docker")?;
    eventually(SOON, || stock.serves())?;
    eventually(SOON, || whole(&stock))
}

/// The same with the older iptables, of which the kernel reports no changes.
#[test]
fn own_legacy_rules_come_back() -> Result<()> {
    let programs = Programs::new()?;
    let path = format!("{}:{}", programs.0.display(), std::env::var("PATH")?);
    let stock = Stock::with("legacy", Docker::stock().env("PATH", &path))?;
    own_rules(&stock, "iptables-legacy").map(drop)
}

/// A folder in which `iptables` is the older one.
struct Programs(PathBuf);

impl Programs {
    fn new() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("adopt-legacy-{}", std::process::id()));
        fs::create_dir(&folder)?;
        for name in ["iptables", "ip6tables"] {
            symlink(format!("/usr/sbin/{name}-legacy"), folder.join(name))?;
        }
        Ok(Self(folder))
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Takes our rules away in each way, and returns the agent.
fn own_rules(stock: &Stock, iptables: &str) -> Result<Agent> {
    let host = &stock.host;
    let agent = host.agent().start()?;
    let first = || first_rule(host, iptables);
    eventually(FOLLOWED, first)?;
    whole(stock).context("at first")?;
    host.cmd(&[iptables, "-F", "FORWARD"])?;
    eventually(FOLLOWED, first).context("after -F")?;
    whole(stock).context("after -F")?;
    host.cmd(&[iptables, "-P", "FORWARD", "DROP"])?;
    host.cmd(&[iptables, "-I", "FORWARD", "1", "-p", "udp", "-j", "DROP"])?;
    eventually(FOLLOWED, first).context("after -I")?;
    host.cmd(&[iptables, "-D", "FORWARD", "-p", "udp", "-j", "DROP"])?;
    Ok(agent)
}

/// Whether our own rules are where they have to be.
fn first_rule(host: &Host, iptables: &str) -> Result<()> {
    let rules = host.cmd(&[iptables, "-S", "FORWARD"])?;
    let first = rules.lines().find(|rule| rule.starts_with("-A"));
    ensure!(
        first.is_some_and(|rule| rule.contains("forwarder")),
        "{rules}"
    );
    let raw = host.cmd(&["nft", "list", "ruleset"])?;
    ensure!(raw.contains("table ip forwarder"), "{raw}");
    Ok(())
}

/// Whether datagrams come through that are longer than a packet: the kernel forwards their
/// fragments.
fn whole(stock: &Stock) -> Result<()> {
    let large = "x".repeat(3000);
    let inner = stock.inside.space()?;
    let ask = |to| ["udp", to, large.as_str(), "--timeout=300"];
    ensure_starts(&stock.lab.lan().peer(&ask(PUBLISHED))?, CLIENT, &large)?;
    ensure_starts(&inner.peer(&ask(OUTSIDE))?, "198.18.1.1", &large)
}

fn ensure_starts(answer: &str, who: &str, payload: &str) -> Result<()> {
    ensure!(
        answer.starts_with(who) && answer.contains(payload),
        "{answer}"
    );
    Ok(())
}

/// A rule that lets packets through to containers past Docker's rules works as before.
#[test]
fn way_that_others_open_stays_open() -> Result<()> {
    let stock = Stock::new("open")?;
    let host = &stock.host;
    let bridge = |network: &str| -> Result<String> {
        let id = host.docker(&["network", "inspect", "-f", "{{.Id}}", network])?;
        Ok(format!("br-{}", &id.trim()[..12]))
    };
    let (app, db) = (bridge("app")?, bridge("db")?);
    for (from, to) in [(&app, &db), (&db, &app)] {
        let rule = ["-i", from, "-o", to, "-j", "ACCEPT"];
        host.cmd(&[&["iptables", "-I", "DOCKER-USER"][..], &rule].concat())?;
    }
    let client = host.run("client", &["--network=app"], &Peer::idle())?;
    let store = format!("{}:90", host.container("store").ip()?);
    let ask = || client.space()?.peer(&["get", &store, "--timeout=500"]);
    ask().context("on the stock host")?;
    let _agent = host.agent().start()?;
    ask().context("on the adopted host").map(drop)
}

/// Docker's own rules are known as such without the userland proxy, and for a bridge whose name its
/// user chose.
#[test]
fn every_rule_of_dockers_is_dockers() -> Result<()> {
    let lab = Lab::new("named")?;
    let host = lab.host(Docker::stock().arg("--userland-proxy=false"))?;
    let name = "--opt=com.docker.network.bridge.name=db0";
    host.docker(&["network", "create", name, "db"])?;
    host.run("web", &["-p", "8080:80"], &Peer::serve(80))?;
    host.run(
        "store",
        &["--network=db", "-p", "9090:90"],
        &Peer::serve(90),
    )?;
    let _agent = host.agent().start()?;
    ensure!(left(&host)?.is_empty(), "left are {:?}", left(&host)?);
    Ok(())
}
