// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bans of fail2ban, in the three forms of its actions, and bans that need the kernel to forget a
//! connection.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use harness::{Host, Process};

use super::scenario::{Scenario, allows, goes_on_again, iptables, load, on_both, refuses, serves};
use super::{BAN, CLIENT, goes_on, stands};
use crate::{PUBLISHED, SOON, Stock};

/// The client that is banned from the beginning.
const OTHER: &str = "203.0.113.9";

/// Bans a client, or lets it in again.
type Action<'a> = &'a dyn Fn(&Host, &str, bool) -> Result<()>;

/// A stream that is fast stops within a second of a ban and goes on after it; nobody else notices.
fn bans(stock: &Stock, action: Action<'_>) -> Result<()> {
    let far = stock.lab.far()?;
    on_both(stock, |scenario| {
        let host = scenario.host();
        scenario.mode("app", "follow")?;
        let mut stream = scenario.inward()?;
        scenario.fast()?;
        action(host, CLIENT, true)?;
        stands(&mut stream).context("banned")?;
        refuses(|| scenario.serves()).context("banned")?;
        serves(&far, PUBLISHED, "198.19.1.2").context("not banned")?;
        action(host, CLIENT, false)?;
        allows(|| scenario.serves()).context("banned no longer")?;
        goes_on_again(&mut stream)?;
        scenario.fast().context("banned no longer")
    })
}

/// `iptables-multiport`: a chain with a rule for each client.
#[test]
fn fail2ban_chain_holds() -> Result<()> {
    let stock = Stock::new("f2b")?;
    let action: Action<'_> = &|host, client, is_banned| {
        let place = if is_banned {
            "-I f2b-web 1"
        } else {
            "-D f2b-web"
        };
        let ban = "-j REJECT --reject-with icmp-port-unreachable";
        iptables(host, &format!("{place} -s {client} {ban}"))
    };
    iptables(&stock.host, "-N f2b-web")?;
    iptables(&stock.host, "-A f2b-web -j RETURN")?;
    let jump = "-I DOCKER-USER -p tcp -m multiport --dports 80,443 -j f2b-web";
    iptables(&stock.host, jump)?;
    action(&stock.host, OTHER, true)?;
    bans(&stock, action)
}

/// `nftables-multiport`: a table of its own with a set, to which a ban adds an element.
#[test]
fn fail2ban_set_of_nft_holds() -> Result<()> {
    let stock = Stock::new("f2bnft")?;
    let table = "table inet f2b-table {\n set addr-set-web { type ipv4_addr; }\n chain f2b-chain {\n\
        type filter hook forward priority -1; policy accept;\n\
        tcp dport { 80, 443 } ip saddr @addr-set-web reject with icmp type port-unreachable\n }\n}";
    load(&stock.host, "nft -f -", table)?;
    bans(&stock, &|host, client, is_banned| {
        let verb = if is_banned { "add" } else { "delete" };
        let element = format!("{{ {client} }}");
        let place = ["element", "inet", "f2b-table", "addr-set-web", &element];
        host.cmd(&[&["nft", verb], &place[..]].concat()).map(drop)
    })
}

/// `iptables-ipset`: one rule with a set. It needs a kernel with ipsets.
#[test]
fn fail2ban_ipset_holds() -> Result<()> {
    let stock = Stock::new("f2bset")?;
    let set = |words: &str| {
        let words: Vec<_> = words.split(' ').collect();
        stock.host.cmd(&[&["ipset"], &words[..]].concat()).map(drop)
    };
    Command::new("ipset").arg("--version").output()?;
    if let Err(error) = set("create f2b-web hash:ip timeout 600") {
        println!("skipped: this kernel has no ipsets: {error:#}");
        return Ok(());
    }
    let ban = "-j REJECT --reject-with icmp-port-unreachable";
    let of = "-p tcp -m multiport --dports 80,443 -m set --match-set f2b-web src";
    iptables(&stock.host, &format!("-I DOCKER-USER {of} {ban}"))?;
    bans(&stock, &|_, client, is_banned| {
        let verb = if is_banned { "add" } else { "del" };
        set(&format!("{verb} f2b-web {client}"))
    })
}

/// A stream of datagrams is fast once the kernel takes it for a stream, and obeys a ban.
#[test]
fn ban_holds_for_datagrams() -> Result<()> {
    let stock = Stock::new("f2budp")?;
    iptables(&stock.host, &format!("-I {}", BAN.join(" ")))?;
    on_both(&stock, |scenario| {
        let host = scenario.host();
        scenario.mode("app", "follow")?;
        let mut inward = datagrams(scenario)?;
        scenario.fast()?;
        iptables(host, &format!("-I DOCKER-USER -s {CLIENT} -p udp -j DROP"))?;
        stands(&mut inward)?;
        iptables(host, &format!("-D DOCKER-USER -s {CLIENT} -p udp -j DROP"))?;
        goes_on(&mut inward)?;
        scenario.fast().context("banned no longer")?;
        // What answers is banned, too.
        let answers = "DOCKER-USER -d 198.18.1.2 -p udp --sport 80 -j DROP";
        iptables(host, &format!("-I {answers}"))?;
        stands(&mut inward).context("answers")?;
        iptables(host, &format!("-D {answers}"))
    })
}

fn datagrams(scenario: &Scenario<'_>) -> Result<Process> {
    let lan = scenario.stock.lab.lan();
    let mut stream = lan.spawn_peer(&["datagrams", PUBLISHED])?;
    stream.line("at ", SOON)?;
    Ok(stream)
}

/// A ban behind a rule that accepts what the kernel knows holds once the kernel forgets the
/// connection.
#[test]
fn forgotten_connection_is_judged_anew() -> Result<()> {
    let stock = Stock::new("forgotten")?;
    let known = "-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN";
    iptables(&stock.host, &format!("-A DOCKER-USER {known}"))?;
    // Docker's own rule ends the chain.
    iptables(&stock.host, "-D DOCKER-USER -j RETURN")?;
    iptables(&stock.host, &format!("-A DOCKER-USER -s {OTHER} -j DROP"))?;
    on_both(&stock, |scenario| {
        let host = scenario.host();
        scenario.mode("app", "follow")?;
        let mut stream = scenario.inward()?;
        scenario.fast()?;
        iptables(host, &format!("-A DOCKER-USER -s {CLIENT} -j DROP"))?;
        refuses(|| scenario.serves()).context("banned")?;
        goes_on(&mut stream).context("known")?;
        let forgotten = host.cmd(&["conntrack", "-D", "-p", "tcp", "-s", CLIENT])?;
        ensure!(!forgotten.is_empty(), "no connection is known");
        stands(&mut stream).context("forgotten")?;
        stream.kill()?;
        iptables(host, &format!("-D DOCKER-USER -s {CLIENT} -j DROP"))?;
        allows(|| scenario.serves()).context("banned no longer")
    })
}
