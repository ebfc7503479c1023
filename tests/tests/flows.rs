// SPDX-License-Identifier: MIT OR Apache-2.0
//! `forwarder flows`: listed by filters, ended, watched; with an agent and without one.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Array, HashMap, Map, MapData};
use forwarder_common::abi::{FlowRef, LAYOUT, Tuple, name};
use forwarder_common::family::V4;
use harness::{Host, Packet, Peer, Process, Scene, eventually, serve};
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(5);
/// A lease, the agent's heartbeat, and some patience.
const SWITCHED_OFF: Duration = Duration::from_secs(10);
/// A reset flow lives for ten seconds.
const RESET: Duration = Duration::from_secs(15);

/// The scene of all: a server by TCP and UDP, and ports where nobody listens.
fn scene(label: &str) -> Result<Scene> {
    with(label, &[])
}

/// The same with an agent that has more arguments.
fn with(label: &str, arguments: &[&str]) -> Result<Scene> {
    let scene = Scene::with(label, arguments)?;
    let ports = [
        "-p",
        "8080:80",
        "-p",
        "8080:80/udp",
        "-p",
        "8081:80",
        "-p",
        "8082:82",
        "-p",
        "8083:83/udp",
    ];
    scene.run("web", &ports, &Peer::serve(80))?;
    Ok(scene)
}

/// What `flows` with some more flags shows, as `PROTO DPORT` of the originators, in order.
fn shown(host: &Host, flags: &[&str]) -> Result<Vec<String>> {
    let text = host.cli(&[&["flows", "-o", "json"], flags].concat())?;
    let all: Vec<Value> = serde_json::from_str(&text)?;
    let mut names: Vec<_> = all
        .iter()
        .map(|flow| {
            let proto = flow["proto"].as_str().unwrap_or_default();
            format!("{proto} {}", flow["original"]["dport"])
        })
        .collect();
    names.sort();
    Ok(names)
}

/// How many keys the index has.
fn keys(host: &Host) -> Result<u64> {
    let status = host.json("status")?;
    status["maps"]["FLOW_INDEX"]["fill"]
        .as_u64()
        .context("no fill")
}

/// The one line that a refusal is.
fn refusal(host: &Host, arguments: &[&str]) -> Result<String> {
    let done = host.forwarder(arguments)?;
    ensure!(done.status.code() == Some(1), "{done:?}");
    ensure!(done.stdout.is_empty(), "{done:?}");
    ensure!(done.stderr.lines().count() == 1, "{done:?}");
    Ok(done.stderr)
}

#[test]
fn each_filter_shows_its_flows_only() -> Result<()> {
    let mut scene = scene("filters")?;
    let app = scene.run("app", &[], &Peer::idle())?;
    let mut held = scene.lan().spawn_peer(&["hold", "1", "198.18.1.1:8080"])?;
    held.line("open 1", SOON)?;
    let _outside = serve(scene.lan(), 7777)?;
    app.peer(&["udp", "198.18.1.2:7777", "x"])?;
    app.peer(&["ping", "198.18.1.2"])?;

    let host = &scene.host;
    let (app_flows, web_flows) = (["icmp 0", "udp 7777"], ["tcp 8080"]);
    let id = app.inspect("{{.Id}}")?;
    for name in ["app", &id, &id[..12], &id[..6]] {
        assert_eq!(shown(host, &["--container", name])?, app_flows, "{name}");
    }
    assert_eq!(shown(host, &["--container=web"])?, web_flows);
    assert_eq!(shown(host, &["--port=80"])?, web_flows);
    assert_eq!(shown(host, &["--port=8080"])?, web_flows);
    assert_eq!(shown(host, &["--port=7777"])?, ["udp 7777"]);
    assert_eq!(shown(host, &["--state=established"])?, web_flows);
    assert_eq!(shown(host, &["--state=REPLIED"])?, app_flows);
    assert_eq!(shown(host, &["--proto=icmp"])?, ["icmp 0"]);
    assert_eq!(shown(host, &["--proto=tcp"])?, web_flows);
    assert_eq!(shown(host, &["--peer=198.18.1.2"])?.len(), 3);
    assert_eq!(shown(host, &["--peer=198.19.0.0/16"])?.len(), 0);
    let both = ["--container=app", "--proto=udp"];
    assert_eq!(shown(host, &both)?, ["udp 7777"]);
    assert_eq!(shown(host, &["--container=app", "--port=80"])?.len(), 0);

    let unknown = refusal(host, &["flows", "--container=nobody"])?;
    assert!(unknown.contains("nobody"), "{unknown}");
    let usage = host.forwarder(&["flows", "--state=open"])?;
    assert_eq!(usage.status.code(), Some(2), "{usage:?}");
    assert!(usage.stderr.contains("TIME_WAIT"), "{usage:?}");

    let peer = format!("--peer={}", app.ip()?);
    scene.agent.kill()?;
    let host = &scene.host;
    assert_eq!(shown(host, &[&peer])?, app_flows);
    let orphan = refusal(host, &["flows", "--container=app"])?;
    assert!(
        orphan.contains("--peer") && orphan.contains("no agent answers"),
        "{orphan}"
    );
    Ok(())
}

