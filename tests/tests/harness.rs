// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proof of the harness itself, on stock Docker hosts: what it shows is so, and nothing stays.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use harness::{Docker, Frame, Host, Lab, Peer, eventually, holds};

const SOON: Duration = Duration::from_secs(5);

/// A stock host with a server, published as 8080.
fn published(lab: &Lab) -> Result<Host> {
    let host = lab.host(Docker::stock())?;
    host.run(
        "web",
        &["-p", "8080:80", "-p", "8080:80/udp"],
        &Peer::serve(80),
    )?;
    Ok(host)
}

/// A published port is reached and shows the client.
#[test]
fn published_port_is_reached_and_sees_the_client() -> Result<()> {
    let lab = Lab::new("published")?;
    let host = published(&lab)?;
    let web = host.container("web");

    let seen = lab
        .lan()
        .peer(&["get", "198.18.1.1:8080", "--bind", "198.18.1.2:40000"])?;
    assert_eq!(seen, "198.18.1.2:40000");
    assert_eq!(web.log_line("tcp")?, "tcp 198.18.1.2:40000");

    let seen = lab
        .lan()
        .peer(&["udp", "198.18.1.1:8080", "hello", "--bind=198.18.1.2:40001"])?;
    assert_eq!(seen, "198.18.1.2:40001 hello");
    assert_eq!(web.log_line("udp")?, "udp 198.18.1.2:40001");
    Ok(())
}

#[test]
fn closed_port_is_refused() -> Result<()> {
    let lab = Lab::new("closed")?;
    let _host = lab.host(Docker::stock())?;
    let error = lab.lan().peer(&["get", "198.18.1.1:81"]).unwrap_err();
    assert!(format!("{error:#}").contains("refused"), "{error:#}");
    Ok(())
}

#[test]
fn container_reaches_hosts_behind_the_lan() -> Result<()> {
    let lab = Lab::new("far")?;
    let host = lab.host(Docker::stock())?;
    let far = lab.far()?;
    let mut server = far.spawn_peer(&["serve", "7"])?;
    server.line("serving", SOON)?;

    let inside = host.run("inside", &[], &Peer::idle())?;
    assert_eq!(
        inside.peer(&["ping", "198.19.1.2"])?,
        "reply from 198.19.1.2"
    );
    let seen = inside.peer(&["get", &format!("{}:7", far.address())])?;
    assert!(
        seen.starts_with("198.18.1.1:"),
        "masqueraded as the host, not {seen}"
    );

    let short = inside
        .peer(&["ping", "198.19.1.2", "--ttl", "1"])
        .unwrap_err();
    assert!(
        format!("{short:#}").contains("time exceeded from 172.17.0.1"),
        "{short:#}"
    );
    Ok(())
}

#[test]
fn capture_is_complete_when_asked() -> Result<()> {
    let lab = Lab::new("capture")?;
    let host = published(&lab)?;
    let at_lan = lab.lan().capture(&host.lan_device())?;
    let in_container = host.container("web").space()?.capture("eth0")?;

    for n in 1..=20 {
        lab.lan()
            .peer(&["udp", "198.18.1.1:8080", &format!("number {n}")])?;
    }
    let from_lan = |frame: &Frame| {
        frame.outgoing && frame.ipv4().is_some_and(|(from, _)| from == host.gateway())
    };
    assert_eq!(at_lan.count(from_lan)?, 20);
    assert_eq!(at_lan.lines("udp and src host 198.18.1.1")?.len(), 20);
    assert_eq!(at_lan.lines("src net 172.16.0.0/12")?, Vec::<String>::new());
    assert_eq!(
        in_container
            .lines("udp and dst host 172.17.0.2 and dst port 80")?
            .len(),
        20
    );

    // A frame of our own making: unknown protocol, from this machine's end of the wire.
    let frame = [
        &[0xff; 6][..],
        &lab.lan().mac("h1")?,
        &[0x88, 0xb5],
        &[0; 46],
    ]
    .concat();
    let at_host = host.capture(host.uplink())?;
    lab.lan().send_frame("h1", &frame)?;
    assert_eq!(
        at_host.count(|seen| seen.bytes == frame && !seen.outgoing)?,
        1
    );
    Ok(())
}

