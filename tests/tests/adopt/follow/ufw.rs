// SPDX-License-Identifier: MIT OR Apache-2.0
//! ufw in front of Docker's rules, as ufw-docker has it in ufw's `after.rules`
//! (<https://github.com/chaifeng/ufw-docker>).

use anyhow::{Context as _, Result};

use super::scenario::{allows, iptables, load, on_both, refuses, serves};
use super::{CLIENT, goes_on, stands};
use crate::{PUBLISHED, Stock};

/// The chains, and what `ufw route allow proto tcp from 198.18.1.2 to any port 80` adds.
const HEAD: &str = "*filter\n:ufw-user-forward - [0:0]\n:ufw-docker-logging-deny - [0:0]\n\
    :DOCKER-USER - [0:0]\n-A ufw-user-forward -p tcp -s 198.18.1.2 --dport 80 -j ACCEPT\n\
    -A DOCKER-USER -j ufw-user-forward\n";
const PRIVATE: &str = "-A DOCKER-USER -j RETURN -s 10.0.0.0/8\n\
    -A DOCKER-USER -j RETURN -s 172.16.0.0/12\n-A DOCKER-USER -j RETURN -s 192.168.0.0/16\n";
const TAIL: &str = "-A DOCKER-USER -j RETURN\n-A ufw-docker-logging-deny -m limit --limit 3/min \
    --limit-burst 10 -j LOG --log-prefix \"[UFW DOCKER BLOCK] \"\n\
    -A ufw-docker-logging-deny -j DROP\nCOMMIT\n";
const KNOWN: &str = "-A DOCKER-USER -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN\n\
    -A DOCKER-USER -m conntrack --ctstate INVALID -j DROP\n\
    -A DOCKER-USER -i docker0 -o docker0 -j ACCEPT\n";
const RANGES: [&str; 3] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"];

fn denied(what: &str) -> String {
    let rule = |range| format!("-A DOCKER-USER -j ufw-docker-logging-deny {what} -d {range}\n");
    RANGES.map(rule).concat()
}

/// The allowed client is served and fast, others are not served; what ufw allows and denies later
/// holds, for new connections or for all.
fn ufw_docker(label: &str, rules: &str) -> Result<()> {
    let stock = Stock::new(label)?;
    let far = stock.lab.far()?;
    load(&stock.host, "iptables-restore -n", rules)?;
    on_both(&stock, |scenario| {
        let host = scenario.host();
        let far_is_served = || serves(&far, PUBLISHED, "198.19.1.2");
        let is_served = || scenario.serves();
        scenario.mode("app", "follow")?;
        is_served().context("the allowed client")?;
        refuses(far_is_served).context("the other client")?;
        scenario.reaches()?;
        let mut inward = scenario.inward()?;
        scenario.fast().context("inward")?;
        let allow = format!("ufw-user-forward -p tcp -s {CLIENT} --dport 80 -j ACCEPT");
        iptables(host, &format!("-D {allow}"))?;
        refuses(is_served).context("allowed no longer")?;
        goes_on(&mut inward).context("what was allowed when it began")?;
        scenario.fast().context("what was allowed when it began")?;
        iptables(host, &format!("-A {allow}"))?;
        allows(is_served).context("allowed again")?;
        iptables(host, &format!("-I ufw-user-forward -s {CLIENT} -j DROP"))?;
        stands(&mut inward).context("denied")?;
        iptables(host, &format!("-D ufw-user-forward -s {CLIENT} -j DROP"))?;
        goes_on(&mut inward).context("denied no longer")?;
        scenario.fast().context("denied no longer")?;
        inward.kill()?;
        let _outward = scenario.outward()?;
        scenario.fast().context("outward")
    })
}

/// ufw-docker's rules hold, and what they let through is fast.
#[test]
fn ufw_docker_holds() -> Result<()> {
    let denied = denied("-m conntrack --ctstate NEW");
    ufw_docker("ufwdocker", &[HEAD, KNOWN, PRIVATE, &denied, TAIL].concat())
}

/// So do its older rules, which know new connections by their SYN.
#[test]
fn older_ufw_docker_holds() -> Result<()> {
    let names = "-A DOCKER-USER -p udp -m udp --sport 53 --dport 1024:65535 -j RETURN\n";
    let syn = denied("-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN");
    let udp = denied("-p udp -m udp --dport 0:32767");
    ufw_docker("oldufw", &[HEAD, PRIVATE, names, &syn, &udp, TAIL].concat())
}
