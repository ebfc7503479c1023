// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line on good and bad hosts: what it refuses, in which words, and what it leaves.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::chown;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use forwarder_common::abi::LAYOUT;
use harness::{
    Docker, Finished, Host, Lab, Netns, Peer, Space, eventually, finish, forwarder_bin, holds,
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);

/// A namespace without Docker, with folders and a bpffs for an agent that will refuse.
struct Bare {
    netns: Netns,
    folder: PathBuf,
    _lab: Lab,
}

impl Bare {
    fn new(label: &str) -> Result<Self> {
        let lab = Lab::new(label)?;
        let netns = lab.netns("bare")?;
        let folder = std::env::temp_dir().join(format!("{}-folder", netns.name()));
        fs::create_dir_all(folder.join("bpf"))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("bpf", folder.join("bpf"), "bpf", flags, None)?;
        Ok(Self {
            netns,
            folder,
            _lab: lab,
        })
    }

    fn below(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A file in the folder.
    fn file(&self, name: &str, text: &str) -> Result<String> {
        let path = self.below(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    fn flags(&self) -> [String; 3] {
        [
            format!("--docker=unix://{}", self.below("docker.sock").display()),
            format!("--state-dir={}", self.below("run").display()),
            format!("--bpffs-dir={}", self.below("bpf/forwarder").display()),
        ]
    }

    /// `setpriv OPTIONS forwarder VERB ARGUMENTS`, to its end.
    fn setpriv(&self, options: &[&str], verb: &str, arguments: &[&str]) -> Result<Finished> {
        let mut command = self.netns.command("setpriv");
        command.args(options).arg(forwarder_bin()?).arg(verb);
        finish(command.args(self.flags()).args(arguments))
    }

    /// What `forwarder run ARGUMENTS` says when it refuses.
    fn refused(&self, arguments: &[&str]) -> Result<String> {
        self.refusal(&self.setpriv(&[], "run", arguments)?)
    }

    /// The one line of a refusal that left nothing behind.
    fn refusal(&self, done: &Finished) -> Result<String> {
        let line = one_line(done)?;
        for dir in ["run", "bpf/forwarder"] {
            ensure!(!self.below(dir).exists(), "{dir} is left");
        }
        Ok(line)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        for point in ["bpf", "empty"] {
            // It is not mounted when a test did not come so far.
            let _ = unmount(self.below(point), UnmountFlags::DETACH);
        }
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("cannot remove {}: {error}", self.folder.display());
        }
    }
}

/// The single line on standard error of a forwarder that ended with 1 and printed nothing.
fn one_line(done: &Finished) -> Result<String> {
    ensure!(
        done.status.code() == Some(1) && done.stdout.is_empty(),
        "not refused: {done:?}"
    );
    let text = done.stderr.strip_suffix('\n').unwrap_or_default();
    let line = text.strip_prefix("forwarder: ");
    let line = line.with_context(|| format!("not a line of ours: {done:?}"))?;
    ensure!(!line.contains('\n'), "more than one line: {line}");
    Ok(line.to_owned())
}

#[track_caller]
fn assert_has(line: &str, parts: &[&str]) {
    for part in parts {
        assert!(line.contains(part), "{part:?} is not in {line:?}");
    }
}

#[test]
fn not_root_is_refused() -> Result<()> {
    let bare = Bare::new("notroot")?;
    let done = bare.setpriv(&["--bounding-set=-all", "--inh-caps=-all"], "run", &[])?;
    assert_has(&bare.refusal(&done)?, &["not root: run as root", "CAP_BPF"]);
    Ok(())
}

#[test]
fn missing_bpffs_is_mounted_or_explained() -> Result<()> {
    let bare = Bare::new("bpffs")?;
    let nowhere = bare.below("nowhere/forwarder").display().to_string();
    let line = bare.refused(&["--bpffs-dir", &nowhere])?;
    assert_has(&line, &["no bpffs is mounted on ", "mount -t bpf bpf "]);

    let point = bare.below("empty");
    fs::create_dir(&point)?;
    // A daemon that is not there is waited for: by then a bpffs is there.
    let mut command = bare.netns.command("timeout");
    command.args(["--signal=KILL", "3"]).arg(forwarder_bin()?);
    command
        .arg("run")
        .args(bare.flags())
        .arg("--bpffs-dir")
        .arg(point.join("forwarder"));
    finish(&mut command)?;
    let magic = rustix::fs::statfs(&point)?.f_type;
    assert_eq!(magic, 0xcafe_4a11, "a bpffs");
    Ok(())
}

#[test]
fn invalid_settings_are_refused() -> Result<()> {
    let bare = Bare::new("settings")?;
    let line = bare.refused(&["--uplink=nope0"])?;
    assert_has(&line, &["unknown uplink nope0", "ip link"]);
    let line = bare.refused(&["--docker=tcp://198.18.1.1:2375"])?;
    assert_has(&line, &["tcp://198.18.1.1:2375 is not a unix:///path"]);
    let line = bare.refused(&["--log=forwarder=loud"])?;
    assert_has(&line, &["--log forwarder=loud"]);

    let unknown = bare.file("unknown.toml", "log = 'info'\n\nxpd = 'off'\n")?;
    let line = bare.refused(&["--config", &unknown])?;
    assert_has(&line, &[&unknown, "line 3: xpd: unknown field"]);
    let wrong = bare.file("wrong.toml", "flows = 7\n")?;
    let line = bare.refused(&["--config", &wrong])?;
    assert_has(&line, &[&wrong, "line 1: flows: 7 is not in 1024..="]);
    let line = bare.refused(&["--config", "/nowhere/f.toml"])?;
    assert_has(&line, &["cannot read /nowhere/f.toml"]);

    let done = bare.setpriv(&[], "run", &["--xdp=fast"])?;
    assert_eq!(done.status.code(), Some(2), "usage: {done:?}");
    let mut not_text = Command::new(forwarder_bin()?);
    let done = finish(not_text.arg(OsStr::from_bytes(b"\xff")))?;
    assert_eq!(done.status.code(), Some(2), "usage: {done:?}");
    Ok(())
}

/// The environment comes before the file, and flags before both.
#[test]
fn flags_precede_environment_and_file() -> Result<()> {
    let bare = Bare::new("settings-order")?;
    let file = bare.file("f.toml", "uplink = ['file0']\n")?;
    let seen = |variable: Option<&str>, arguments: &[&str]| {
        let mut command = bare.netns.command("env");
        command.args(variable).arg(forwarder_bin()?).arg("run");
        one_line(&finish(command.args(bare.flags()).args(arguments))?)
    };
    let config = ["--config", file.as_str()];
    assert_has(&seen(None, &config)?, &["unknown uplink file0"]);
    let env = Some("FORWARDER_UPLINK=env0,env1");
    assert_has(&seen(env, &config)?, &["unknown uplink env0"]);
    let flags = ["--config", &file, "--uplink=flag0"];
    assert_has(&seen(env, &flags)?, &["unknown uplink flag0"]);
    let by_variable = format!("FORWARDER_CONFIG={file}");
    assert_has(&seen(Some(&by_variable), &[])?, &["unknown uplink file0"]);
    Ok(())
}

#[test]
fn unusable_docker_is_refused() -> Result<()> {
    let bare = Bare::new("unfit")?;
    let socket = bare.below("docker.sock");
    let _daemon = old_daemon(&socket)?;
    assert_eq!(
        bare.refused(&[])?,
        "Docker 19.03.15 (API 1.40) is too old: 20.10 (API 1.41) or later is needed"
    );

    // Root that may not pass over modes: as in a container with few capabilities.
    chown(&socket, Some(65534), Some(65534))?;
    fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let done = bare.setpriv(&["--bounding-set=-dac_override"], "run", &[])?;
    assert_has(&bare.refusal(&done)?, &["may not open ", "run as root"]);
    Ok(())
}

/// A daemon of another age, on a thread that ends with the test's process.
fn old_daemon(socket: &Path) -> Result<thread::JoinHandle<()>> {
    let listener = UnixListener::bind(socket)?;
    Ok(thread::spawn(move || {
        let body = r#"{"Version":"19.03.15","ApiVersion":"1.40"}"#;
        for caller in listener.incoming() {
            let Ok(mut caller) = caller else { return };
            // Who only knocks gets nothing.
            if caller.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {
                let _ = write!(
                    caller,
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\
                     Content-Length: {}\r\n\r\n{body}",
                    body.len()
                );
            }
        }
    }))
}

#[test]
fn verbs_without_an_agent_say_so() -> Result<()> {
    let bare = Bare::new("noagent")?;
    for verb in ["networks", "endpoints", "ports"] {
        let line = bare.refusal(&bare.setpriv(&[], verb, &[])?)?;
        assert_has(&line, &["no agent answers at ", "forwarder adopt"]);
    }
    let line = bare.refusal(&bare.setpriv(&[], "flows", &["-o", "json"])?)?;
    assert_has(&line, &["no datapath of version ", "forwarder adopt"]);
    ensure!(!line.contains("BPF_"), "internals: {line}");
    let done = bare.setpriv(&[], "status", &[])?;
    assert_eq!((done.status.code(), done.stdout.as_str()), (Some(3), ""));
    assert!(
        done.stderr
            .starts_with("not running here, nothing attached. "),
        "{done:?}"
    );
    assert_eq!(done.stderr.lines().count(), 1, "{done:?}");

    let done = bare.setpriv(&[], "cleanup", &[])?;
    assert_eq!(done.success()?, "nothing to clean up");
    Ok(())
}

/// An ordinary user reads what to do, while an agent runs and without one.
#[test]
fn ordinary_user_is_told_to_be_root() -> Result<()> {
    let lab = Lab::new("users")?;
    let host = lab.host(Docker::replace())?;
    let program = std::env::temp_dir().join(format!("{}-program", host.name()));
    fs::copy(forwarder_bin()?, &program)?;
    let said = |verb: &str| {
        let mut command = host.command("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command.arg(&program).arg(verb);
        let [state, pins] = folders(&host)?;
        command.arg("--state-dir").arg(state);
        one_line(&finish(command.arg("--bpffs-dir").arg(pins))?)
    };
    let all = |verbs: &[&str]| {
        verbs.iter().try_for_each(|verb| {
            let line = said(verb)?;
            ensure!(line.starts_with("this needs root: "), "{verb}: {line}");
            Ok(())
        })
    };
    let without = all(&["flows", "networks"]);
    let _agent = host.agent().start()?;
    let with = all(&["status", "flows", "networks", "adopt", "release"]);
    fs::remove_file(&program)?;
    without.and(with)
}

/// Pins of another version are refused and cleaned up.
#[test]
fn foreign_pins_are_refused_and_cleaned_up() -> Result<()> {
    let lab = Lab::new("layout")?;
    let host = lab.host(Docker::replace())?;
    let [.., dir] = folders(&host)?;
    let old = dir.join("v0");
    fs::create_dir_all(old.join("maps"))?;
    let line = one_line(&host.agent().arg("--log=error").finish()?)?;
    assert_has(&line, &["another version (v0)", "forwarder cleanup"]);
    ensure!(old.exists(), "the pins of a version are not ours to remove");
    host.cli(&["cleanup"])?;
    ensure!(!dir.exists(), "cleanup leaves {}", dir.display());
    Ok(())
}

/// What a start made before it failed half way is taken back.
#[test]
fn failed_start_is_rolled_back() -> Result<()> {
    let bare = Bare::new("halfway")?;
    let devices = || bare.netns.ip("-br link");
    let before = devices()?;
    for files in ["20", "35", "50"] {
        // Fewer than the maps need.
        let mut command = bare.netns.command("prlimit");
        command.arg(format!("--nofile={files}:{files}"));
        command.arg(forwarder_bin()?).args(["run", "--log=error"]);
        let line = bare.refusal(&finish(command.args(bare.flags()))?)?;
        // With the fewest it does not come to the maps.
        let parts = ["Too many open files", "map"];
        assert_has(&line, if files == "20" { &parts[..1] } else { &parts });
        assert_eq!(devices()?, before, "after {files}");
    }

    // Also without a directory that tells of it.
    bare.netns.ip("link add forwarder0 type bridge")?;
    let done = bare.setpriv(&[], "cleanup", &[])?;
    assert_has(&done.stdout, &["removed"]);
    assert_eq!(devices()?, before, "after cleanup");
    Ok(())
}

#[test]
fn docker_rules_are_refused_with_a_remedy() -> Result<()> {
    let lab = Lab::new("stock")?;
    let host = lab.host(Docker::stock())?;
    let hint = "or try the sandbox";
    let line = one_line(
        &host
            .agent()
            .arg("--mode=replace")
            .env("FORWARDER_HINT", hint)
            .finish()?,
    )?;
    let parts = [
        "dockerd's own rules are in place",
        "\"iptables\": false",
        "keep them, with --mode adopt",
        "(or try the sandbox)",
    ];
    assert_has(&line, &parts);

    ensure!(!line.contains(" | "), "a pipe that edits rules: {line}");

    let done = host.forwarder(&["doctor", "--mode=replace"])?;
    assert_eq!(done.status.code(), Some(1));
    assert_has(&done.stdout, &["dockerd's own rules"]);

    // What it says does it.
    let findings = host.forwarder(&["doctor", "--mode=adopt"])?;
    ensure!(findings.status.code() != Some(1), "{findings:?}");
    host.agent().arg("--mode=adopt").start().map(drop)
}

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

#[test]
fn second_agent_refuses_and_names_the_first() -> Result<()> {
    let lab = Lab::new("second")?;
    let host = lab.host(Docker::replace())?;
    let agent = host.agent().start()?;
    let start = Instant::now();
    let second = host.agent().apart("2").finish()?;
    assert!(start.elapsed() < Duration::from_secs(5));
    // The harness enters the namespace by replacing the process: the child is the agent itself.
    let pid = format!("(pid {})", agent.pid());
    assert_has(
        &one_line(&second)?,
        &["another agent runs in this network namespace", &pid],
    );

    let other = lab.host(Docker::replace())?;
    other.agent().start().context("another namespace")?;
    Ok(())
}

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

/// Cleanup spares a running agent unless it is forced.
#[test]
fn cleanup_spares_a_running_agent_unless_forced() -> Result<()> {
    let lab = Lab::new("cleanup")?;
    let host = lab.host(Docker::replace())?;
    host.run("web", &["-p", "8080:80"], &Peer::serve(80))?;
    let [state, pins] = folders(&host)?;
    let mut agent = host.agent().start()?;

    let line = one_line(&host.forwarder(&["cleanup"])?)?;
    assert_has(&line, &["another agent runs", "--force"]);
    lab.lan().peer(&["get", "198.18.1.1:8080"])?;

    // By its folders alone it is found too, from where its lock is not seen; and with other
    // folders it is not the one that is meant.
    let pins_flag = format!("--bpffs-dir={}", pins.display());
    let force = |space: &Space, state: &Path| {
        let mut command = space.command("env");
        command
            .arg(forwarder_bin()?)
            .args(["cleanup", "--force", &pins_flag]);
        one_line(&finish(command.arg("--state-dir").arg(state))?)
    };
    assert_has(
        &force(lab.lan(), &state).context("from elsewhere")?,
        &["another network namespace"],
    );
    let other = state.with_extension("other");
    assert_has(
        &force(&host, &other).context("other folders")?,
        &["does not answer at ", "--state-dir"],
    );
    assert_eq!(agent.ended()?, None);

    host.cli(&["cleanup", "--force"])?;
    ensure!(agent.ended()?.is_some(), "the agent goes first");
    for dir in [&state, &pins] {
        ensure!(!dir.exists(), "cleanup leaves {}", dir.display());
    }
    assert_eq!(host.cli(&["cleanup"])?, "nothing to clean up");

    // A killed one leaves more, and it goes as well.
    let mut agent = host.agent().start()?;
    agent.kill()?;
    host.cli(&["cleanup"])?;
    for dir in [&state, &pins] {
        ensure!(!dir.exists(), "cleanup leaves {}", dir.display());
    }
    Ok(())
}

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

/// The state directory and the pins' directory of a host's agent.
fn folders(host: &Host) -> Result<[PathBuf; 2]> {
    let line = host.forwarder_line(&[])?;
    let words = line.split(' ').collect::<Vec<_>>();
    let after = |flag: &str| {
        let place = words.iter().position(|word| *word == flag);
        let value = place.and_then(|place| words.get(place + 1));
        value
            .map(PathBuf::from)
            .with_context(|| format!("no {flag} in {line}"))
    };
    Ok([after("--state-dir")?, after("--bpffs-dir")?])
}
