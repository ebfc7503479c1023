// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host that fills up: what each next container costs, how soon its ports are in the map, how
//! much memory the agent has in the end, and that nothing stays when all have gone; one whose
//! containers come and go; and an agent that starts on a full host. Prints its figures.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use forwarder_common::abi::{LAYOUT, PortKey, Published, name};
use forwarder_common::family::V4;
use harness::{Agent, Docker, Host, IMAGE, Lab, Process, eventually, soaked};

/// Ports of each container.
const PORTS: u16 = 10;
/// The first host port.
const FIRST: u16 = 10_000;
/// From Docker's event to the map, of 99 in 100 ports.
const PUBLISH: Duration = Duration::from_millis(100);
/// From Docker's event to a port that is gone, of 99 in 100.
const REVOKE: Duration = Duration::from_millis(250);
/// How much longer the last containers may take to start than the first, beside what dockerd itself
/// takes longer.
const GROWTH: f64 = 1.3;
/// Bytes that the agent may have resident.
const RESIDENT: u64 = 40 << 20;
/// CPU time that the agent may take for one change on a full host.
const CHANGE: Duration = Duration::from_millis(5);
/// Flow records of a large host.
const FLOWS: u32 = 1 << 20;
/// What the agent's log says if it finds something else in the kernel than it has applied.
const CHANGED: &str = "somebody has changed what the agent applied";
/// Between two changes.
const APART: Duration = Duration::from_millis(30);
/// How often the agent compares everything by itself.
const RESYNC: Duration = Duration::from_secs(10);
/// Between two looks at the map.
const LOOK: Duration = Duration::from_millis(1);
const SOON: Duration = Duration::from_secs(5);

/// Bytes of a key and of a value of the map of published ports.
const KEY: usize = size_of::<PortKey<V4>>();
const VALUE: usize = size_of::<Published<V4>>();

/// Starts containers one by one, each with its own ports, and says how long each took.
fn start(host: &Host, number: u16) -> Result<Duration> {
    let ports: Vec<_> = (0..PORTS)
        .map(|port| format!("-p{}:{}", FIRST + number * PORTS + port, 80 + port))
        .collect();
    let name = format!("--name=c{number}");
    let mut argv = vec!["run", "-d", &name];
    argv.extend(ports.iter().map(String::as_str));
    argv.extend([IMAGE, "/peer", "wait"]);
    let begun = Instant::now();
    host.docker(&argv)?;
    Ok(begun.elapsed())
}

/// The map of published ports.
type PublishedMap = HashMap<MapData, [u8; KEY], [u8; VALUE]>;

fn published(host: &Host) -> Result<PublishedMap> {
    let maps = host.bpffs_dir().join(format!("v{LAYOUT}/maps"));
    let data = MapData::from_pin(maps.join(name::PUBLISHED))?;
    Ok(Map::HashMap(data).try_into()?)
}

/// When each host port was first seen in the pinned map, while there is more to come.
struct Watch {
    map: PublishedMap,
    seen: Mutex<BTreeMap<u16, SystemTime>>,
    over: AtomicBool,
}

impl Watch {
    fn new(host: &Host) -> Result<Self> {
        Ok(Self {
            map: published(host)?,
            seen: Mutex::default(),
            over: AtomicBool::new(false),
        })
    }

    fn seen(&self) -> BTreeMap<u16, SystemTime> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.clone()
    }

    /// Looks for the ports in their order: one container's come at once, after the one's before.
    fn look(&self, ports: u16) {
        for port in FIRST..FIRST + ports {
            let mut key = [0; KEY];
            key[4..6].copy_from_slice(&port.to_be_bytes());
            key[6..8].copy_from_slice(&6_u16.to_ne_bytes());
            while self.map.get(&key, 0).is_err() {
                if self.over.load(Ordering::Relaxed) {
                    return;
                }
                sleep(LOOK);
            }
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.insert(port, SystemTime::now());
        }
    }
}

