// SPDX-License-Identifier: MIT OR Apache-2.0
//! The loaded programs under pressure: a flood that is answered evicts nobody who proved that he is
//! there, a container that may open no more is told so, and nearly all ports are there to be used.

#[expect(
    dead_code,
    reason = "the bounds need less of the fixtures than there is"
)]
mod fixtures;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use forwarder::datapath::{Simulated, View, now};
use forwarder_common::abi::capacity;
use forwarder_common::mark;
use forwarder_common::reason::Reason;
use forwarder_testkit::model::frames::{ACK, SYN, Spec, UNREACHABLE, ip};
use forwarder_testkit::model::host::{
    APP, APP_VETH, BRIDGE, CLIENT, GATEWAY, HOST, REMOTE, UPLINK, WEB, WEB_VETH, far_mac, mac,
};
use forwarder_testkit::model::{Arrival, Hook, Host};
use forwarder_testkit::packet::{seal_header, sums_up};

use fixtures::{Fixtures, Loaded, routes};

const DROP: i32 = 2;
const REDIRECT: i32 = 7;

/// SYNs of the flood, each of another client.
const FLOOD: u32 = 1_000_000;
/// Connections that stand meanwhile.
const STANDING: u16 = 1_000;
/// Flows of each of two containers towards one destination, of 64,512 ports.
const CROWD: u16 = 30_500;

/// Runs a test in the fixtures' namespace, over the usual world with these bounds.
fn on_fixtures(
    label: &str,
    flows: u32,
    bounds: (u32, u32),
    test: impl FnOnce(&mut Loaded, &View) -> Result<()> + Send,
) -> Result<()> {
    let fixtures = Fixtures::new(label)?;
    let (bpffs, netns) = (fixtures.bpffs(), fixtures.space().path().to_owned());
    fixtures.space().enter(|| {
        let mut kernel = Loaded::open(&bpffs, &netns, flows)?;
        let mut host = Host::usual(64);
        routes(&mut host);
        let settings = &mut host.settings;
        (settings.flows, settings.ring) = (flows, flows / capacity::UNASSURED_SHARE);
        (settings.flow_quota, settings.flow_rate) = bounds;
        settings.heartbeat = now();
        kernel.mirror(&host)?;
        test(&mut kernel, &View::open(&bpffs)?)
    })?
}

fn on(ifindex: u32) -> Arrival {
    Arrival {
        ifindex,
        ..Arrival::default()
    }
}

fn by_uplink(kernel: &mut Loaded, spec: &Spec) -> Result<Simulated> {
    let frame = spec.clone().between(mac(UPLINK), far_mac(UPLINK)).build();
    kernel.run(Hook::OutsideIn, &frame, on(UPLINK))
}

fn by_veth(kernel: &mut Loaded, veth: u32, spec: &Spec) -> Result<Simulated> {
    let frame = spec.clone().between(mac(BRIDGE), far_mac(veth)).build();
    kernel.run(Hook::ContainerIn, &frame, on(veth))
}

fn count(view: &View, reason: Reason) -> Result<u64> {
    let reasons = view.reasons()?;
    let mut of_reason = reasons.iter().filter(|(other, _)| *other == reason);
    Ok(of_reason.next().context("no such reason")?.1)
}

