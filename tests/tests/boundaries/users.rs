// SPDX-License-Identifier: MIT OR Apache-2.0
//! Unprivileged users of the host: they own nothing that the agent uses, keep it from nothing, and
//! write nothing to a terminal.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr as Address, TcpListener, UdpSocket};
use std::ops::RangeInclusive;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{chown, symlink};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::{Container, Docker, Host, Lab, Peer, Process, Scene, Space, eventually, serve};
use rustix::process::Uid;
use rustix::thread::set_thread_res_uid;

const SOON: Duration = Duration::from_secs(5);
const NOBODY: u32 = 65534;

/// The agent and the clean-up refuse a folder in one line, which names it and its owner, and leave
/// it as it is.
fn is_refused(host: &Host, dir: &Path, why: &str) -> Result<()> {
    let agent = host.agent().finish()?;
    let cleanup = host.forwarder(&["cleanup"])?;
    for said in [&agent, &cleanup] {
        let path = dir.display().to_string();
        ensure!(
            !said.status.success()
                && said.stderr.lines().count() == 1
                && said.stderr.contains(&path)
                && said.stderr.contains(why),
            "{said:?} of {path}, not {why}"
        );
    }
    ensure!(
        fs::symlink_metadata(dir).is_ok(),
        "{} has gone",
        dir.display()
    );
    let doctor = host.forwarder(&["doctor"])?.stdout;
    ensure!(doctor.contains(why), "{doctor}");
    Ok(())
}

/// Whoever makes a folder first owns it, on a bpffs with all that is pinned there.
#[test]
fn users_directory_is_refused() -> Result<()> {
    let lab = Lab::new("folders")?;
    let host = lab.host(Docker::replace())?;
    for dir in [host.bpffs_dir(), host.state_dir()] {
        fs::create_dir(&dir)?;
        chown(&dir, Some(NOBODY), None)?;
        is_refused(&host, &dir, "belongs to user 65534, not to root")?;
        fs::remove_dir(&dir)?;
    }
    let (link, elsewhere) = (
        host.state_dir(),
        host.state_dir().with_file_name("elsewhere"),
    );
    fs::create_dir(&elsewhere)?;
    symlink(&elsewhere, &link)?;
    is_refused(&host, &link, "is a symbolic link")?;
    fs::remove_file(&link)?;
    // Half way down, and one pin.
    let layout = host.bpffs_dir().join("v0");
    fs::create_dir_all(&layout)?;
    chown(&layout, Some(NOBODY), None)?;
    let cleanup = host.forwarder(&["cleanup"])?;
    ensure!(
        cleanup.stderr.contains("v0 belongs to user 65534"),
        "{cleanup:?}"
    );
    fs::remove_dir(&layout)?;

    let mut agent = host.agent().start()?;
    agent.kill()?;
    let pins: Vec<_> = walk(&host.bpffs_dir())?;
    let pin = pins.first().context("nothing is pinned")?;
    chown(pin, Some(NOBODY), None)?;
    is_pin_refused(&host, pin)?;
    chown(pin, Some(0), None)?;
    host.agent().start()?;
    host.cli(&["cleanup"])?;

    let file = host.configure("flow-rate = 0\n")?;
    chown(&file, Some(NOBODY), None)?;
    let said = host
        .agent()
        .arg(format!("--config={}", file.display()))
        .finish()?;
    ensure!(
        said.stderr.contains("forwarder.toml belongs to user 65534"),
        "{said:?}"
    );
    Ok(())
}

fn is_pin_refused(host: &Host, pin: &Path) -> Result<()> {
    for said in [host.agent().finish()?, host.forwarder(&["cleanup"])?] {
        let why = format!("{} belongs to user 65534", pin.display());
        ensure!(said.stderr.contains(&why), "{said:?}");
    }
    Ok(())
}