#[test]
fn delete_ends_matching_flows_and_all_their_keys() -> Result<()> {
    let mut scene = scene("delete")?;
    let mut kept = scene.lan().spawn_peer(&["hold", "2", "198.18.1.1:8080"])?;
    kept.line("open 2", SOON)?;
    let mut lost = scene.lan().spawn_peer(&["hold", "1", "198.18.1.1:8081"])?;
    lost.line("open 1", SOON)?;
    scene.lan().peer(&["udp", "198.18.1.1:8080", "x"])?;
    let host = &scene.host;
    let before = keys(host)?;
    assert_eq!(before, 8, "{:?}", shown(host, &[])?);

    let refused = refusal(host, &["flows", "delete"])?;
    assert!(refused.contains("--all"), "{refused}");
    assert_eq!(host.cli(&["flows", "delete", "--port=9999"])?, "0 ended");
    assert_eq!(keys(host)?, before);
    assert_eq!(host.cli(&["flows", "delete", "--port=8081"])?, "1 ended");
    assert_eq!(keys(host)?, before - 2);
    let left = ["tcp 8080", "tcp 8080", "udp 8080"];
    assert_eq!(shown(host, &[])?, left);

    scene.agent.kill()?;
    let host = &scene.host;
    let udp = ["flows", "delete", "--port=8080", "--proto=udp"];
    assert_eq!(host.cli(&udp)?, "1 ended");
    assert_eq!(keys(host)?, before - 4);
    kept.tell("")?;
    assert_eq!(kept.line("alive", SOON)?, "alive 2");
    assert_eq!(host.cli(&["flows", "delete", "--all"])?, "2 ended");
    assert_eq!(keys(host)?, 0);
    // The records are free again.
    scene.lan().peer(&["get", "198.18.1.1:8080"])?;
    Ok(())
}

/// Where connections are not picked up in their middle: else the server's next segment does so.
#[test]
fn delete_stops_a_download_and_no_other() -> Result<()> {
    let scene = with("download", &["--tcp-loose=no"])?;
    let lan = scene.lan();
    let fetch = |to| lan.spawn_peer(&["fetch", to, "100000000", "--rate=1000000"]);
    let mut stopped = fetch("198.18.1.1:8080")?;
    let mut other = fetch("198.18.1.1:8081")?;
    stopped.line("at ", SOON)?;
    other.line("at ", SOON)?;
    let ended = scene
        .host
        .cli(&["flows", "delete", "--container=web", "--port=8080"])?;
    assert_eq!(ended, "1 ended");
    // It waits for three seconds for the next byte.
    let status = stopped.wait(2 * SOON)?;
    assert!(!status.success(), "{:?}", stopped.lines().last());
    for _ in 0..5 {
        other.line("at ", SOON)?;
    }
    Ok(())
}

/// A watcher that has begun to watch.
fn watch(host: &Host, flags: &[&str]) -> Result<Process> {
    let mut watcher = host.spawn_forwarder(&[&["flows", "--watch"], flags].concat())?;
    watcher.line("{\"event\":\"watching\"", SOON)?;
    Ok(watcher)
}

