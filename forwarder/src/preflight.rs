// SPDX-License-Identifier: MIT OR Apache-2.0
//! Checks whether this kernel, host and Docker are suitable: findings for `doctor`, and the check
//! that `run` must pass. A `Probe` is what is observed; pure functions judge it.

mod dockerd;
mod finding;
mod firewall;
mod probe;
#[cfg(test)]
mod tests;

use std::path::Path;

use anyhow::{Context, Result, bail};
use forwarder_common::abi::PortRange;
use forwarder_state::others::netfilter::{self, Rule, Scope};
use forwarder_state::others::summary::drops;
use forwarder_state::others::{Others, OurTable, Reach};
use rustix::mount::MountFlags;

use crate::config::{Attach, Config, Mode};
use crate::datapath;
use crate::sys;
use crate::trusted;
pub use finding::{Finding, Group, Level};
use probe::{Bpffs, Docker, Probe};

/// The oldest kernel with everything that is needed.
const OLDEST_KERNEL: (u32, u32) = (6, 1);

/// Examines everything, including the verifier's result for every program. Changes nothing.
#[must_use]
pub fn examine(config: &Config) -> Vec<Finding> {
    examined(config, datapath::refused)
}

/// Examines everything but the programs, which an agent verifies when it starts. Changes nothing.
#[must_use]
pub fn examine_host(config: &Config) -> Vec<Finding> {
    examined(config, Vec::new)
}

fn examined(config: &Config, refused: impl FnOnce() -> Vec<String>) -> Vec<Finding> {
    let mut probe = Probe::take(config);
    if probe.lacks.is_empty() {
        probe.refused = refused();
        probe.refused_tables = sys::netfilter::refused();
    }
    judge(&probe, config)
}

/// Prepares the host for an agent: refuses fatal findings, all at once, logs what could be better,
/// mounts a bpffs if it is missing, and creates the directories (0700).
///
/// # Errors
/// The fatal findings, in one line that says what to do.
pub fn prepare(config: &Config) -> Result<()> {
    let probe = Probe::take(config);
    let findings = judge(&probe, config);
    // The refusal comes first: it is one line and nothing else.
    let fatal: Vec<_> = findings
        .iter()
        .filter(|finding| finding.level == Level::Fatal)
        .map(Finding::line)
        .collect();
    if !fatal.is_empty() {
        bail!(fatal.join("; and "));
    }
    for finding in findings
        .iter()
        .filter(|finding| finding.level == Level::Warn)
    {
        tracing::warn!("{}", finding.line());
    }
    if let Bpffs::Mountable(point) = &probe.bpffs {
        mount(point)?;
    }
    trusted::make(&config.state_dir)?;
    trusted::make(&config.bpffs_dir)
}

fn mount(point: &Path) -> Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("bpf", point, "bpf", flags, None).with_context(|| {
        let point = point.display();
        format!("cannot mount a bpffs on {point} (mount -t bpf bpf {point})")
    })?;
    tracing::info!("mounted a bpffs on {}", point.display());
    Ok(())
}

/// Judges a probe: the most severe causes come first.
fn judge(probe: &Probe, config: &Config) -> Vec<Finding> {
    let mut findings = vec![
        privileges(probe),
        kernel(probe),
        attach(probe, config),
        bpffs(&probe.bpffs),
    ];
    findings.extend(probe.foreign.iter().map(|what| {
        let (what, todo) = what
            .rsplit_once(": ")
            .unwrap_or((what, "make it writable by root only"));
        Finding::fatal(what, todo)
    }));
    findings.push(docker(&probe.docker, config).about(Group::Docker));
    findings.extend(programs(probe));
    findings.extend(comfort(probe));
    findings.push(fragments(probe));
    findings.extend(away(probe));
    findings.extend(sockets(probe));
    findings.extend(reserved_ports(probe, config));
    findings.extend(uplinks(probe, config));
    let mut rules = firewall::judge(&probe.firewall, config.mode);
    rules.extend(others(probe, config.mode));
    if rules.is_empty() {
        rules.push(Finding::ok(
            "no other software has rules that the fast path ignores",
        ));
    }
    let rules = rules.into_iter();
    findings.extend(rules.map(|finding| finding.about(Group::Firewall)));
    findings.push(forwarding(probe));
    findings.push(ipv6(probe));
    let dockerd = dockerd::judge(
        probe.dockerd.as_ref(),
        probe.proxies,
        &config.state_dir,
        firewall::keeps_rules(&probe.firewall, config.mode),
    );
    let dockerd = dockerd.into_iter();
    findings.extend(dockerd.map(|finding| finding.about(Group::Docker)));
    findings
}