/// What Docker tells of containers: their names and when.
fn events(host: &Host, event: &str) -> Result<Process> {
    let address = host.docker_cli().address();
    let mut command = std::process::Command::new("docker");
    command.args(["-H", &address, "events", &format!("--filter=event={event}")]);
    command.arg("--format={{.Actor.Attributes.name}} {{.TimeNano}}");
    let log = host.state_dir().join(format!("{event}.log"));
    Process::spawn("docker events", &mut command, &log)
}

/// When Docker said so of each container, by its number.
fn event_times(events: &Process) -> BTreeMap<u16, SystemTime> {
    let parse = |line: String| {
        let (name, nanoseconds) = line.split_once(' ')?;
        let at = UNIX_EPOCH + Duration::from_nanos(nanoseconds.parse().ok()?);
        Some((name.strip_prefix('c')?.parse().ok()?, at))
    };
    let lines = events.lines().into_iter();
    lines.filter_map(parse).collect()
}

fn median(of: &[Duration]) -> Duration {
    let mut sorted = of.to_vec();
    sorted.sort();
    sorted[sorted.len() / 2]
}

/// The median of the last ones over that of the first ones.
fn growth(of: &[Duration], edge: usize) -> f64 {
    let (first, last) = (median(&of[..edge]), median(&of[of.len() - edge..]));
    println!("  first {edge}: {first:?}, last {edge}: {last:?}");
    last.as_secs_f64() / first.as_secs_f64()
}

/// From what Docker told of each container to what was seen of each port, of so many ports each.
fn latencies(
    events: &BTreeMap<u16, SystemTime>,
    seen: &BTreeMap<u16, SystemTime>,
    ports: u16,
) -> Result<Vec<Duration>> {
    let of = |(port, at): (&u16, &SystemTime)| {
        let event = events.get(&((port - FIRST) / ports));
        let event = event.with_context(|| format!("no event for {port}"))?;
        // It may well be there before Docker says so.
        Ok(at.duration_since(*event).unwrap_or_default())
    };
    seen.iter().map(of).collect()
}

/// Prints the median and what 99 in 100 do not exceed, and says the latter where the test has the
/// machine to itself (`--soak`), the median in a run that does other things beside.
fn most(mut latencies: Vec<Duration>, what: &str) -> Duration {
    latencies.sort();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share).round() as usize];
    let (half, most) = (at(0.5), at(0.99));
    println!("{what}: median {half:?}, p99 {most:?}");
    soaked(half, most)
}

/// Bytes that a process has resident.
fn resident(agent: &Agent) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(kilobytes.context("no VmRSS")?.trim().parse::<u64>()? << 10)
}

/// See [`taken`].
type Taken = (BTreeMap<String, u64>, usize, usize);

/// What containers take up: entries of each map but those of flows, which end by themselves, and
/// those of the host's IPv6 addresses, of which a bridge gets one with its first port; programs on
/// devices; and descriptors of the agent.
fn taken(host: &Host, agent: &Agent) -> Result<Taken> {
    let status = host.json("status")?;
    let maps = status["maps"].as_object().context("no maps")?;
    let is_others = |name: &str| name.contains("FLOW") || name == name::HOST_ADDRESSES6;
    let fills: BTreeMap<_, _> = maps
        .iter()
        .filter(|(name, _)| !is_others(name))
        .filter_map(|(name, map)| Some((name.clone(), map["fill"].as_u64()?)))
        .collect();
    ensure!(fills.len() > 3, "{maps:?}");
    let descriptors = fs::read_dir(format!("/proc/{}/fd", agent.pid()))?.count();
    Ok((fills, host.pinned()?.links.len(), descriptors))
}

/// Waits until no container takes up anything any more.
fn is_as_before(host: &Host, agent: &Agent, empty: &Taken) -> Result<()> {
    eventually(SOON, || {
        let left = taken(host, agent)?;
        // A question of ours may still be open, and so may one of the agent's to Docker.
        let same = (&left.0, left.1) == (&empty.0, empty.1) && left.2 <= empty.2 + 3;
        ensure!(same, "left: {left:?}; it was {empty:?}");
        Ok(())
    })
}

