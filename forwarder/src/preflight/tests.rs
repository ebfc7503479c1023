// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tests of the judgement, on constructed hosts.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use forwarder_state::others::Firewall;
use forwarder_state::others::{Others, Ruleset};

use super::dockerd::{Proxy, Setup};
use super::*;
use crate::config::Mode;

/// Returns a host without any problem.
fn good() -> Probe {
    let rules = "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n";
    Probe {
        lacks: Vec::new(),
        refused: Vec::new(),
        conflict: None,
        kernel: "6.12.9+bpo-amd64".into(),
        bpf: true,
        jit: true,
        btf: true,
        tcx: true,
        bpffs: Bpffs::Mounted("/sys/fs/bpf".into()),
        foreign: Vec::new(),
        docker: Docker::Answers("20.10.24".into()),
        cgroup: Some("/sys/fs/cgroup".into()),
        ends_sockets: Some(true),
        local_ports: Some((32_768, 60_999)),
        undrawn_ports: Vec::new(),
        reassembles: true,
        firewall: rules_of("iptables-nft", rules),
        others: Others::default(),
        untracks: true,
        nft: true,
        refused_tables: Vec::new(),
        names: BTreeMap::new(),
        dockerd: Some(setup(Proxy::Shim)),
        proxies: 0,
        forwarding: true,
        ipv6: BTreeSet::new(),
        devices: ["lo".into(), "eth0".into()].into(),
    }
}

fn setup(proxy: Proxy) -> Setup {
    Setup {
        source: "/etc/docker/daemon.json".into(),
        rules: false,
        proxy,
        state_dir: "/run/forwarder".into(),
    }
}

fn rules_of(tool: &'static str, text: &str) -> Firewall {
    Firewall {
        rulesets: vec![Ruleset {
            tool,
            text: text.into(),
        }],
        unread: Vec::new(),
    }
}

/// What keeps apart what is made while no agent runs needs nft, and a kernel that takes the tables.
#[test]
fn missing_tables_of_ours_are_reported() {
    let told = |probe: &Probe| {
        let lines = lines(Level::Warn, probe, &Config::default());
        let about = lines.into_iter();
        about
            .filter(|line| line.contains("while no agent runs"))
            .collect::<Vec<_>>()
    };
    assert_eq!(told(&good()), Vec::<String>::new());
    let without = Probe {
        nft: false,
        ..good()
    };
    let [line] = &told(&without)[..] else {
        panic!("one line");
    };
    assert!(line.ends_with(": install nftables"), "{line}");
    let refused = Probe {
        refused_tables: vec!["nft: no such family".into()],
        ..good()
    };
    assert!(told(&refused)[0].contains("(nft: no such family)"));
}

#[test]
fn ipv6_state_is_reported() {
    let with = Probe {
        ipv6: ["docker0".into()].into(),
        ..good()
    };
    let told = |probe: &Probe, level| {
        let lines = lines(level, probe, &Config::default());
        lines
            .into_iter()
            .filter(|line| line.contains("IPv6"))
            .collect::<Vec<_>>()
    };
    let [line] = &told(&with, Level::Note)[..] else {
        panic!("one line");
    };
    assert!(line.starts_with("IPv6 stays local on docker0: "), "{line}");
    assert!(
        line.contains("no NAT66") && line.contains("docker-proxy"),
        "{line}"
    );
    assert_eq!(told(&good(), Level::Ok).len(), 1);
}

/// Returns the findings of a level, as lines.
fn lines(level: Level, probe: &Probe, config: &Config) -> Vec<String> {
    let findings = judge(probe, config)
        .into_iter()
        .filter(|finding| finding.level == level);
    findings.map(|finding| finding.line()).collect()
}

/// Returns the settings of an agent that replaces Docker's rules.
fn replacing() -> Config {
    Config {
        mode: Mode::Replace,
        ..Config::default()
    }
}

