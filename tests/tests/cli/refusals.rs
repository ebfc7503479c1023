// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the command line refuses on bad hosts, in which words, and what it leaves.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::chown;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use harness::{Docker, Lab, Peer, Space, finish, forwarder_bin};

use crate::{Bare, assert_has, folders, one_line};

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