/// Removes containers, some at a time.
fn remove(host: &Host, containers: u16) -> Result<()> {
    let names: Vec<_> = (0..containers).map(|number| format!("c{number}")).collect();
    scope(|scope| {
        let some = names.chunks(names.len().div_ceil(4)).map(|names| {
            scope.spawn(|| {
                let names = names.iter().map(String::as_str);
                host.docker(&["rm", "-f"].into_iter().chain(names).collect::<Vec<_>>())
            })
        });
        let all: Vec<_> = some.collect();
        all.into_iter()
            .try_for_each(|one| one.join().expect("a removing thread").map(drop))
    })
}

/// Fills a host without an agent and one with it in turn, so that whatever else the machine does
/// slows both.
fn fill(label: &str, containers: u16, edge: usize) -> Result<()> {
    let lab = Lab::new(label)?;
    let base = lab.host(Docker::replace())?;
    let host = lab.host(Docker::replace())?;
    let agent = host.agent().start()?;
    let events = events(&host, "start")?;
    let watch = Watch::new(&host)?;
    let empty = taken(&host, &agent)?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    scope(|scope| {
        let looking = scope.spawn(|| watch.look(containers * PORTS));
        let filled = (0..containers).try_for_each(|number| {
            without.push(start(&base, number)?);
            with.push(start(&host, number)?);
            anyhow::Ok(())
        });
        let all = eventually(SOON, || {
            let seen = watch.seen().len();
            ensure!(
                seen == usize::from(containers * PORTS),
                "{seen} ports are in the map"
            );
            Ok(())
        });
        watch.over.store(true, Ordering::Relaxed);
        looking.join().expect("the looking thread");
        filled.and(all)
    })?;

    println!("{containers} containers with {PORTS} ports each");
    println!("docker run without an agent:");
    let base_growth = growth(&without, edge);
    println!("docker run with the agent:");
    let own_growth = growth(&with, edge);
    println!("  grown {own_growth:.2}×, without {base_growth:.2}×");

    let latencies = latencies(&event_times(&events), &watch.seen(), PORTS)?;
    let most = most(latencies, "from Docker's event to the map");
    let memory = resident(&agent)?;
    println!("the agent has {:.1} MB resident", memory as f64 / 1e6);

    ensure!(
        own_growth <= GROWTH * base_growth.max(1.0),
        "starts grow {own_growth:.2}×, without the agent {base_growth:.2}×"
    );
    ensure!(most <= PUBLISH, "published after {most:?}");
    ensure!(memory <= RESIDENT, "{memory} bytes resident");

    let full = taken(&host, &agent)?;
    ensure!(full.1 >= empty.1 + usize::from(containers), "{full:?}");
    remove(&host, containers)?;
    is_as_before(&host, &agent, &empty)
}

/// The time of starts and of publishing and the memory stay flat with a thousand ports.
#[test]
fn thousand_ports_keep_times_and_memory_flat() -> Result<()> {
    fill("scale", 100, 20)
}

/// How much sooner a start attaches each of many programs than each of few, for which it waits as
/// the kernel pleases. Measured is a hundred times.
const SOONER: u32 = 4;

/// Starts containers with a port each.
fn populate(host: &Host, containers: u16) -> Result<()> {
    let some = |numbers: &[u16]| {
        numbers.iter().try_for_each(|number| {
            let (name, port) = (format!("c{number}"), format!("-p{}:80", FIRST + number));
            host.docker(&["run", "-d", "--name", &name, &port, IMAGE, "/peer", "wait"])
                .map(drop)
        })
    };
    let numbers: Vec<_> = (0..containers).collect();
    scope(|scope| {
        let all: Vec<_> = numbers
            .chunks(numbers.len().div_ceil(2))
            .map(|numbers| scope.spawn(move || some(numbers)))
            .collect();
        all.into_iter()
            .try_for_each(|one| one.join().expect("a starting thread"))
    })
}

/// How many links are pinned, and the time from the first to the last.
fn attaching(host: &Host) -> Result<(u32, Duration)> {
    let mut times = Vec::new();
    for link in fs::read_dir(host.bpffs_dir().join(format!("v{LAYOUT}/links")))? {
        times.push(link?.metadata()?.modified()?);
    }
    times.sort();
    let (first, last) = times.first().zip(times.last()).context("no links")?;
    Ok((u32::try_from(times.len())?, last.duration_since(*first)?))
}