/// A million SYNs that are answered evict no connection.
#[test]
fn million_answered_syns_evict_no_connection() -> Result<()> {
    on_fixtures("flood", capacity::FLOWS, (0, 0), |kernel, view| {
        let asks = |port, flags| Spec::tcp((CLIENT, port), (HOST, 8080), flags);
        let answers = |port, flags| Spec::tcp((WEB, 80), (CLIENT, port), flags);
        let ports = 10_000..10_000 + STANDING;
        for port in ports.clone() {
            by_uplink(kernel, &asks(port, SYN))?;
            by_veth(kernel, WEB_VETH, &answers(port, SYN | ACK))?;
            by_uplink(kernel, &asks(port, ACK))?;
        }
        let client = IpAddr::from(CLIENT.octets());
        let standing = |view: &View| -> BTreeMap<u16, _> {
            let flows = view.flows(now()).into_iter();
            let of_client = flows.filter(|flow| flow.original.src == client);
            let known =
                of_client.map(|flow| (flow.original.sport, (flow.flow_state, flow.packets)));
            known.collect()
        };
        let before = standing(view);
        ensure!(before.len() == usize::from(STANDING), "{}", before.len());
        ensure!(
            before
                .values()
                .all(|(flow_state, _)| flow_state.is_assured())
        );

        // Nobody checks the transport's checksum on the way: one frame each way, addressed anew.
        let client = ip(198, 19, 0, 0);
        let spec = Spec::tcp((client, 0), (HOST, 8080), SYN);
        let mut syn = spec.between(mac(UPLINK), far_mac(UPLINK)).build();
        let spec = Spec::tcp((WEB, 80), (client, 0), SYN | ACK);
        let mut answer = spec.between(mac(BRIDGE), far_mac(WEB_VETH)).build();
        let mut carried = 0;
        for n in 0..FLOOD {
            let (addr, port) = ((n / 50_000 + 1) as u8, (1024 + n % 50_000) as u16);
            syn[29] = addr;
            syn[34..36].copy_from_slice(&port.to_be_bytes());
            answer[33] = addr;
            answer[36..38].copy_from_slice(&port.to_be_bytes());
            seal_header(&mut syn[14..]);
            seal_header(&mut answer[14..]);
            let came = kernel.run(Hook::OutsideIn, &syn, on(UPLINK))?;
            let went = kernel.run(Hook::ContainerIn, &answer, on(WEB_VETH))?;
            carried += u32::from(came.code == REDIRECT && went.code == REDIRECT);
        }
        ensure!(carried == FLOOD, "{carried} of {FLOOD} were carried");
        ensure!(count(view, Reason::TableFull)? == 0, "the table was full");

        for port in ports {
            let came = by_uplink(kernel, &asks(port, ACK))?;
            let went = by_veth(kernel, WEB_VETH, &answers(port, ACK))?;
            ensure!(
                (came.code, went.code) == (REDIRECT, REDIRECT),
                "port {port}"
            );
        }
        // The same records have lived through it: none was picked up anew.
        for (port, (flow_state, [asked, answered])) in standing(view) {
            let (then, [asks, answers]) = before[&port];
            ensure!(flow_state == then, "port {port} has another record");
            ensure!((asked, answered) == (asks + 1, answers + 1), "port {port}");
        }
        let fill = view.maps()?;
        let flows = fill
            .iter()
            .find(|map| map.name == "FLOWS")
            .context("none")?;
        let most = capacity::FLOWS / capacity::UNASSURED_SHARE + u32::from(STANDING);
        ensure!(flows.fill == most, "{} flows, not {most}", flows.fill);
        Ok(())
    })
}

/// Of 64,512 ports towards one destination 61,000 are used, and nobody guesses them.
#[test]
fn one_destination_gets_61000_random_ports() -> Result<()> {
    on_fixtures("ports", capacity::FLOWS, (0, 0), |kernel, view| {
        let mut outer = |veth, addr, port| -> Result<u16> {
            let simulated = by_veth(kernel, veth, &Spec::udp((addr, port), (REMOTE, 53)))?;
            ensure!(
                simulated.code == REDIRECT,
                "port {port}: {}",
                simulated.code
            );
            ensure!(simulated.frame[26..30] == HOST.octets());
            Ok(u16::from_be_bytes([
                simulated.frame[34],
                simulated.frame[35],
            ]))
        };
        let own = 20_000..20_000 + CROWD;
        let mut taken = BTreeSet::new();
        for port in own.clone() {
            ensure!(outer(WEB_VETH, WEB, port)? == port && taken.insert(port));
        }
        let mut drawn = Vec::new();
        for port in own {
            let outer = outer(APP_VETH, APP, port)?;
            ensure!(outer >= 1024 && taken.insert(outer), "{outer} is taken");
            drawn.push(outer);
        }
        ensure!(taken.len() == usize::from(CROWD) * 2);
        ensure!(count(view, Reason::PortsExhausted)? == 0);

        // While most are free every sixteenth of them is as likely (15 degrees of freedom: above 56
        // once in a million), and none tells the next one.
        let free: Vec<u16> = (1024..20_000).chain(20_000 + CROWD..=65_535).collect();
        let mut sixteenths = [0_f64; 16];
        for port in &drawn[..1600] {
            let place = free.binary_search(port).ok().context("taken")?;
            sixteenths[place * 16 / free.len()] += 1.0;
        }
        let chi_square: f64 = sixteenths.iter().map(|n| (n - 100.0).powi(2) / 100.0).sum();
        ensure!(chi_square < 56.0, "{chi_square}: {sixteenths:?}");
        let near = |pair: &[u16]| pair[0].abs_diff(pair[1]) < 16;
        let near = drawn.windows(2).filter(|pair| near(pair)).count();
        ensure!(near < 100, "{near} lie beside the one before");
        Ok(())
    })
}

