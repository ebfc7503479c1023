// SPDX-License-Identifier: MIT OR Apache-2.0
//! dockerd dies, comes back, and takes over what it finds.

use anyhow::{Result, ensure};
use harness::{Docker, Lab, Scene, eventually};
use rustix::process::Signal;

use super::{SOON, is_free, is_reserved, is_served, ports, run, scene, shims};

/// A dead daemon's ports stay reserved and served until the next daemon has them.
#[test]
fn dead_daemons_ports_stay_reserved_and_served() -> Result<()> {
    let scene = scene("orphans")?;
    let (host, lab) = (&scene.host, &scene.lab);
    run(host, "web", &["--restart=always"])?;
    host.docker(&[
        "run",
        "-d",
        "--name=once",
        "-p",
        "0.0.0.0:9090:80",
        "peer",
        "/peer",
        "wait",
    ])?;
    let before: Vec<_> = shims(host)?.iter().map(|shim| shim.pid).collect();
    assert_eq!(before.len(), 3);

    host.kill_docker()?;
    assert!(is_reserved(host, 8080)?);
    is_served(lab)?;
    let after: Vec<_> = shims(host)?.iter().map(|shim| shim.pid).collect();
    assert_eq!(before, after, "the shims live on");

    host.start_docker()?;
    eventually(SOON * 2, || is_served(lab))?;
    assert!(is_reserved(host, 8080)?);
    // Nobody has the other port any more.
    eventually(SOON * 2, || {
        let all = shims(host)?;
        ensure!(all.len() == 2, "{all:?}");
        let orphan = all.iter().find(|shim| before.contains(&shim.pid));
        ensure!(orphan.is_none(), "an orphan lives on: {orphan:?}");
        ensure!(is_free(host, 9090)?, "9090 is still reserved");
        Ok(())
    })?;
    assert_eq!(ports(host)?, ["0.0.0.0:8080/tcp", "0.0.0.0:8080/udp"]);
    host.container("web").remove()?;
    assert!(is_free(host, 8080)?);
    Ok(())
}

/// Orphans that nobody takes over are released once Docker answers.
#[test]
fn unclaimed_orphans_are_released() -> Result<()> {
    // The next dockerd knows nothing of the container, as after its data was thrown away.
    let lab = Lab::new("unclaimed")?;
    let host = lab.host(Docker::replace_with_shim())?;
    let agent = host.agent().start()?;
    let scene = Scene { agent, host, lab };
    let host = &scene.host;
    run(host, "web", &[])?;
    host.kill_docker()?;
    let network = host
        .state_dir()
        .with_file_name("data")
        .join("network/files/local-kv.db");
    std::fs::remove_file(network)?;
    is_served(&scene.lab)?;
    host.start_docker()?;
    eventually(SOON * 2, || {
        let left = shims(host)?;
        ensure!(left.is_empty(), "{left:?}");
        ensure!(ports(host)?.is_empty(), "a mapping is left");
        ensure!(is_free(host, 8080)?, "8080 is still reserved");
        Ok(())
    })
}

/// Containers that live on are taken over without a gap.
#[test]
fn surviving_containers_are_taken_over() -> Result<()> {
    let lab = Lab::new("live-restore")?;
    let host = lab.host(Docker::replace_with_shim().arg("--live-restore"))?;
    let agent = host.agent().start()?;
    let scene = Scene { agent, host, lab };
    let (host, lab) = (&scene.host, &scene.lab);
    run(host, "web", &[])?;
    let mut held = lab.lan().spawn_peer(&["hold", "3", "198.18.1.1:8080"])?;
    held.line("open 3", SOON)?;
    let pids = |host| -> Result<Vec<i32>> { Ok(shims(host)?.iter().map(|s| s.pid).collect()) };
    let before = pids(host)?;
    for kill in [true, false] {
        if kill {
            host.kill_docker()?;
        } else {
            host.stop_docker()?;
        }
        is_served(lab)?;
        host.start_docker()?;
        is_served(lab)?;
        held.tell("")?;
        assert_eq!(held.line("alive", SOON)?, "alive 3");
    }
    let after = pids(host)?;
    assert!(
        after.len() == 2 && after.iter().all(|pid| !before.contains(pid)),
        "{after:?}"
    );
    host.container("web").remove()?;
    assert!(is_free(host, 8080)? && ports(host)?.is_empty());
    Ok(())
}

#[test]
fn stray_sigterm_changes_nothing() -> Result<()> {
    // A thread of dockerd's that ends sends it too.
    let scene = scene("sigterm")?;
    let host = &scene.host;
    run(host, "web", &[])?;
    for shim in shims(host)? {
        shim.signal(Signal::TERM)?;
    }
    is_served(&scene.lab)?;
    assert!(is_reserved(host, 8080)?);
    host.container("web").remove()?;
    assert!(is_free(host, 8080)? && ports(host)?.is_empty());
    Ok(())
}