/// How long an agent takes until it is ready.
fn ready_after(host: &Host) -> Result<(Agent, Duration)> {
    let begun = Instant::now();
    let agent = host.agent().quiet().start()?;
    Ok((agent, begun.elapsed()))
}

/// An agent's start attaches the programs of many containers at once, and waits less for each than
/// for those of few.
#[test]
fn first_start_attaches_in_one_burst() -> Result<()> {
    let lab = Lab::new("burst")?;
    let (few, many) = (lab.host(Docker::replace())?, lab.host(Docker::replace())?);
    populate(&few, 2)?;
    let containers = soaked(50, 200);
    populate(&many, containers)?;
    let mut paces = Vec::new();
    for host in [&few, &many] {
        let (mut agent, first) = ready_after(host)?;
        let (links, window) = attaching(host)?;
        agent.kill()?;
        let (_agent, again) = ready_after(host)?;
        println!(
            "{links} programs: ready after {first:.2?}, attached within {window:.2?}; with pins \
             ready after {again:.2?}"
        );
        paces.push(window / links);
    }
    let links = many.pinned()?.links.len();
    ensure!(links >= 2 * usize::from(containers), "{links} links");
    ensure!(
        paces[1] * SOONER <= paces[0],
        "each of many programs takes {:?}, each of few {:?}",
        paces[1],
        paces[0]
    );
    Ok(())
}

/// When each host port was first seen in the map, and when first missed again.
#[derive(Default)]
struct Life {
    came: BTreeMap<u16, SystemTime>,
    went: BTreeMap<u16, SystemTime>,
}

/// Looks until it is over.
fn follow(map: &PublishedMap, over: &AtomicBool) -> Life {
    let mut life = Life::default();
    let mut before = BTreeSet::new();
    while !over.load(Ordering::Relaxed) {
        let keys = map.keys().filter_map(Result::ok);
        let there: BTreeSet<_> = keys
            .map(|key| u16::from_be_bytes([key[4], key[5]]))
            .collect();
        let now = SystemTime::now();
        for port in there.difference(&before) {
            life.came.insert(*port, now);
        }
        for port in before.difference(&there) {
            life.went.insert(*port, now);
        }
        before = there;
        sleep(LOOK);
    }
    life
}

/// Containers that come and go leave nothing and are followed at once.
#[test]
fn container_churn_leaves_nothing() -> Result<()> {
    let lab = Lab::new("churn")?;
    let host = lab.host(Docker::replace())?;
    let agent = host.agent().start()?;
    let (starts, ends) = (events(&host, "start")?, events(&host, "die")?);
    let map = published(&host)?;
    let empty = taken(&host, &agent)?;
    let containers = soaked(40, 1000);
    let over = AtomicBool::new(false);
    let life = scope(|scope| {
        let looking = scope.spawn(|| follow(&map, &over));
        let churned = (0..containers).try_for_each(|number: u16| {
            let port = format!("-p{}:80", FIRST + number);
            let name = format!("c{number}");
            host.docker(&["run", "-d", "--name", &name, &port, IMAGE, "/peer", "wait"])?;
            host.docker(&["rm", "-f", &name]).map(drop)
        });
        let gone = eventually(SOON, || {
            let left = map.keys().count();
            ensure!(left == 0, "{left} ports are in the map");
            Ok(())
        });
        // One more look.
        sleep(10 * LOOK);
        over.store(true, Ordering::Relaxed);
        let life = looking.join().expect("the looking thread");
        churned.and(gone).map(|()| life)
    })?;
    println!("{containers} containers, one after the other");
    let (starts, ends) = (event_times(&starts), event_times(&ends));
    let Life { came, went } = life;
    let counts = [&starts, &ends, &came, &went].map(BTreeMap::len);
    ensure!(counts == [usize::from(containers); 4], "{counts:?}");
    let publish = most(latencies(&starts, &came, 1)?, "from its start to its port");
    let revoke = most(latencies(&ends, &went, 1)?, "from its end to its port's");
    ensure!(publish <= PUBLISH, "published after {publish:?}");
    ensure!(revoke <= REVOKE, "revoked after {revoke:?}");
    is_as_before(&host, &agent, &empty)?;
    sleep(RESYNC + LOOK);
    ensure!(!agent.log().contains(CHANGED), "the agent loses count");
    Ok(())
}