/// Checks the answer to a packet of the container behind a veth.
fn expect_error(simulated: &Simulated, veth: u32, spec: &Spec, quoted: usize) -> Result<()> {
    let (link, answer) = simulated.frame.split_at(14);
    ensure!(
        simulated.code == REDIRECT && simulated.mark == mark::DONE,
        "{simulated:x?}"
    );
    ensure!(link == [&far_mac(veth)[..], &mac(BRIDGE), &[8, 0]].concat());
    ensure!(answer[12..16] == GATEWAY.octets() && answer[16..20] == spec.tuple.src.octets());
    ensure!((answer[9], answer[20], answer[21]) == (1, UNREACHABLE, 13));
    ensure!(answer[28..] == spec.packet()[..quoted], "{answer:02x?}");
    ensure!(sums_up(answer), "{answer:02x?}");
    Ok(())
}

#[test]
fn container_at_its_quota_gets_an_icmp_error() -> Result<()> {
    on_fixtures("quota", 1024, (3, 0), |kernel, view| {
        let query = |port| Spec::udp((APP, port), (REMOTE, 53));
        for port in 1..=3 {
            ensure!(by_veth(kernel, APP_VETH, &query(port))?.code == REDIRECT);
        }
        let refused = [
            (query(4), 28),
            (query(4).payload(0), 28),
            (query(4).payload(1400), 28),
            (Spec::tcp((APP, 4), (REMOTE, 80), SYN), 40),
            (Spec::tcp((APP, 4), (HOST, 8080), SYN), 40),
            (Spec::ping(APP, REMOTE, 4), 28),
        ];
        for (spec, quoted) in &refused {
            let simulated = by_veth(kernel, APP_VETH, spec)?;
            expect_error(&simulated, APP_VETH, spec, *quoted)
                .with_context(|| format!("{spec:?}"))?;
        }
        ensure!(count(view, Reason::FlowQuota)? == refused.len() as u64);
        // The rest goes on.
        ensure!(by_veth(kernel, APP_VETH, &query(1))?.code == REDIRECT);
        ensure!(count(view, Reason::Forwarded)? == 4);
        let neighbour = Spec::udp((WEB, 4), (REMOTE, 53));
        by_veth(kernel, WEB_VETH, &neighbour)?;
        ensure!(count(view, Reason::Forwarded)? == 5);
        Ok(())
    })
}

/// A container that opens flows faster than it may is refused, and is told so not too often.
#[test]
fn rate_limited_container_gets_few_icmp_errors() -> Result<()> {
    on_fixtures("rate", 16_384, (0, 10), |kernel, view| {
        let start = now();
        let mut codes = BTreeMap::<i32, u64>::new();
        for port in 1..=3000 {
            let spec = Spec::udp((APP, port), (REMOTE, 53));
            *codes
                .entry(by_veth(kernel, APP_VETH, &spec)?.code)
                .or_default() += 1;
        }
        let ticks = u64::from(now().wrapping_sub(start));
        let (opened, refused) = (
            count(view, Reason::Forwarded)?,
            count(view, Reason::FlowRate)?,
        );
        // 10 at once, 10 in a second of 59.6 ticks: and of answers 1000.
        ensure!(
            (10..=11 + ticks / 5).contains(&opened),
            "{opened} in {ticks} ticks"
        );
        ensure!(opened + refused == 3000, "{opened} and {refused}");
        let answered = codes[&REDIRECT] - opened;
        ensure!(
            (1000..=1017 + 17 * ticks).contains(&answered),
            "{answered} answers"
        );
        ensure!(ticks > 100 || codes.contains_key(&DROP), "{codes:?}");
        Ok(())
    })
}
