// SPDX-License-Identifier: MIT OR Apache-2.0
//! dockerd's restarts, other people's firewalls, other drivers, and a hardware address that changes.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{scope, sleep};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::{Docker, IMAGE, Peer, eventually, finish, serve};
use serde_json::{Value, json};

use crate::SOON;
use crate::ask::{is_kept_from, reaches};
use crate::site::Site;

/// Port 80 of both transports, published as 8080.
const WEB: [&str; 4] = ["-p", "8080:80", "-p", "8080:80/udp"];
const PUBLISHED: &str = "198.18.1.1:8080";
/// Requests while dockerd restarts, that all have to succeed.
const ENOUGH: u32 = 100;

/// Case 34, `TestPortMappingRestore` and `TestDaemonRestartWithRunningContainersPorts`.
#[test]
fn mappings_return_after_dockerd_restarts() -> Result<()> {
    let site = Site::ours("c34-restart")?;
    let options = [&WEB[..], &["--restart=always"]].concat();
    site.run("web", &options, &Peer::serve(80))?;
    reaches(site.lan(), PUBLISHED, "198.18.1.2")?;
    for how in ["in good order", "killed"] {
        if how == "killed" {
            site.host.kill_docker()?;
        } else {
            site.host.stop_docker()?;
        }
        site.host.start_docker()?;
        eventually(SOON, || reaches(site.lan(), PUBLISHED, "198.18.1.2")).context(how)?;
    }
    site.host.container("web").remove()?;
    eventually(SOON, || is_kept_from(site.lan(), PUBLISHED))
}

/// With live restore no request fails while dockerd restarts.
///
/// Case 34 with live restore (moby's issues 27880 and 37142).
#[test]
fn live_restore_loses_no_request() -> Result<()> {
    let docker = Docker::replace().arg("--live-restore");
    let site = Site::with("c34-live-restore", docker, "")?;
    site.run("web", &WEB, &Peer::serve(80))?;
    let (over, asked) = (AtomicBool::new(false), AtomicU32::new(0));
    scope(|scope| {
        let asking = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                site.lan().peer(&["get", PUBLISHED, "--timeout=1000"])?;
                asked.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(10));
            }
            anyhow::Ok(())
        });
        let mut restarts = Ok(());
        while restarts.is_ok() && asked.load(Ordering::Relaxed) < ENOUGH && !asking.is_finished() {
            restarts = site.host.restart_docker();
        }
        over.store(true, Ordering::Relaxed);
        let asking = asking.join().expect("the asking thread");
        restarts.and(asking)
    })?;
    reaches(site.lan(), PUBLISHED, "198.18.1.2")
}

/// A firewall that drops and reloads breaks nothing and brings no removed container back.
///
/// Case 37, `TestDropInForwardChain` and `TestFirewalldReloadNoZombies`.
#[test]
fn firewall_drop_and_reload_break_nothing() -> Result<()> {
    let site = Site::ours("c37-firewall")?;
    let _server = serve(site.lan(), 7)?;
    let web = site.run("web", &WEB, &Peer::serve(80))?;
    let gone = site.run(
        "gone",
        &["-p", "8081:80", "-p", "8081:80/udp"],
        &Peer::serve(80),
    )?;
    site.host.cmd(&["nft", "add", "table", "inet", "theirs"])?;
    let chain = "{ type filter hook forward priority 0 ; policy drop ; }";
    site.host
        .cmd(&["nft", "add", "chain", "inet", "theirs", "forward", chain])?;
    let all = || -> Result<()> {
        reaches(site.lan(), PUBLISHED, "198.18.1.2")?;
        reaches(&web.space()?, "198.18.1.2:7", "198.18.1.1")?;
        site.lan().peer(&["fetch", PUBLISHED, "1000000"]).map(drop)
    };
    all().context("with a policy that drops")?;
    gone.remove()?;
    site.host.cmd(&["nft", "flush", "ruleset"])?;
    all().context("after a reload")?;
    eventually(SOON, || is_kept_from(site.lan(), "198.18.1.1:8081"))?;
    site.network("later", &[])?;
    is_kept_from(site.lan(), "198.18.1.1:8081").context("it came back")
}

