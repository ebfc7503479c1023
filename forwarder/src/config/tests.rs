// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tests of where a setting comes from, and of what the file may hold.

use std::fs;

use clap::{Args, Command, FromArgMatches};

use super::file::parse;
use super::*;

fn flags(arguments: &[&str]) -> Settings {
    let command = Settings::augment_args(Command::new("forwarder").no_binary_name(true));
    Settings::from_arg_matches(&command.get_matches_from(arguments)).unwrap()
}

/// Writes a separate file for each test.
fn file(name: &str, text: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("forwarder-{name}-{}", std::process::id()));
    fs::write(&path, text).unwrap();
    path
}

fn refused(text: &str) -> String {
    format!("{:#}", parse(text).unwrap_err())
}

/// A flag comes before a variable, a variable before the file and the file before the default.
#[test]
fn flag_precedes_variable_file_and_default() {
    let path = file(
        "order",
        "docker = 'unix:///file'\nxdp = 'native'\nlog = 'warn'\nxdp-tcp = true\n",
    );
    let docker_host = |name: &str| (name == "DOCKER_HOST").then(|| "unix:///host".to_owned());
    let resolve = |arguments: &[&str], host: bool| {
        let variable = |name: &str| docker_host(name).filter(|_| host);
        flags(arguments).resolve(Some(&path), variable).unwrap()
    };
    let by_flag = resolve(&["--docker", "unix:///flag", "--xdp-tcp=no"], true);
    assert_eq!(by_flag.docker, "unix:///flag");
    assert!(
        !by_flag.xdp_tcp,
        "a flag can switch off what the file switches on"
    );
    assert_eq!(resolve(&[], true).docker, "unix:///host");
    let by_file = resolve(&["--log", "debug"], false);
    assert_eq!(by_file.docker, "unix:///file");
    assert_eq!((by_file.xdp, by_file.xdp_tcp), (XdpMode::Native, true));
    assert_eq!(by_file.log, "debug");
    assert_eq!(by_file.state_dir, Config::default().state_dir);
    fs::remove_file(path).unwrap();
}

/// Another process gets every flag and variable, and what is neither is left to the file.
#[test]
fn flags_carry_every_setting() {
    let given = [
        "--docker=unix:///d.sock",
        "--uplink=up0,up1",
        "--state-dir=/s",
        "--bpffs-dir=/b",
        "--xdp=generic",
        "--xdp-tcp",
        "--flows=2048",
        "--flow-quota=7",
        "--flow-rate=8",
        "--tcp-loose=no",
        "--reserved-ports=2000-2999",
        "--mode=adopt",
        "--attach=clsact",
        "--allow-direct-routing",
        "--log=debug",
        "--log-format=json",
    ];
    let all = Settings::augment_args(Command::new("forwarder"));
    assert_eq!(all.get_arguments().count(), given.len());
    let off = ["--reserved-ports=off"];
    for given in [&given[..], &off, &[]] {
        let settings = flags(given);
        let source = Source::new(settings.clone(), Some(Path::new("/f.toml")));
        let mut carried = source.flags().unwrap();
        assert_eq!(carried.pop().unwrap(), "--config=/f.toml");
        let carried: Vec<_> = carried.iter().map(String::as_str).collect();
        assert_eq!(flags(&carried), settings, "{carried:?}");
    }
    assert!(
        Source::new(Settings::default(), None)
            .flags()
            .unwrap()
            .is_empty()
    );
}

/// The quota is a share of the table unless it is set.
#[test]
fn default_quota_is_a_share_of_the_table() {
    let quota = |arguments: &[&str]| {
        let config = flags(arguments).resolve(None, |_| None);
        config.unwrap().flow_quota
    };
    assert_eq!(quota(&[]), Config::default().flow_quota);
    assert_eq!(quota(&["--flows=4096"]), 2048);
    assert_eq!(quota(&["--flows=4096", "--flow-quota=0"]), 0);
    assert_eq!(quota(&["--flow-quota=7"]), 7);
}