/// Held connections and a stream tell when they break.
#[test]
fn held_connections_and_streams_report_breaks() -> Result<()> {
    let lab = Lab::new("held")?;
    let host = published(&lab)?;
    let mut held = lab.lan().spawn_peer(&["hold", "50", "198.18.1.1:8080"])?;
    held.line("open 50", SOON)?;
    let fetch = [
        "fetch",
        "198.18.1.1:8080",
        "10000000",
        "--rate",
        "5000000",
        "--timeout=1000",
    ];
    let mut whole = lab.lan().spawn_peer(&fetch)?;
    whole.line("at ", SOON)?;
    whole.line("done 10000000", SOON)?;
    held.tell("")?;
    held.line("alive 50", SOON)?;

    let mut broken = lab.lan().spawn_peer(&fetch)?;
    broken.line("at ", SOON)?;
    host.container("web").docker("kill")?;
    held.tell("")?;
    held.line("alive 0", SOON)?;
    assert!(!broken.wait(SOON)?.success());
    Ok(())
}

#[test]
fn two_hosts_run_side_by_side() -> Result<()> {
    let lab = Lab::new("two")?;
    let first = published(&lab)?;
    let second = published(&lab)?;
    assert_eq!(first.docker(&["ps", "-q"])?.lines().count(), 1);
    assert_ne!(first.docker(&["ps", "-q"])?, second.docker(&["ps", "-q"])?);

    let inside = second.run("inside", &[], &Peer::idle())?;
    let seen = inside.peer(&["get", "198.18.1.1:8080"])?;
    assert!(
        seen.starts_with("198.18.2.1:"),
        "the first host sees the second, not {seen}"
    );
    Ok(())
}

/// Dockerd is killed and comes back with its containers.
#[test]
fn killed_dockerd_returns_with_its_containers() -> Result<()> {
    let lab = Lab::new("restart")?;
    let host = lab.host(Docker::stock().arg("--live-restore"))?;
    let web = host.run("web", &["-p", "8080:80"], &Peer::serve(80))?;
    let (pid, ip) = (web.pid()?, web.ip()?);

    host.kill_docker()?;
    assert!(host.docker(&["ps"]).is_err());
    host.start_docker()?;
    assert_eq!((web.pid()?, web.ip()?), (pid, ip), "live restore");
    host.restart_docker()?;
    eventually(SOON, || lab.lan().peer(&["get", "198.18.1.1:8080"]))?;
    Ok(())
}

#[test]
fn replace_mode_leaves_no_rules_and_no_proxy() -> Result<()> {
    let lab = Lab::new("replace")?;
    let host = lab.host(Docker::replace())?;
    let web = host.run("web", &["-p", "8080:80"], &Peer::serve(80))?;
    assert!(!host.cmd(&["iptables-save"])?.contains("DOCKER"));
    assert!(
        host.peer(&["get", &format!("{}:80", web.ip()?)])?
            .starts_with("172.17.0.1:")
    );
    holds(Duration::from_millis(200), || {
        ensure!(
            lab.lan().peer(&["get", "198.18.1.1:8080"]).is_err(),
            "somebody forwards"
        );
        Ok(())
    })
}

/// Stands for an agent: gets ready, pins a folder, ends with 3 on SIGTERM and refuses `--refuse`.
const AGENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/agent.sh");