/// Returns the only fatal finding of a host whose agent replaces Docker's rules.
fn fatal(probe: &Probe) -> String {
    let mut all = lines(Level::Fatal, probe, &replacing());
    assert_eq!(all.len(), 1, "{all:?}");
    let line = all.remove(0);
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

/// Returns the only finding of a host that is neither ok nor fatal.
fn warning(probe: &Probe) -> String {
    assert_eq!(lines(Level::Fatal, probe, &Config::default()), [""; 0]);
    let mut all = lines(Level::Warn, probe, &Config::default());
    all.extend(lines(Level::Note, probe, &Config::default()));
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

fn firewalled(tool: &'static str, text: &str) -> Probe {
    Probe {
        firewall: rules_of(tool, text),
        ..good()
    }
}

#[test]
fn good_host_has_no_findings() {
    let findings = judge(&good(), &Config::default());
    assert!(
        findings.iter().all(|finding| finding.level == Level::Ok),
        "{findings:?}"
    );
}

/// A host that cannot run the forwarder is refused, with what to do.
#[test]
fn unfit_host_is_refused_with_a_remedy() {
    let root = fatal(&Probe {
        lacks: vec!["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"],
        ..good()
    });
    assert!(root.starts_with("not root: run as root"), "{root}");
    let perfmon = fatal(&Probe {
        lacks: vec!["CAP_PERFMON"],
        ..good()
    });
    assert!(perfmon.starts_with("without CAP_PERFMON: "), "{perfmon}");
    let refused = fatal(&Probe {
        refused: vec!["the kernel refuses the program outside_in".into()],
        ..good()
    });
    assert!(refused.contains("outside_in: use a kernel"), "{refused}");
    let pinned = fatal(&Probe {
        conflict: Some("pins of another version: run `forwarder cleanup`".into()),
        ..good()
    });
    assert_eq!(pinned, "pins of another version: run `forwarder cleanup`");
    let old = fatal(&Probe {
        kernel: "5.10.0-28-amd64".into(),
        ..good()
    });
    assert_eq!(
        old,
        "Linux 5.10.0-28-amd64 is too old: 6.1 or later is needed"
    );
    let without = fatal(&Probe {
        bpf: false,
        ..good()
    });
    assert!(without.contains("CONFIG_BPF_SYSCALL"), "{without}");
    let absent = fatal(&Probe {
        bpffs: Bpffs::Absent("/x/bpf".into()),
        ..good()
    });
    assert!(
        absent.contains("mkdir -p /x/bpf && mount -t bpf bpf /x/bpf"),
        "{absent}"
    );
    let private = fatal(&Probe {
        bpffs: Bpffs::Private("/sys/fs/bpf".into()),
        ..good()
    });
    assert!(private.contains("nsenter --net"), "{private}");
    let unfit = Docker::Unfit {
        what: "may not open it".into(),
        todo: "run as root".into(),
    };
    assert_eq!(
        fatal(&Probe {
            docker: unfit,
            ..good()
        }),
        "may not open it: run as root"
    );
}

/// What run can do without or can wait for is a warning and no refusal.
#[test]
fn optional_or_late_parts_are_warnings_only() {
    let mountable = warning(&Probe {
        bpffs: Bpffs::Mountable("/sys/fs/bpf".into()),
        ..good()
    });
    assert!(mountable.ends_with("run mounts one"), "{mountable}");
    let docker = warning(&Probe {
        docker: Docker::Absent("no such file".into()),
        ..good()
    });
    assert!(
        docker.contains("unix:///var/run/docker.sock (no such file)"),
        "{docker}"
    );
    let deaf = warning(&Probe {
        forwarding: false,
        ..good()
    });
    assert!(deaf.contains("net.ipv4.ip_forward=1"), "{deaf}");
}

#[test]
fn dockerd_setup_is_explained() {
    let with = |setup: Setup, proxies| {
        warning(&Probe {
            dockerd: Some(setup),
            proxies,
            ..good()
        })
    };
    let own = with(setup(Proxy::Dockers), 2);
    for part in [
        "dockerd starts its own docker-proxy",
        "(/etc/docker/daemon.json)",
        "\"iptables\": false, \"ip6tables\": false, \"userland-proxy-path\": \"/",
        "/forwarder-proxy\"",
        "\"userland-proxy\": false",
    ] {
        assert!(own.contains(part), "{part} is not in {own}");
    }
    let rules = with(
        Setup {
            rules: true,
            ..setup(Proxy::Off)
        },
        0,
    );
    assert!(
        rules.starts_with("dockerd creates iptables rules"),
        "{rules}"
    );
    let nowhere = with(setup(Proxy::Unusable("/x/forwarder-proxy".into())), 0);
    assert!(
        nowhere.contains("cannot start /x/forwarder-proxy"),
        "{nowhere}"
    );
    let old = with(setup(Proxy::Shim), 2);
    assert!(
        old.starts_with("2 processes of Docker's docker-proxy still run"),
        "{old}"
    );
    let elsewhere = with(
        Setup {
            state_dir: "/x".into(),
            ..setup(Proxy::Shim)
        },
        0,
    );
    assert!(
        elsewhere.contains("FORWARDER_STATE_DIR=/run/forwarder in dockerd's environment"),
        "{elsewhere}"
    );
    let none = warning(&Probe {
        dockerd: None,
        ..good()
    });
    assert!(none.contains("userland-proxy-path"), "{none}");
}

#[test]
fn attach_mode_follows_the_kernel() {
    let with = |attach, tcx| {
        let probe = Probe { tcx, ..good() };
        lines(
            Level::Fatal,
            &probe,
            &Config {
                attach,
                ..Config::default()
            },
        )
    };
    assert!(with(Attach::Auto, true).is_empty());
    assert!(with(Attach::Auto, false).is_empty());
    assert!(with(Attach::Clsact, true).is_empty());
    assert!(with(Attach::Tcx, false)[0].contains("no tcx: use --attach auto"));
}

#[test]
fn unknown_uplink_is_named() {
    let uplinks = vec!["eth0".into(), "eth9".into()];
    let config = Config {
        uplinks,
        ..Config::default()
    };
    let fatal = lines(Level::Fatal, &good(), &config);
    assert_eq!(fatal.len(), 1);
    assert!(fatal[0].starts_with("unknown uplink eth9: "), "{fatal:?}");
}

/// The rules of a stock Docker 20.10, as iptables-save prints them.
const STOCK: &str = "\
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER-USER -j RETURN
COMMIT
*nat
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
COMMIT
";

#[test]
fn docker_rules_are_refused_if_replaced() {
    let all = lines(
        Level::Fatal,
        &firewalled("iptables-legacy", STOCK),
        &replacing(),
    );
    assert_eq!(all.len(), 1, "{all:?}");
    assert!(
        all[0].starts_with("dockerd's own rules are in place (iptables-legacy: "),
        "{all:?}"
    );
    assert!(all[0].contains("\"iptables\": false"), "{all:?}");
    assert!(all[0].contains("keep them, with --mode adopt"), "{all:?}");
    let all = lines(
        Level::Warn,
        &firewalled("iptables-legacy", STOCK),
        &replacing(),
    );
    let drops = |line: &String| line.ends_with(": iptables-legacy -t filter -P FORWARD ACCEPT");
    assert!(all.iter().any(drops), "{all:?}");
}

/// Docker's rules are kept unless the settings say otherwise.
#[test]
fn docker_rules_are_kept() {
    let all = lines(
        Level::Ok,
        &firewalled("iptables-legacy", STOCK),
        &Config::default(),
    );
    assert!(
        all.iter()
            .any(|line| line.starts_with("Docker's own rules are kept")),
        "{all:?}"
    );
    // The agent's rule comes before Docker's policy of FORWARD.
    for level in [Level::Fatal, Level::Warn] {
        let all = lines(
            level,
            &firewalled("iptables-legacy", STOCK),
            &Config::default(),
        );
        assert!(all.is_empty(), "{all:?}");
    }
}

#[test]
fn each_kind_of_docker_rule_is_refused() {
    for rule in [
        "*nat\n-A POSTROUTING -s 172.18.0.0/16 ! -o br-0123456789ab -j MASQUERADE",
        "*nat\n-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 1.2.3.4:80",
        "*filter\n-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP",
        "*raw\n-A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP",
    ] {
        let line = fatal(&firewalled("iptables", rule));
        assert!(
            line.starts_with("dockerd's own rules are in place"),
            "{line}"
        );
    }
}

/// Chains without rules that act are only mentioned.
#[test]
fn chains_without_active_rules_are_mentioned() {
    let text = "*nat\n:DOCKER - [0:0]\n-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
                -A DOCKER -i docker0 -j RETURN\n";
    let line = warning(&firewalled("iptables", text));
    assert!(line.starts_with("dockerd's chains remain"), "{line}");
}

#[test]
fn foreign_rules_are_accepted() {
    let text = "*nat\n-A POSTROUTING -s 10.0.0.0/8 -o eth0 -j MASQUERADE\n*filter\n\
                :FORWARD ACCEPT [0:0]\n-A FORWARD -s 198.18.0.9/32 -j DROP\n-A INPUT -j DROP\n";
    assert!(
        lines(
            Level::Fatal,
            &firewalled("iptables", text),
            &Config::default()
        )
        .is_empty()
    );
}

#[test]
fn rule_that_rejects_all_is_a_warning() {
    let text = "*filter\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n";
    let line = warning(&firewalled("iptables", text));
    assert!(
        line.contains("-D FORWARD -j REJECT --reject-with icmp-host-prohibited"),
        "{line}"
    );
}

const NFT: &str = "\
table inet firewall {
	chain input {
		type filter hook input priority filter; policy drop;
	}

	chain passing {
		type filter hook forward priority filter; policy drop;
		ct state established accept
	}
}
";

#[test]
fn nft_rules_are_read() {
    let line = warning(&firewalled("nft", NFT));
    assert!(
        line.ends_with(": nft chain inet firewall passing '{ policy accept; }'"),
        "{line}"
    );
    let unconditional = NFT
        .replace("drop;", "accept;")
        .replace("ct state", "counter packets 1 bytes 2 drop #");
    assert!(
        lines(
            Level::Fatal,
            &firewalled("nft", &unconditional),
            &Config::default()
        )
        .is_empty()
    );
    let unconditional = NFT.replace("policy drop;", "policy accept;").replace(
        "ct state established accept",
        "counter packets 1 bytes 2 drop",
    );
    let line = warning(&firewalled("nft", &unconditional));
    assert!(
        line.starts_with("the rule inet firewall passing counter"),
        "{line}"
    );

    let docker = "table ip docker-bridges {\n\tchain nat-postrouting-out__docker0 {\n\
                  \t\toifname != \"docker0\" ip saddr 172.17.0.0/16 counter packets 0 bytes 0 masquerade\n\t}\n}\n";
    let line = fatal(&firewalled("nft", docker));
    assert!(
        line.contains("docker-bridges nat-postrouting-out__docker0"),
        "{line}"
    );
}

#[test]
fn tables_shown_by_iptables_are_read_once() {
    let nft = "table ip filter {\n\tchain FORWARD {\n\
               \t\ttype filter hook forward priority filter; policy drop;\n\t}\n}\n";
    let both = |iptables: &str| {
        let mut firewall = rules_of("iptables-nft", iptables);
        firewall.rulesets.push(Ruleset {
            tool: "nft",
            text: nft.into(),
        });
        warning(&Probe { firewall, ..good() })
    };
    assert!(both("*filter\n:FORWARD DROP [0:0]\n").contains("iptables-nft -t filter"));
    assert!(both("# Table `filter' is incompatible, use 'nft' tool.\n").contains("nft chain ip"));
}

#[test]
fn unreadable_rules_are_a_finding() {
    let unread = Firewall {
        rulesets: Vec::new(),
        unread: vec!["nft".into()],
    };
    assert!(
        warning(&Probe {
            firewall: unread,
            ..good()
        })
        .ends_with("(nft): run as root")
    );
    let no_program = Probe {
        firewall: Firewall::default(),
        ..good()
    };
    assert!(warning(&no_program).contains("neither iptables nor nft"));
}

#[test]
fn releases_are_read_as_versions() {
    for (release, expected) in [
        ("6.1.0-13-amd64", Some((6, 1))),
        ("6.18.0", Some((6, 18))),
        ("6.6-rc1", Some((6, 6))),
        ("", None),
        ("linux", None),
    ] {
        assert_eq!(version(release), expected, "{release}");
    }
}

#[test]
fn missing_defragmentation_is_reported() {
    let line = warning(&Probe {
        reassembles: false,
        ..good()
    });
    assert!(line.contains("CONFIG_NETFILTER_BPF_LINK"), "{line}");
}

/// What does not work for the host's own processes is reported, with what to do.
#[test]
fn limits_for_host_processes_are_explained() {
    let warned = |probe: Probe| {
        let lines = lines(Level::Warn, &probe, &Config::default());
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines[0].clone()
    };
    let none = warned(Probe {
        cgroup: None,
        ends_sockets: Some(false),
        ..good()
    });
    assert!(
        none.contains("127.0.0.1") && none.contains("mount -t cgroup2"),
        "{none}"
    );
    let slow = warned(Probe {
        ends_sockets: Some(false),
        ..good()
    });
    assert!(slow.contains("CONFIG_INET_DIAG_DESTROY"), "{slow}");
    let blind = warned(Probe {
        btf: false,
        ..good()
    });
    assert!(blind.contains("CONFIG_DEBUG_INFO_BTF"), "{blind}");
    // A process that may not ask does not know.
    let unknown = Probe {
        ends_sockets: None,
        ..good()
    };
    assert!(lines(Level::Warn, &unknown, &Config::default()).is_empty());
}

#[test]
fn overlap_with_ephemeral_ports_is_reported() {
    let warned = |local, undrawn: &[(u16, u16)], config: &Config| {
        let probe = Probe {
            local_ports: Some(local),
            undrawn_ports: undrawn.to_vec(),
            ..good()
        };
        lines(Level::Warn, &probe, config)
    };
    let config = Config::default();
    let [line] = &warned((1024, 65_535), &[], &config)[..] else {
        panic!("one line");
    };
    assert!(
        line.contains("1024 to 65535") && line.contains("add 61000-65095 to net.ipv4"),
        "{line}"
    );
    assert_eq!(warned((32_768, 61_000), &[], &config).len(), 1);
    assert_eq!(
        warned((1024, 65_535), &[(61_000, 65_094)], &config).len(),
        1
    );
    let kept = [(80, 80), (61_000, 63_000), (63_001, 65_095)];
    assert!(warned((1024, 65_535), &kept, &config).is_empty());
    assert!(warned((65_096, 65_535), &[], &config).is_empty());
    let off = Config {
        reserved_ports: PortRange::default(),
        ..Config::default()
    };
    assert!(warned((1024, 65_535), &[], &off).is_empty());
}