#[test]
fn reserved_ports_are_a_range_or_off() {
    let range = |first, last| Ok(PortRange { first, last });
    assert_eq!(port_range("61000-65095"), range(61_000, 65_095));
    assert_eq!(port_range("1024-65535"), range(1024, 65_535));
    assert_eq!(port_range("off"), range(0, 0));
    for wrong in [
        "61000",
        "65095-61000",
        "1023-2000",
        "61000-65536",
        "-",
        "on",
    ] {
        assert!(port_range(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn empty_variable_is_ignored() {
    let config = Settings::default().resolve(None, |_| Some(String::new()));
    assert_eq!(config.unwrap().docker, Config::default().docker);
}

#[test]
fn named_file_must_exist() {
    let missing = Settings::default().resolve(Some(Path::new("/nowhere/f.toml")), |_| None);
    let error = format!("{:#}", missing.unwrap_err());
    assert!(
        error.starts_with("cannot read /nowhere/f.toml: "),
        "{error}"
    );
}

#[test]
fn file_accepts_every_key() {
    let text = "docker = 'unix:///d'\nuplink = ['eth0', 'eth1']\nstate-dir = '/s'\n\
        bpffs-dir = '/b'\nxdp = 'off'\nxdp-tcp = true\nflows = 1024\nattach = 'clsact'\n\
        mode = 'adopt'\n\
        flow-quota = 300\nflow-rate = 50\ntcp-loose = false\n\
        reserved-ports = '40000-50000'\n\
        allow-direct-routing = true\n\
        log = 'trace'\nlog-format = 'json'\n";
    let settings = parse(text).unwrap();
    let same = flags(&[
        "--docker=unix:///d",
        "--uplink=eth0",
        "--uplink=eth1",
        "--state-dir=/s",
        "--bpffs-dir=/b",
        "--xdp=off",
        "--xdp-tcp",
        "--flows=1024",
        "--flow-quota=300",
        "--flow-rate=50",
        "--tcp-loose=no",
        "--reserved-ports=40000-50000",
        "--attach=clsact",
        "--mode=adopt",
        "--allow-direct-routing",
        "--log=trace",
        "--log-format=json",
    ]);
    assert_eq!(settings, same);
    let command = Settings::augment_args(Command::new("forwarder"));
    for argument in command.get_arguments() {
        let key = argument.get_long().unwrap();
        assert!(text.contains(&format!("{key} = ")), "{key} is not tested");
    }
}

#[test]
fn wrong_file_is_refused_with_line_and_key() {
    for (text, parts) in [
        ("\nxpd = 'off'\n", ["line 2: xpd", "unknown field"]),
        (
            "log = 'info'\nxdp = 'fast'\n",
            ["line 2: xdp", "unknown variant `fast`"],
        ),
        (
            "flows = 5\n",
            ["line 1: flows", "5 is not in 1024..=16777216"],
        ),
        (
            "flow-rate = 1000001\n",
            ["line 1: flow-rate", "1000001 is not in 0..=1000000"],
        ),
        ("flows = 'many'\n", ["line 1: flows", "invalid type"]),
        (
            "uplink = [\n 'eth0',\n 3,\n]\n",
            ["line 3: uplink", "expected a string"],
        ),
        ("xdp-tcp = 1\n", ["line 1: xdp-tcp", "expected a boolean"]),
        ("log = 'a'\nlog = 'b'\n", ["line 2: log", "duplicate key"]),
        ("log =\n", ["line 1: log", ""]),
        (
            "reserved-ports = '80-90'\n",
            ["line 1: reserved-ports", "from 1024 on nor off"],
        ),
    ] {
        let error = refused(text);
        assert!(error.starts_with(parts[0]), "{error}");
        assert!(error.contains(parts[1]), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn help_names_the_defaults() {
    let default = Config::default();
    let mut command = Settings::augment_args(Command::new("forwarder").term_width(500));
    let help = command.render_help().to_string();
    for value in [
        default.docker,
        default.state_dir.display().to_string(),
        default.bpffs_dir.display().to_string(),
        "auto".into(),
        default.xdp_tcp.to_string(),
        default.flows.to_string(),
        default.flow_rate.to_string(),
        default.tcp_loose.to_string(),
        format!(
            "{}-{}",
            default.reserved_ports.first, default.reserved_ports.last
        ),
        default.log,
        "text".into(),
    ] {
        let default = format!("[default: {value}]");
        assert!(help.contains(&default), "{default} is not in {help}");
    }
    assert!(
        help.contains(&format!("{FLOWS_MIN} to {FLOWS_MAX}")),
        "{help}"
    );
}

/// What a file changes is told by its keys; flags come before it, and its tables apply at once.
#[test]
fn later_configuration_differs_by_its_keys() {
    let path = file("later", "flows = 2048\n");
    let source = Source::new(flags(&["--xdp=off"]), Some(&path));
    let read = |text: &str| {
        fs::write(&path, text).unwrap();
        source.read()
    };
    let first = source.read().unwrap();
    assert_eq!((first.flows, first.xdp), (2048, XdpMode::Off));
    let same = read("flows = 2048\nxdp = 'native'\n[network.web]\nicc = false\n").unwrap();
    assert_eq!(
        first.differences(&same),
        [""; 0],
        "a flag comes before the file"
    );
    assert!(!same.rules.networks.is_empty());
    let later = read("flows = 4096\nlog-format = 'json'\n").unwrap();
    assert_eq!(
        first.differences(&later),
        ["flows", "flow-quota", "log-format"]
    );
    read("flows = 'many'\n").unwrap_err();
    fs::remove_file(&path).unwrap();
    let without = source.read().unwrap();
    assert_eq!(without.flows, Config::default().flows);
    let all = Config {
        docker: String::new(),
        ..Config::default()
    };
    assert_eq!(Config::default().differences(&all), ["docker"]);
}