#[test]
fn agent_is_started_stopped_and_its_log_read() -> Result<()> {
    let lab = Lab::new("agent")?;
    let host = lab.host(Docker::replace())?;
    let mut agent = host
        .agent()
        .binary(AGENT)
        .env("FORWARDER_GREETING", "hello")
        .start()?;
    assert!(agent.log().contains("hello from up0"), "{}", agent.log());
    assert_eq!(agent.ended()?, None);
    assert_eq!(agent.stop()?.code(), Some(3));

    let refused = host.agent().binary(AGENT).arg("--refuse").finish()?;
    assert_eq!(
        (refused.status.code(), refused.stderr.trim_end()),
        (Some(1), "refused")
    );
    let Err(error) = host.agent().binary(AGENT).arg("--refuse").start() else {
        bail!("an agent that ends at once was taken for a ready one");
    };
    assert!(
        format!("{error:#}").contains("refused"),
        "the error shows the log: {error:#}"
    );
    Ok(())
}

/// Nothing stays after a lab, not even after a panic.
#[test]
fn lab_leaves_nothing_even_after_a_panic() -> Result<()> {
    let mut names = Vec::new();
    for panics in [false, true] {
        let name = catch_unwind(AssertUnwindSafe(|| {
            let lab = Lab::new("gone").unwrap();
            let host = published(&lab).unwrap();
            let id = host.docker(&["ps", "-q", "--no-trunc"]).unwrap();
            names.push((host.name().trim_end_matches("-h1").to_owned(), id));
            assert!(!panics, "on purpose");
        }));
        assert_eq!(name.is_err(), panics);
    }
    assert_eq!(names.len(), 2);
    for (name, container) in names {
        traces(&name, &container)?;
    }
    Ok(())
}

#[test]
fn killed_test_is_cleaned_up_by_the_next() -> Result<()> {
    // A tester that is killed with a host up: this test, run again as a process of its own.
    const VICTIM: &str = "HARNESS_VICTIM";
    if let Some(file) = std::env::var_os(VICTIM) {
        let lab = Lab::new("victim")?;
        let host = published(&lab)?;
        let id = host.docker(&["ps", "-q", "--no-trunc"])?;
        fs::write(
            file,
            format!("{} {id}", host.name().trim_end_matches("-h1")),
        )?;
        loop {
            std::thread::park();
        }
    }
    let file = std::env::temp_dir().join(format!("harness-victim-{}", std::process::id()));
    let mut victim = Command::new(std::env::current_exe()?)
        .args([
            "--exact",
            "killed_test_is_cleaned_up_by_the_next",
            "--nocapture",
        ])
        .env(VICTIM, &file)
        .stdout(std::process::Stdio::null())
        .spawn()?;
    let reported = eventually(Duration::from_secs(30), || match victim.try_wait()? {
        Some(status) => Ok(Err(anyhow!("the victim ended by itself: {status}"))),
        None => Ok(Ok(
            fs::read_to_string(&file).context("the victim says nothing")?
        )),
    })
    .and_then(|reported| reported);
    victim.kill()?;
    victim.wait()?;
    let reported = reported?;
    fs::remove_file(&file)?;
    let (name, container) = reported.split_once(' ').context("a name and a container")?;
    ensure!(
        traces(name, container).is_err(),
        "the killed tester left nothing to sweep"
    );

    harness::sweep();
    traces(name, container)
}

/// Fails with the first trace of a lab that is left on the machine.
fn traces(lab: &str, container: &str) -> Result<()> {
    ensure!(
        !std::env::temp_dir().join(lab).exists(),
        "the folder of {lab} is left"
    );
    for entry in fs::read_dir("/run/netns")? {
        let name = entry?.file_name();
        ensure!(
            !name.to_string_lossy().starts_with(lab),
            "the namespace {name:?} is left"
        );
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!mounts.contains(lab), "mounts of {lab} are left");
    for root in mounts.lines().filter(|line| line.contains(" - cgroup")) {
        let point = root.split(' ').nth(4).context("a mount point")?;
        let group = Path::new(point).join("docker").join(container);
        ensure!(
            !group.exists(),
            "the control group {} is left",
            group.display()
        );
    }
    for process in fs::read_dir("/proc")?.filter_map(Result::ok) {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        ensure!(
            !line.contains(lab) && !line.contains(container),
            "a process is left: {line}"
        );
    }
    Ok(())
}