/// All files below a folder.
fn walk(dir: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(walk(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

/// The name of the lock is anybody's to bind: it keeps no agent from starting, and a second agent
/// is refused as ever.
#[test]
fn user_cannot_take_the_lock() -> Result<()> {
    let lab = Lab::new("lock-name")?;
    let host = lab.host(Docker::replace())?;
    let held = host.enter(|| {
        let user = Uid::from_raw(NOBODY);
        set_thread_res_uid(user, user, user)?;
        let name = SocketAddr::from_abstract_name("forwarder.lock")?;
        UnixListener::bind_addr(&name)
    })??;
    let mut agent = host.agent().start()?;
    ensure!(
        agent.log().contains("is held by user 65534"),
        "{}",
        agent.log()
    );
    for suffix in ["", "-apart"] {
        let second = host.agent().apart(suffix).finish()?;
        let why = format!(
            "another agent runs in this network namespace (pid {})",
            agent.pid()
        );
        ensure!(second.stderr.contains(&why), "{second:?}");
    }
    let kept = host.forwarder(&["cleanup"])?;
    ensure!(
        kept.stderr
            .contains("stop it first, or use cleanup --force"),
        "{kept:?}"
    );
    agent.kill()?;
    eventually(SOON, || host.cli(&["cleanup"]).map(drop))?;
    drop(held);
    host.agent().start()?;
    Ok(())
}

/// Names and labels are whatever somebody told Docker: nothing of ours hands control characters on
/// to a terminal, or a line of somebody's to the log.
#[test]
fn names_have_no_control_characters() -> Result<()> {
    let lab = Lab::new("escapes")?;
    let host = lab.host(Docker::replace())?;
    let agent = host.agent().start()?;
    let name = "a\u{1b}[2J\u{9b}31m\u{202e}b";
    let label = "forwarder.ingress.allow=all\n2026-01-01T00:00:00Z ERROR \u{1b}]0;forged\u{7}";
    host.docker(&["network", "create", "--label", label, name])?;
    eventually(SOON, || {
        let known = host.json("networks")?;
        let known = known.as_array().context("no list")?;
        ensure!(
            known.iter().any(|network| network["name"] == name),
            "{known:?}"
        );
        Ok(())
    })?;
    let shown = host.cli(&["networks"])?;
    ensure!(shown.contains("a\\u{1b}[2J\\u{9b}31m\\u{202e}b"), "{shown}");
    let steers =
        |text: &str| text.contains(|c: char| c.is_control() && c != '\n' || c == '\u{202e}');
    for verb in ["networks", "status", "endpoints", "doctor"] {
        for format in ["table", "json"] {
            let said = host.forwarder(&[verb, "-o", format])?;
            ensure!(
                !steers(&said.stdout) && !steers(&said.stderr),
                "{verb}: {said:?}"
            );
        }
    }
    let log = agent.log();
    ensure!(log.contains("nobody is let in") && !steers(&log), "{log}");
    ensure!(
        !log.lines().any(|line| line.starts_with("2026-01-01T")),
        "{log}"
    );
    Ok(())
}

/// 80,000 ranges in a container's labels close its own lists, not its neighbour's.
#[test]
fn long_lists_leave_a_neighbours_lists_alone() -> Result<()> {
    let lab = Lab::new("ranges")?;
    let host = lab.host(Docker::replace())?;
    let agent = host.agent().start()?;
    let mut labels = String::new();
    let mut ports = Vec::new();
    for port in 0..20u32 {
        let own: Vec<_> = (0..4_000u32)
            .map(|n| format!("11.{port}.{}.{}", n >> 8, n & 255))
            .collect();
        labels += &format!(
            "forwarder.ingress.{}/tcp.allow={}\n",
            9_000 + port,
            own.join(",")
        );
        ports.push(format!("{}:80", 9_000 + port));
    }
    let file = host.state_dir().with_file_name("labels");
    fs::write(&file, labels)?;
    let file = format!("--label-file={}", file.display());
    let mut options: Vec<&str> = ports
        .iter()
        .flat_map(|port| ["-p", port.as_str()])
        .collect();
    options.push(&file);
    host.run("greedy", &options, &Peer::serve(80))?;
    eventually(SOON * 2, || {
        let log = agent.log();
        ensure!(log.contains("lists of clients do not fit"), "{log}");
        Ok(())
    })?;
    let allow = "forwarder.ingress.allow=198.18.1.2";
    host.run(
        "web",
        &["-p", "8080:80", "--label", allow],
        &Peer::serve(80),
    )?;
    host.settle("web")?;
    eventually(SOON, || {
        lab.lan().peer(&["get", "198.18.1.1:8080", "--timeout=500"])
    })?;
    for port in [9_000, 9_010, 9_019] {
        let at = format!("198.18.1.1:{port}");
        let reached = lab.lan().peer(&["get", &at, "--timeout=300"]);
        ensure!(reached.is_err(), "{at} lets in who is on no list");
    }
    Ok(())
}

/// What is kept for containers by default.
const RESERVED: RangeInclusive<u16> = 61_000..=65_095;

/// Does something as an unprivileged user in a namespace.
fn as_user<T: Send>(space: &Space, work: impl FnOnce() -> T + Send) -> Result<T> {
    space.enter(|| {
        let user = Uid::from_raw(NOBODY);
        set_thread_res_uid(user, user, user)?;
        Ok(work())
    })?
}

fn is_refused_to_bind<T>(bound: &io::Result<T>) -> bool {
    bound
        .as_ref()
        .is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

/// Binds a datagram socket to every port that anybody may bind: who holds them, how many they are, and
/// how many were refused.
fn bind_all(space: &Space) -> Result<(Vec<Process>, usize, usize)> {
    let (mut holders, mut bound, mut refused) = (Vec::new(), 0, 0);
    // As many as a process may have open.
    for first in (1024..=u16::MAX).step_by(8_000) {
        let last = first.saturating_add(7_999);
        let words = ["occupy", &first.to_string(), &last.to_string()];
        let mut holder = space.spawn_user_peer(&words)?;
        let line = holder.line("bound", SOON * 4)?;
        let words: Vec<_> = line.split(' ').collect();
        bound += words[1].parse::<usize>()?;
        refused += words[3].parse::<usize>()?;
        holders.push(holder);
    }
    Ok((holders, bound, refused))
}

/// How many of a container's conversations with the LAN get an answer.
fn answered(app: &Container, ports: RangeInclusive<u16>) -> usize {
    let asks = ports.map(|port| {
        let bind = format!("--bind=0.0.0.0:{port}");
        app.peer(&["udp", "198.18.1.2:5300", "x", "--timeout=300", &bind])
    });
    asks.filter(Result::is_ok).count()
}

/// Every port that a user can bind, bound by him: a container's flows still find one each.
#[test]
fn user_cannot_take_all_outbound_ports() -> Result<()> {
    let scene = Scene::new("all-ports")?;
    let _server = serve(scene.lan(), 5300)?;
    let app = scene.run("app", &[], &Peer::idle())?;
    let (_holders, bound, refused) = bind_all(&scene.host)?;
    ensure!(bound > 60_000, "only {bound} sockets");
    ensure!(refused == RESERVED.count(), "{refused} ports are refused");
    let answers = answered(&app, 20_000..=20_019);
    ensure!(answers == 20, "{answers} of 20 are answered");
    Ok(())
}

/// The control: iptables looks at no sockets.
#[test]
fn stock_translates_beside_all_sockets() -> Result<()> {
    let lab = Lab::new("all-ports-stock")?;
    let host = lab.host(Docker::stock())?;
    let _server = serve(lab.lan(), 5300)?;
    let app = host.run("app", &[], &Peer::idle())?;
    let (_holders, bound, refused) = bind_all(&host)?;
    ensure!(bound > 64_000, "only {bound} sockets");
    ensure!(refused == 0, "{refused} ports are refused");
    let answers = answered(&app, 20_000..=20_019);
    ensure!(answers == 20, "{answers} of 20 are answered");
    Ok(())
}

/// The reserved ports are refused to a user by each way that leads to them, and to nobody else.
#[test]
fn reserved_ports_are_refused_to_users_alone() -> Result<()> {
    let scene = Scene::new("reserved")?;
    let app = scene.run("app", &[], &Peer::idle())?;
    let (host, own) = (&scene.host, scene.host.address());
    let bind = |address: Address| {
        let (udp, tcp) = (UdpSocket::bind(address), TcpListener::bind(address));
        [udp.map(drop), tcp.map(drop)]
    };
    let at = |address: &str, port: u16| -> Result<Address> {
        Ok((address.parse::<std::net::IpAddr>()?, port).into())
    };
    for address in ["0.0.0.0", &own.to_string(), "::", &format!("::ffff:{own}")] {
        for port in [*RESERVED.start(), *RESERVED.end()] {
            let address = at(address, port)?;
            let by_user = as_user(host, || bind(address))?;
            ensure!(
                by_user.iter().all(is_refused_to_bind),
                "{address}: {by_user:?}"
            );
            let by_root = host.enter(|| bind(address))?;
            ensure!(by_root.iter().all(Result::is_ok), "{address}: {by_root:?}");
        }
        for port in [RESERVED.start() - 1, RESERVED.end() + 1, 0] {
            let address = at(address, port)?;
            let by_user = as_user(host, || bind(address))?;
            ensure!(by_user.iter().all(Result::is_ok), "{address}: {by_user:?}");
        }
    }
    for elsewhere in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
        let address = Address::new(elsewhere, *RESERVED.start());
        let by_user = as_user(host, || bind(address))?;
        ensure!(by_user.iter().all(Result::is_ok), "{address}: {by_user:?}");
    }
    let address = at("0.0.0.0", *RESERVED.start())?;
    let inside = as_user(&app.space()?, || bind(address))?;
    ensure!(
        inside.iter().all(Result::is_ok),
        "in a container: {inside:?}"
    );
    Ok(())
}

/// Without a reservation there is none, and a doctor who looks says which ports overlap.
#[test]
fn disabled_reservation_reports_overlap() -> Result<()> {
    let lab = Lab::new("reserved-off")?;
    let host = lab.host(Docker::replace())?;
    let drawn = |range: &str| {
        host.enter(|| fs::write("/proc/sys/net/ipv4/ip_local_port_range", range))?
            .map_err(anyhow::Error::from)
    };
    drawn("1024 65535")?;
    let doctor = host.forwarder(&["doctor"])?.stdout;
    ensure!(doctor.contains("add 61000-65095 to net.ipv4"), "{doctor}");
    drawn("32768 60999")?;
    let doctor = host.forwarder(&["doctor"])?.stdout;
    ensure!(!doctor.contains("ip_local_port_range"), "{doctor}");
    let _agent = host.agent().arg("--reserved-ports=off").start()?;
    let bound = as_user(&host, || UdpSocket::bind(("0.0.0.0", *RESERVED.start())))?;
    ensure!(bound.is_ok(), "{bound:?}");
    Ok(())
}