/// What it has shown so far.
fn events(watcher: &Process) -> Result<Vec<Value>> {
    let lines = watcher.lines();
    let parse = |line: &String| {
        serde_json::from_str(line).with_context(|| format!("no JSON in a line: {line}"))
    };
    lines.iter().map(parse).collect()
}

/// Waits for the event of a kind about an originator's port.
fn event(
    watcher: &Process,
    kind: &str,
    proto: &str,
    dport: u16,
    within: Duration,
) -> Result<Value> {
    eventually(within, || {
        let all = events(watcher)?;
        let found = all.iter().find(|event| {
            event["event"] == kind && event["proto"] == proto && event["original"]["dport"] == dport
        });
        let found = found.with_context(|| format!("no {kind} of {proto} {dport} in {all:?}"))?;
        Ok(found.clone())
    })
}

/// Until when the programs believe that somebody watches.
fn lease(host: &Host) -> Result<u64> {
    let map: Array<MapData, u64> = pinned(host, name::WATCH)?.try_into()?;
    Ok(map.get(&0, 0)?)
}

fn pinned(host: &Host, name: &str) -> Result<Map> {
    let path: PathBuf = host.bpffs_dir().join(format!("v{LAYOUT}/maps")).join(name);
    Ok(Map::from_map_data(MapData::from_pin(path)?)?)
}