/// Case 38, `TestDockerNetworkMacvlan`, `TestRunNetHost`, `TestRunContainerWithoutNetworking`,
/// `TestContainerNetworkMode`: ipvlan is not in this kernel.
#[test]
fn other_drivers_containers_are_left_alone() -> Result<()> {
    let site = Site::ours("c38-drivers")?;
    let _server = serve(site.lan(), 7)?;
    let web = site.run("web", &WEB, &Peer::serve(80))?;
    let run = |name: &str, network: &str, more: &[&str]| {
        let options = [&["--network", network], more].concat();
        site.host.run(name, &options, &Peer::serve(9000))
    };
    let own = run("own", "host", &[])?;
    reaches(&own.space()?, "198.18.1.2:7", "198.18.1.1")?;
    reaches(site.lan(), "198.18.1.1:9000", "198.18.1.2")?;

    let none = run("none", "none", &[])?;
    let links = none.space()?.ip("-br link")?;
    ensure!(links.lines().count() == 1, "more than lo: {links}");

    let shared = run("shared", "container:web", &[])?;
    reaches(&shared.space()?, "198.18.1.2:7", "198.18.1.1")?;
    reaches(&shared.space()?, "127.0.0.1:80", "127.0.0.1")?;
    shared.remove()?;
    reaches(site.lan(), PUBLISHED, "198.18.1.2")?;

    let create =
        "network create -d macvlan -o parent=up0 --subnet=198.18.1.0/24 --gateway=198.18.1.2 wire";
    site.host.docker(&create.split(' ').collect::<Vec<_>>())?;
    // Its published port means nothing there.
    let wire = ["--ip=198.18.1.50", "-p", "8085:9000", "-p", "8085:9000/udp"];
    let wire = run("wire", "wire", &wire)?;
    reaches(&wire.space()?, "198.18.1.2:7", "198.18.1.50")?;
    reaches(site.lan(), "198.18.1.50:9000", "198.18.1.2")?;
    is_kept_from(site.lan(), "198.18.1.1:8085")?;
    // With a leg in a bridge network as well, it has both.
    site.host
        .docker(&["network", "connect", "bridge", "wire"])?;
    let inside = wire.space()?;
    reaches(&inside, "198.18.1.2:7", "198.18.1.50")?;
    let direct = format!("{}:80", web.ip()?);
    reaches(&inside, &direct, &crate::site::address(&wire, "bridge")?)
}

/// A container with another hardware address is reached at once.
///
/// Case 40, `TestAdvertiseAddresses`: what we send by an address of our own notice, we send right at
/// once; neighbours on the bridge ask the kernel's ARP, which Docker hurries from 28 on.
#[test]
fn changed_hardware_address_is_reached_at_once() -> Result<()> {
    let site = Site::ours("c40-new-mac")?;
    site.network("fixed", &["--subnet=172.30.0.0/24"])?;
    let sibling = site.run("sibling", &["--network", "fixed"], &Peer::idle())?;
    let place = json!({"NetworkMode": "fixed", "PortBindings": {
        "80/tcp": [{"HostPort": "8080"}], "80/udp": [{"HostPort": "8080"}]}});
    let address = json!({"IPAMConfig": {"IPv4Address": "172.30.0.10"}});
    for n in 1..=3 {
        // Of the command line's clients the newer ones do not ask an older daemon for it.
        let mac = format!("02:42:00:00:00:0{n}");
        let wanted = json!({"Image": IMAGE, "Cmd": ["/peer", "serve", "80"], "MacAddress": mac,
            "ExposedPorts": {"80/tcp": {}, "80/udp": {}}, "HostConfig": place,
            "NetworkingConfig": {"EndpointsConfig": {"fixed": address}}});
        post(&site, "containers/create?name=web", &wanted)?;
        let web = site.host.container("web");
        web.docker("start")?;
        web.log_line("serving")?;
        site.settle("web")?;
        let device = web.space()?.ip("-br link show dev eth0")?;
        ensure!(device.contains(&mac), "Docker gave it another: {device}");
        reaches(site.lan(), PUBLISHED, "198.18.1.2").with_context(|| mac.clone())?;
        reaches(&sibling.space()?, PUBLISHED, "172.30.0.1").with_context(|| mac.clone())?;
        web.remove()?;
    }
    Ok(())
}

/// Asks Docker's API for something to be made.
fn post(site: &Site, path: &str, wanted: &Value) -> Result<()> {
    let address = site.host.docker_cli().address();
    let mut curl = Command::new("curl");
    curl.args([
        "--silent",
        "--show-error",
        "--fail-with-body",
        "--unix-socket",
    ])
    .arg(address.trim_start_matches("unix://"))
    .args(["--header", "Content-Type: application/json", "--data"])
    .arg(wanted.to_string())
    .arg(format!("http://docker/v1.41/{path}"));
    finish(&mut curl)?.success().map(drop)
}