/// Returns findings about other software's configuration that may apply to containers. Without
/// Docker, containers are assumed behind bridges with Docker's names and in Docker's default
/// ranges.
fn others(probe: &Probe, mode: Mode) -> Vec<Finding> {
    let bridge = |name: &&String| *name == "docker0" || name.starts_with("br-");
    let reach = Reach {
        bridges: probe.devices.iter().filter(bridge).cloned().collect(),
        ranges: POOLS.map(|(address, len)| (address.into(), len)).into(),
    };
    // The agent adds its rule when it runs.
    let tracks = netfilter::is_used(&probe.firewall);
    // On top of Docker's rules, the kernel decides about the networks that rules match.
    let keeps_rules = firewall::keeps_rules(&probe.firewall, mode);
    let rules = netfilter::foreign(&probe.firewall);
    let (deciding, rules) = if keeps_rules {
        (rules, Vec::new())
    } else {
        (Vec::new(), rules)
    };
    let seen = Others {
        rules,
        drops: drops(&probe.firewall),
        // Then the agent's rule comes first in each chain that drops.
        dockers: keeps_rules,
        ours: Some(OurTable::ALL.into()),
        ..probe.others.clone()
    };
    let name = |index: u32| {
        probe
            .names
            .get(&index)
            .cloned()
            .unwrap_or(format!("#{index}"))
    };
    let lines = seen.lines(&reach, name).into_iter();
    let mut findings: Vec<_> = lines
        .map(|(what, todo)| Finding::warn(what, todo))
        .collect();
    // Docker masquerades also networks whose bridge has a name that its user chose.
    let is_masquerade = |rule: &&Rule| rule.text.ends_with("-j MASQUERADE");
    let deciding = deciding
        .iter()
        .filter(|rule| rule.may_match(&reach) && !is_masquerade(rule));
    findings.extend(deciding.map(|rule| Finding::ok(decides(rule))));
    if tracks && !probe.untracks {
        findings.push(Finding::warn(
            "neither nft nor iptables is installed, so connection tracking and other software's \
             translations apply to packets that the fast path passes to the kernel",
            "install nftables",
        ));
    }
    findings
}

/// Returns what becomes of networks that a rule of others can match.
fn decides(rule: &Rule) -> String {
    let what = match rule.scope {
        Scope::Connection => "the forwarder follows the kernel's decisions about",
        Scope::Packet => "the kernel alone handles",
    };
    format!(
        "{what} networks that a rule of others can match: {}",
        rule.text
    )
}

/// The default address pools of dockerd.
const POOLS: [([u8; 4], u8); 2] = [([172, 16, 0, 0], 12), ([192, 168, 0, 0], 16)];

fn privileges(probe: &Probe) -> Finding {
    let all = "run as root (or with CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_SYS_ADMIN)";
    match probe.lacks.as_slice() {
        [] => Finding::ok("may load BPF programs and change the network"),
        [_, _, _] => Finding::fatal("not root", all),
        some => Finding::fatal(format!("without {}", some.join(" and ")), all),
    }
}

/// Returns findings about programs that the verifier refuses, and pins that this agent cannot take
/// over.
fn programs(probe: &Probe) -> Vec<Finding> {
    let refused = probe.refused.iter().map(|why| {
        Finding::fatal(
            why,
            "use a kernel from 6.1 on, and report this with the kernel's version",
        )
    });
    let conflict = probe.conflict.iter().map(|why| {
        let (what, todo) = why
            .split_once(": ")
            .unwrap_or((why, "run forwarder cleanup"));
        Finding::fatal(what, todo)
    });
    refused.chain(conflict).collect()
}