fn clock() -> u64 {
    let time = clock_gettime(ClockId::MonotonicCoarse);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Watch shows flows from their beginning to their end.
#[test]
fn watch_shows_flows_from_begin_to_end() -> Result<()> {
    let mut scene = scene("watch")?;
    scene.agent.kill()?;
    let host = &scene.host;
    assert_eq!(lease(host)?, 0, "nobody watches");
    let mut watcher = watch(host, &["-o", "json"])?;
    let second = refusal(host, &["flows", "--watch"])?;
    assert!(second.contains("runs already"), "{second}");

    assert!(
        scene.lan().peer(&["get", "198.18.1.1:8082"]).is_err(),
        "nobody listens"
    );
    scene.lan().peer(&["get", "198.18.1.1:8080"])?;
    scene.lan().peer(&["udp", "198.18.1.1:8080", "x"])?;
    let connection = event(&watcher, "new", "tcp", 8080, SOON)?;
    let datagram = event(&watcher, "new", "udp", 8080, SOON)?;
    let refused = event(&watcher, "new", "tcp", 8082, SOON)?;
    for begun in [&connection, &datagram, &refused] {
        assert_eq!(begun["original"]["src"], "198.18.1.2", "{begun}");
        assert_eq!(begun["original"]["dst"], "198.18.1.1", "{begun}");
        assert_eq!(begun["reply"]["dst"], "198.18.1.2", "{begun}");
        assert_eq!(begun["reply"]["dport"], begun["original"]["sport"]);
        assert_eq!(
            (&begun["packets"], &begun["reason"]),
            (&0.into(), &Value::Null)
        );
    }
    let web = host.container("web").ip()?.to_string();
    assert_eq!(
        (&connection["reply"]["src"], &connection["reply"]["sport"]),
        (&web.into(), &80.into())
    );

    // What the table says last is what is told at the end.
    let listed = |proto: &str| -> Result<Value> {
        let flags = ["flows", "-o", "json", "--port=8080", "--proto", proto];
        let all: Value = serde_json::from_str(&host.cli(&flags)?)?;
        Ok(all[0].clone())
    };
    let tcp = eventually(SOON, || {
        let flow = listed("tcp")?;
        ensure!(flow["state"] == "TIME_WAIT", "{flow}");
        Ok(flow)
    })?;
    let udp = listed("udp")?;
    assert_eq!(udp["packets"], 2);
    assert_eq!(host.cli(&["flows", "delete", "--port=8080"])?, "2 ended");
    for (begun, last) in [(&connection, &tcp), (&datagram, &udp)] {
        let proto = begun["proto"].as_str().context("no protocol")?;
        let end = event(&watcher, "end", proto, 8080, SOON)?;
        assert_eq!(
            (&end["id"], &end["reason"]),
            (&begun["id"], &"deleted".into())
        );
        for column in ["original", "reply", "state", "packets", "bytes"] {
            assert_eq!(end[column], last[column], "{column}: {end}");
        }
        assert!(end["time"].as_f64() >= begun["time"].as_f64(), "{end}");
    }
    // Its time is over after ten seconds, and no new flow comes that would collect it.
    let end = event(&watcher, "end", "tcp", 8082, RESET)?;
    assert_eq!(
        (&end["reason"], &end["state"]),
        (&"reset".into(), &"CLOSE".into())
    );
    assert_eq!((&end["id"], &end["packets"]), (&refused["id"], &2.into()));
    assert!(end["age_s"].as_f64() >= Some(10.0), "{end}");

    watcher.signal(Signal::INT)?;
    assert!(watcher.wait(SOON)?.success());
    assert_eq!(lease(host)?, 0, "the programs were told");
    let all = events(&watcher)?;
    assert_eq!(all.len(), 1 + 6, "{all:?}");
    Ok(())
}

#[test]
fn watch_shows_matching_flows_only() -> Result<()> {
    let scene = scene("watch-filter")?;
    let flags = ["-o", "json", "--proto=udp", "--container=web"];
    let watcher = watch(&scene.host, &flags)?;
    scene.lan().peer(&["get", "198.18.1.1:8080"])?;
    scene.lan().peer(&["udp", "198.18.1.1:8080", "x"])?;
    event(&watcher, "new", "udp", 8080, SOON)?;
    let all = events(&watcher)?;
    assert_eq!(all.len(), 2, "{all:?}");

    drop(watcher);
    let mut table = scene.host.spawn_forwarder(&["flows", "--watch"])?;
    table.line("EVENT  PROTO", SOON)?;
    scene.lan().peer(&["get", "198.18.1.1:8080"])?;
    let line = table.line("new ", SOON)?;
    assert!(line.contains(" > :8080 "), "{line}");
    assert!(line.contains("web:80 > 198.18.1.2:"), "{line}");
    scene.host.cli(&["flows", "delete", "--all"])?;
    let line = table.line("end ", SOON)?;
    assert!(line.ends_with(" deleted"), "{line}");
    Ok(())
}

/// A container that comes while somebody watches has a name soon.
#[test]
fn watch_learns_names_of_later_containers() -> Result<()> {
    let scene = scene("watch-names")?;
    let mut table = scene.host.spawn_forwarder(&["flows", "--watch"])?;
    table.line("EVENT  PROTO", SOON)?;
    scene.run("late", &["-p", "8090:80"], &Peer::serve(80))?;
    eventually(2 * SOON, || {
        scene.lan().peer(&["get", "198.18.1.1:8090"])?;
        let line = table.line("new ", SOON)?;
        ensure!(line.contains("late:80 > "), "{line}");
        Ok(())
    })
}

/// A killed watcher is noticed, and another one takes over.
#[test]
fn killed_watcher_is_replaced_by_another() -> Result<()> {
    let scene = scene("watch-killed")?;
    let mut watcher = watch(&scene.host, &["-o", "json"])?;
    assert!(lease(&scene.host)? > clock());
    watcher.kill()?;
    // Told to nobody: what comes after starts anew.
    scene.lan().peer(&["get", "198.18.1.1:8080"])?;
    eventually(SWITCHED_OFF, || {
        let until = lease(&scene.host)?;
        ensure!(until == 0, "the programs believe in {until}");
        Ok(())
    })?;
    let watcher = watch(&scene.host, &["-o", "json"])?;
    scene.lan().peer(&["udp", "198.18.1.1:8080", "x"])?;
    event(&watcher, "new", "udp", 8080, SOON)?;
    let all = events(&watcher)?;
    assert_eq!(all.len(), 2, "{all:?}");
    Ok(())
}

/// Sends a datagram to a port of the host from each of a stranger's ports.
fn send(scene: &Scene, to: u16, ports: std::ops::Range<u16>) -> Result<()> {
    let (host, device) = (&scene.host, scene.host.lan_device());
    let macs = (host.mac(host.uplink())?, scene.lan().mac(&device)?);
    let to = SocketAddrV4::new(host.address(), to);
    let from = |port| SocketAddrV4::new(Ipv4Addr::new(198, 18, 1, 77), port);
    let frames = ports.map(|port| Packet::udp(from(port), to, b"x").frame(macs.0, macs.1));
    scene
        .lan()
        .send_frames(&device, &frames.collect::<Vec<_>>())
}

/// Makes as many flows as there are ports, by datagrams to where nobody listens.
fn burst(scene: &Scene, to: u16, ports: std::ops::Range<u16>) -> Result<()> {
    let goal = keys(&scene.host)? + 2 * ports.len() as u64;
    send(scene, to, ports)?;
    eventually(SOON, || {
        let keys = keys(&scene.host)?;
        ensure!(keys == goal, "{keys} keys instead of {goal}");
        Ok(())
    })
}

/// The events that a stopped watcher misses are counted exactly.
#[test]
fn events_missed_by_a_watcher_are_counted() -> Result<()> {
    let scene = scene("watch-burst")?;
    let mut watcher = watch(&scene.host, &["-o", "json"])?;
    // As many as fit into the ring: all of them are seen.
    burst(&scene, 8083, 1_000..6_000)?;
    assert_eq!(settled(&watcher, 5_000)?, (5_000, 0));

    watcher.signal(Signal::STOP)?;
    // More than fit, and then some when nobody could have listened for too long.
    burst(&scene, 8083, 10_000..22_000)?;
    eventually(SWITCHED_OFF, || {
        let (until, now) = (lease(&scene.host)?, clock());
        ensure!(until != 0, "it is only stopped");
        ensure!(until < now, "the lease is not over");
        Ok(())
    })?;
    burst(&scene, 8083, 30_000..38_000)?;
    watcher.signal(Signal::CONT)?;
    let (seen, lost) = settled(&watcher, 25_000)?;
    assert!(lost >= 8_000, "nobody listened: {lost} lost");
    assert!(seen >= 14_000, "the ring has room for them: {seen} seen");
    Ok(())
}

/// The programs report what should not be, and the agent logs it: here a flow whose keys are gone.
/// It ends when new flows make the sweep come by, because its container has gone.
#[test]
fn fault_of_a_program_is_logged() -> Result<()> {
    type Key = [u8; size_of::<Tuple<V4>>()];
    type Row = [u8; size_of::<FlowRef>()];
    const FAULT: &str = "a key of an ending flow was not in the index (-2)";

    let scene = with("fault", &["--flows=1024"])?;
    scene.run("other", &["-p", "8090:90/udp"], &Peer::idle())?;
    scene.lan().peer(&["get", "198.18.1.1:8080"])?;
    let mut index: HashMap<MapData, Key, Row> =
        pinned(&scene.host, name::FLOW_INDEX)?.try_into()?;
    for key in index.keys().collect::<Result<Vec<_>, _>>()? {
        index.remove(&key)?;
    }
    assert!(!scene.agent.log().contains(FAULT));

    scene.host.docker(&["rm", "-f", "web"])?;
    send(&scene, 8090, 1_000..2_000)?;
    eventually(SOON, || {
        let log = scene.agent.log();
        ensure!(log.contains(FAULT), "{log}");
        Ok(())
    })
}

/// Waits until so many flows were seen or lost, and says how many of each; nothing else happens.
fn settled(watcher: &Process, flows: u64) -> Result<(u64, u64)> {
    eventually(SOON, || {
        let (mut seen, mut lost) = (0, 0);
        for event in &events(watcher)?[1..] {
            match event["event"].as_str() {
                Some("new") => seen += 1,
                Some("lost") => lost += event["lost"].as_u64().context("no number")?,
                _ => bail!("not expected: {event}"),
            }
        }
        ensure!(
            seen + lost == flows,
            "{seen} seen and {lost} lost are not {flows}"
        );
        Ok((seen, lost))
    })
}