/// CPU time that all threads of a process have taken.
fn cpu_time(agent: &Agent) -> Result<Duration> {
    let mut total = Duration::ZERO;
    for thread in fs::read_dir(format!("/proc/{}/task", agent.pid()))? {
        // A thread may end meanwhile.
        let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else {
            continue;
        };
        let running = text.split(' ').next().context("an empty schedstat")?;
        total += Duration::from_nanos(running.parse()?);
    }
    Ok(total)
}

/// Which part of a CPU the agent takes while nothing changes.
fn idle(agent: &Agent) -> Result<f64> {
    let (at, before) = (Instant::now(), cpu_time(agent)?);
    sleep(soaked(1, 4) * RESYNC);
    Ok((cpu_time(agent)? - before).as_secs_f64() / at.elapsed().as_secs_f64())
}

/// How much CPU time the agent takes for each of `times` changes, beside what it takes anyway.
fn cost(
    agent: &Agent,
    idle: f64,
    times: u32,
    mut change: impl FnMut(u32) -> Result<()>,
) -> Result<Duration> {
    let (at, before) = (Instant::now(), cpu_time(agent)?);
    for number in 0..times {
        change(number)?;
        // So that the agent handles each by itself.
        sleep(APART);
    }
    let taken = (cpu_time(agent)? - before).as_secs_f64();
    let anyway = idle * at.elapsed().as_secs_f64();
    println!("  {times} changes: {taken:.3} s of CPU time, of which {anyway:.3} s anyway");
    Ok(Duration::from_secs_f64(
        (taken - anyway).max(0.0) / f64::from(times),
    ))
}

/// A change costs the agent little CPU time, however large the flow table is and however many ports
/// are published.
#[test]
fn change_costs_little_cpu_time() -> Result<()> {
    let lab = Lab::new("cost")?;
    let host = lab.host(Docker::replace())?;
    let agent = host.agent().arg(format!("--flows={FLOWS}")).start()?;
    host.ip("link add many0 type veth peer name many1")?;
    host.ip("link set many0 up")?;
    let address = |number: u32| {
        host.ip(&format!("address add 198.18.9.{}/32 dev many0", number + 1))
            .map(drop)
    };
    let no_address = |number: u32| {
        host.ip(&format!("address del 198.18.9.{}/32 dev many0", number + 1))
            .map(drop)
    };
    let container = |number: u32| {
        let (name, port) = (format!("c{number}"), format!("-p{}:80", 30_000 + number));
        host.docker(&["run", "-d", "--name", &name, &port, IMAGE, "/peer", "wait"])
            .map(drop)
    };
    let costs = |what: &str| -> Result<Duration> {
        println!("{what}:");
        let (addresses, containers) = (soaked(25, 100), soaked(3, 10));
        let idle = idle(&agent)?;
        let added = cost(&agent, idle, addresses, address)?;
        let removed = cost(&agent, idle, addresses, no_address)?;
        let started = cost(&agent, idle, containers, container)?;
        for number in 0..containers {
            host.docker(&["rm", "-f", &format!("c{number}")])?;
        }
        println!("  an address: {added:?}, one less: {removed:?}, a container: {started:?}");
        Ok(added.max(removed))
    };
    let few = costs("no ports")?;
    let range = format!("-p{FIRST}-{}:1-1000", FIRST + 999);
    host.docker(&["run", "-d", "--name=many", &range, IMAGE, "/peer", "wait"])?;
    let map = published(&host)?;
    eventually(SOON, || {
        let ports = map.keys().count();
        ensure!(ports == 1000, "{ports} ports are in the map");
        Ok(())
    })?;
    let many = costs("1,000 ports")?;
    // Everything has been compared meanwhile.
    ensure!(!agent.log().contains(CHANGED), "the agent loses count");
    ensure!(few <= CHANGE, "a change takes {few:?} of CPU time");
    ensure!(many <= CHANGE, "with 1,000 ports a change takes {many:?}");
    Ok(())
}