fn kernel(probe: &Probe) -> Finding {
    let release = &probe.kernel;
    let (major, minor) = OLDEST_KERNEL;
    if version(release).is_none_or(|version| version < OLDEST_KERNEL) {
        return Finding::fatal(
            format!("Linux {release} is too old"),
            format!("{major}.{minor} or later is needed"),
        );
    }
    if !probe.bpf {
        return Finding::fatal(
            format!("Linux {release} is built without BPF"),
            "a kernel with CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_BPF and CONFIG_BPF_JIT is needed",
        );
    }
    Finding::ok(format!("Linux {release} has BPF"))
}

fn attach(probe: &Probe, config: &Config) -> Finding {
    match config.attach {
        Attach::Auto | Attach::Tcx if probe.tcx => {
            Finding::ok("programs are attached by tcx links")
        }
        Attach::Tcx => Finding::fatal(
            format!("Linux {} has no tcx", probe.kernel),
            "use --attach auto, or a kernel from 6.6 on",
        ),
        Attach::Auto | Attach::Clsact => Finding::ok("programs are attached by clsact filters"),
    }
}

fn bpffs(bpffs: &Bpffs) -> Finding {
    match bpffs {
        Bpffs::Mounted(point) => Finding::ok(format!("a bpffs is mounted: {}", point.display())),
        Bpffs::Mountable(point) => Finding::note(
            format!("no bpffs is mounted on {}", point.display()),
            "run mounts one",
        ),
        Bpffs::Private(point) => {
            let point = point.display();
            Finding::fatal(
                format!(
                    "no bpffs is mounted on {point}, and one that the agent mounts would \
                     disappear, with all pins, when the agent's own mount namespace ends"
                ),
                format!(
                    "mount -t bpf bpf {point} in the host's mount namespace (or enter with \
                     nsenter --net instead of ip netns exec)"
                ),
            )
        }
        Bpffs::Absent(point) => {
            let point = point.display();
            Finding::fatal(
                format!("no bpffs is mounted on {point}"),
                format!(
                    "name a directory on one with --bpffs-dir, or make one: mkdir -p {point} && \
                     mount -t bpf bpf {point}"
                ),
            )
        }
    }
}

fn docker(docker: &Docker, config: &Config) -> Finding {
    match docker {
        Docker::Answers(version) => Finding::ok(format!("Docker {version} answers")),
        Docker::Absent(why) => Finding::note(
            format!("no Docker answers at {} ({why})", config.docker),
            "start it, or name its socket with --docker; run waits for it",
        ),
        Docker::Unfit { what, todo } => Finding::fatal(what, todo),
    }
}

fn comfort(probe: &Probe) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !probe.jit {
        findings.push(Finding::warn(
            "BPF programs are interpreted, which is slow",
            "sysctl -w net.core.bpf_jit_enable=1",
        ));
    }
    findings
}

/// Returns the finding about fragmented datagrams.
fn fragments(probe: &Probe) -> Finding {
    if probe.reassembles {
        Finding::ok("the kernel reassembles fragments before they are translated")
    } else {
        Finding::warn(
            "the kernel does not reassemble fragments for programs, so fragments that need \
             translation are dropped",
            "use a kernel from 6.6 on with CONFIG_NETFILTER_BPF_LINK, or datagrams that fit the MTU",
        )
    }
}

/// Returns findings about what Docker makes while no agent runs: our own rules keep it apart.
fn away(probe: &Probe) -> Vec<Finding> {
    const OPEN: &str = "so networks that are made while no agent runs reach each other, and so do \
                        containers that are started then on a network with icc=false";
    if !probe.nft {
        let what = format!("nft is not installed, {OPEN}");
        return vec![Finding::warn(what, "install nftables")];
    }
    let refused = probe.refused_tables.iter().map(|why| {
        Finding::warn(
            format!("the kernel refuses a table of the agent's own rules ({why}), {OPEN}"),
            "use a kernel with nf_tables for the families inet and bridge",
        )
    });
    refused.collect()
}

/// Returns findings about the host's own processes and published ports.
fn sockets(probe: &Probe) -> Vec<Finding> {
    let Some(root) = &probe.cgroup else {
        return vec![Finding::warn(
            "no cgroup v2 hierarchy is mounted, so this host's own processes cannot reach \
             published ports at 127.0.0.1 and its other addresses, and its users may take ports \
             that are reserved for containers",
            "mkdir -p /run/cgroup2 && mount -t cgroup2 none /run/cgroup2, then start the agent again",
        )];
    };
    let mut findings = vec![Finding::ok(format!(
        "this host's own processes reach published ports (cgroup v2: {})",
        root.display()
    ))];
    if probe.ends_sockets == Some(false) {
        findings.push(Finding::warn(
            "the kernel cannot close sockets (CONFIG_INET_DIAG_DESTROY), so this host's own \
             connections to a published port that has gone end only by their timeout",
            "use a kernel that can, or timeouts in clients",
        ));
    }
    if !probe.btf {
        findings.push(Finding::warn(
            "the kernel has no BTF, so this host's own IPv6 sockets cannot reach published ports",
            "use a kernel with CONFIG_DEBUG_INFO_BTF, or 127.0.0.1 instead of ::1",
        ));
    }
    findings
}

/// Returns a finding if others than root can get the ports reserved for containers: the kernel may
/// assign them to sockets that do not bind a port.
fn reserved_ports(probe: &Probe, config: &Config) -> Option<Finding> {
    let PortRange { first, last } = config.reserved_ports;
    let (low, high) = probe.local_ports?;
    let is_undrawn = |port| {
        let mut ranges = probe.undrawn_ports.iter();
        ranges.any(|&(first, last)| (first..=last).contains(&port))
    };
    if first == 0 || (first.max(low)..=last.min(high)).all(is_undrawn) {
        return None;
    }
    Some(Finding::warn(
        format!(
            "the kernel assigns ephemeral ports from {low} to {high} \
             (net.ipv4.ip_local_port_range), so this host's users may get ports that are reserved \
             for containers ({first}-{last})"
        ),
        format!(
            "add {first}-{last} to net.ipv4.ip_local_reserved_ports, or reserve other ports with \
             reserved-ports"
        ),
    ))
}

fn uplinks(probe: &Probe, config: &Config) -> Vec<Finding> {
    let unknown = config
        .uplinks
        .iter()
        .filter(|&name| !probe.devices.contains(name));
    unknown
        .map(|name| {
            Finding::fatal(
                format!("unknown uplink {name}"),
                "no such device in this network namespace (see ip link)",
            )
        })
        .collect()
}

fn forwarding(probe: &Probe) -> Finding {
    if probe.forwarding {
        Finding::ok("the host forwards IPv4")
    } else {
        Finding::warn(
            "the host does not forward IPv4, so packets that the fast path passes to the kernel \
             are lost",
            "sysctl -w net.ipv4.ip_forward=1 (dockerd does this when it starts)",
        )
    }
}

/// Returns the finding about IPv6.
fn ipv6(probe: &Probe) -> Finding {
    if probe.ipv6.is_empty() {
        return Finding::ok(
            "no Docker bridge has IPv6: containers neither send nor receive it; docker-proxy \
             serves ports published on IPv6 addresses, and lists of clients apply to them",
        );
    }
    let bridges = probe.ipv6.iter().map(String::as_str).collect::<Vec<_>>();
    Finding::note(
        format!(
            "IPv6 stays local on {}: containers reach their own network and this host, nothing is \
             translated (no NAT66) or forwarded",
            bridges.join(", ")
        ),
        "docker-proxy serves ports published on IPv6 addresses of this host, and containers see \
         the gateway as client; lists of clients (ingress-allow, ingress-deny) apply to them",
    )
}

/// Returns major and minor version of a release such as `6.1.0-13-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}
