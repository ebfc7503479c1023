// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent's configuration: a flag overrides the environment, which overrides the file, which
//! overrides the default.

mod file;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use clap::builder::BoolishValueParser;
use forwarder_common::abi::{PortRange, capacity};
use forwarder_common::conntrack::quota::RATE_MAX;
use forwarder_protocol::place;
use forwarder_state::host_state::PortName;
use forwarder_state::overrides::{ContainerRules, NetworkRules, Overrides, PortRules};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::file::{as_text, read, reserved, within};
use crate::trusted;

/// The file that is read when none is named. It may be missing.
pub const FILE: &str = "/etc/forwarder/forwarder.toml";

/// The maximum number of flows: the limit of a machine's memory and of the kernel's maps.
const FLOWS_MAX: u32 = 16 << 20;
/// The minimum number of flows: with fewer, the pool of unassured flows is too small to be useful.
const FLOWS_MIN: u32 = 1024;

/// The default range reserved for containers: above the range that Linux uses for ephemeral ports
/// (32768 to 60999).
const RESERVED_PORTS: PortRange = PortRange {
    first: 61_000,
    last: 65_095,
};
/// The lowest port that may be reserved: ports below it can be bound by privileged processes only.
const RESERVED_MIN: u16 = 1024;

/// Whether and how XDP runs on uplinks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// Native on physical devices, off on all others
    #[default]
    Auto,
    /// In the driver of every uplink
    Native,
    /// After the socket buffer is allocated: for tests of the logic, not for speed
    Generic,
    /// Nowhere
    Off,
}

/// How the tc programs are attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Attach {
    /// By tcx links where the kernel has them (6.6 and later), else by clsact filters
    #[default]
    Auto,
    /// By tcx links
    Tcx,
    /// By filters of a clsact qdisc
    Clsact,
}

/// What becomes of Docker's own rules of netfilter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// They are kept where they are, else they are replaced
    #[default]
    Auto,
    /// They are kept: the forwarder comes on top of them, and they are the way back
    Adopt,
    /// They are replaced: dockerd makes none
    Replace,
}

/// The form of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines; in the journal with priorities
    #[default]
    Text,
    /// An object for each event
    Json,
}

/// The agent's configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Docker's address, `unix:///PATH`.
    pub docker: String,
    /// Devices on which XDP may run, by name. If empty, these are the devices of the default
    /// routes.
    pub uplinks: Vec<String>,
    /// Directory of the control socket and of state that cannot be pinned.
    pub state_dir: PathBuf,
    /// Directory of the pins, on a bpffs.
    pub bpffs_dir: PathBuf,
    /// Whether and how XDP runs on uplinks.
    pub xdp: XdpMode,
    /// Whether XDP also forwards TCP.
    pub xdp_tcp: bool,
    /// The maximum number of flows.
    pub flows: u32,
    /// The maximum number of open flows that one container may have created; 0 for no limit.
    pub flow_quota: u32,
    /// The number of flows that one container may create per second, which is also its burst; 0 for
    /// no limit.
    pub flow_rate: u32,
    /// Whether an unknown TCP connection is picked up in mid-stream.
    pub tcp_loose: bool,
    /// Ports that only root may bind, reserved for the translation of containers' flows.
    pub reserved_ports: PortRange,
    /// What becomes of Docker's own rules of netfilter.
    pub mode: Mode,
    /// How the tc programs are attached.
    pub attach: Attach,
    /// Whether published ports can also be reached at the containers' own addresses, from
    /// everywhere.
    pub allow_direct_routing: bool,
    /// The file that was read; it may be missing.
    pub file: PathBuf,
    /// The file's overrides for networks and ports. They are read again whenever the file changes.
    pub rules: Overrides,
    /// The log level, or directives of tracing's `EnvFilter`.
    pub log: String,
    /// The form of the log.
    pub log_format: LogFormat,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            docker: "unix:///var/run/docker.sock".into(),
            uplinks: Vec::new(),
            state_dir: place::STATE_DIR.into(),
            bpffs_dir: "/sys/fs/bpf/forwarder".into(),
            xdp: XdpMode::default(),
            xdp_tcp: false,
            flows: capacity::FLOWS,
            flow_quota: capacity::FLOWS / capacity::QUOTA_SHARE,
            flow_rate: capacity::FLOW_RATE,
            tcp_loose: true,
            reserved_ports: RESERVED_PORTS,
            mode: Mode::default(),
            attach: Attach::default(),
            allow_direct_routing: false,
            file: FILE.into(),
            rules: Overrides::default(),
            log: "info".into(),
            log_format: LogFormat::default(),
        }
    }
}

impl Config {
    /// Returns the settings that differ in a configuration that was read later. Only the tables
    /// apply while an agent runs.
    #[must_use]
    pub fn differences(&self, later: &Self) -> Vec<&'static str> {
        macro_rules! differing {
            ($($field:ident $key:literal),+) => {{
                // A new field is named here, or left out on purpose.
                let Self { $($field: _,)+ file: _, rules: _ } = self;
                let all = [$((self.$field != later.$field, $key)),+];
                all.into_iter().filter_map(|(differs, key)| differs.then_some(key)).collect()
            }};
        }
        differing!(
            docker "docker", uplinks "uplink", state_dir "state-dir", bpffs_dir "bpffs-dir",
            xdp "xdp", xdp_tcp "xdp-tcp", flows "flows", flow_quota "flow-quota",
            flow_rate "flow-rate", tcp_loose "tcp-loose", reserved_ports "reserved-ports",
            mode "mode", attach "attach", allow_direct_routing "allow-direct-routing", log "log",
            log_format "log-format"
        )
    }
}

/// Where the configuration comes from, so that it can be read again.
#[derive(Clone, Debug)]
pub struct Source {
    settings: Settings,
    file: PathBuf,
}

impl Source {
    /// Flags and variables, and the file that was named.
    #[must_use]
    pub fn new(settings: Settings, file: Option<&Path>) -> Self {
        Self {
            settings,
            file: file.unwrap_or(Path::new(FILE)).to_owned(),
        }
    }

    /// Returns the file; it may be missing.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Returns the flags that stand for all flags and variables, for another process with the same
    /// file.
    ///
    /// # Errors
    /// A path is no UTF-8.
    pub fn flags(&self) -> Result<Vec<String>> {
        let settings = serde_json::to_value(&self.settings).context("a setting is no text")?;
        let mut flags = Vec::new();
        for (name, value) in settings.as_object().into_iter().flatten() {
            let values = match value {
                Value::Null => continue,
                Value::Array(values) => values.as_slice(),
                one => std::slice::from_ref(one),
            };
            for value in values {
                let text = value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned);
                flags.push(format!("--{name}={text}"));
            }
        }
        // The file that is read when none is named may be missing.
        if self.file != Path::new(FILE) {
            let file = self.file.to_str().context("the file's name is no text")?;
            flags.push(format!("--config={file}"));
        }
        Ok(flags)
    }

    /// Reads the configuration again. A file that no longer exists holds nothing.
    ///
    /// # Errors
    /// As [`Settings::resolve`].
    pub fn read(&self) -> Result<Config> {
        let file = match trusted::read(&self.file)? {
            Some(_) => read(Some(&self.file))?,
            None => Settings::default(),
        };
        let variable = |name: &str| std::env::var(name).ok();
        let settings = self.settings.clone();
        Ok(settings.complete(self.file.clone(), file, variable))
    }
}

/// Every setting: its flag, its variable and its key in the file (the flag without leading dashes).
#[derive(Clone, PartialEq, Eq, Debug, Default, clap::Args, Serialize, Deserialize)]
#[command(next_help_heading = "Settings (also keys of the configuration file)")]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// Docker's address; without it DOCKER_HOST [default: unix:///var/run/docker.sock]
    #[arg(long, global = true, env = "FORWARDER_DOCKER")]
    #[arg(value_name = "ADDRESS", hide_env_values = true)]
    docker: Option<String>,
    /// Device on which XDP may run; repeat for each [default: those of the default routes]
    #[arg(long, global = true, env = "FORWARDER_UPLINK")]
    #[arg(value_name = "IF", hide_env_values = true, value_delimiter = ',')]
    uplink: Option<Vec<String>>,
    /// Directory of the control socket [default: /run/forwarder]
    #[arg(long, global = true, env = place::STATE_DIR_VARIABLE)]
    #[arg(value_name = "DIR", hide_env_values = true)]
    state_dir: Option<PathBuf>,
    /// Directory of the pins, on a bpffs [default: /sys/fs/bpf/forwarder]
    #[arg(long, global = true, env = "FORWARDER_BPFFS_DIR")]
    #[arg(value_name = "DIR", hide_env_values = true)]
    bpffs_dir: Option<PathBuf>,
    /// XDP on uplinks: physical devices only, native, generic, off [default: auto]
    #[arg(long, global = true, env = "FORWARDER_XDP")]
    #[arg(value_enum, hide_env_values = true, hide_possible_values = true)]
    #[arg(value_name = "auto|native|generic|off")]
    xdp: Option<XdpMode>,
    /// Let XDP forward TCP too, which disables the device's GRO [default: false]
    #[arg(long, global = true, env = "FORWARDER_XDP_TCP")]
    #[arg(
        value_name = "BOOL",
        hide_env_values = true,
        hide_possible_values = true
    )]
    #[arg(value_parser = BoolishValueParser::new())]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    xdp_tcp: Option<bool>,
    /// Maximum number of flows, 1024 to 16777216 [default: 262144]
    #[arg(long, global = true, env = "FORWARDER_FLOWS")]
    #[arg(value_name = "N", hide_env_values = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(FLOWS_MIN as i64..=FLOWS_MAX as i64))]
    #[serde(default, deserialize_with = "within::<FLOWS_MIN, FLOWS_MAX, _>")]
    flows: Option<u32>,
    /// Maximum number of open flows that one container created, 0 for no limit [default: half of
    /// --flows]
    #[arg(long, global = true, env = "FORWARDER_FLOW_QUOTA")]
    #[arg(value_name = "N", hide_env_values = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=FLOWS_MAX as i64))]
    #[serde(default, deserialize_with = "within::<0, FLOWS_MAX, _>")]
    flow_quota: Option<u32>,
    /// Number of flows one container may create per second, 0 for no limit [default: 20000]
    #[arg(long, global = true, env = "FORWARDER_FLOW_RATE")]
    #[arg(value_name = "N", hide_env_values = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=RATE_MAX as i64))]
    #[serde(default, deserialize_with = "within::<0, RATE_MAX, _>")]
    flow_rate: Option<u32>,
    /// Pick up TCP connections in mid-stream, as nf_conntrack_tcp_loose does [default: true]
    #[arg(long, global = true, env = "FORWARDER_TCP_LOOSE")]
    #[arg(
        value_name = "BOOL",
        hide_env_values = true,
        hide_possible_values = true
    )]
    #[arg(value_parser = BoolishValueParser::new())]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    tcp_loose: Option<bool>,
    /// Ports of the host that only root binds, reserved for flows of containers, or off [default:
    /// 61000-65095]
    #[arg(long, global = true, env = "FORWARDER_RESERVED_PORTS")]
    #[arg(value_name = "FIRST-LAST", hide_env_values = true)]
    #[arg(value_parser = port_range)]
    #[serde(default, deserialize_with = "reserved", serialize_with = "as_text")]
    reserved_ports: Option<PortRange>,
    /// Keep Docker's own rules where they are, keep them, replace them [default: auto]
    #[arg(long, global = true, env = "FORWARDER_MODE")]
    #[arg(value_enum, hide_env_values = true, hide_possible_values = true)]
    #[arg(value_name = "auto|adopt|replace")]
    mode: Option<Mode>,
    /// Attach by tcx links where the kernel has them, by tcx, by clsact [default: auto]
    #[arg(long, global = true, env = "FORWARDER_ATTACH")]
    #[arg(value_enum, hide_env_values = true, hide_possible_values = true)]
    #[arg(value_name = "auto|tcx|clsact")]
    attach: Option<Attach>,
    /// Also let published ports be reached at the containers' own addresses, from everywhere
    /// [default: false]
    #[arg(long, global = true, env = "FORWARDER_ALLOW_DIRECT_ROUTING")]
    #[arg(
        value_name = "BOOL",
        hide_env_values = true,
        hide_possible_values = true
    )]
    #[arg(value_parser = BoolishValueParser::new())]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    allow_direct_routing: Option<bool>,
    /// Log level: error, warn, info, debug, trace; without it RUST_LOG [default: info]
    #[arg(long, global = true, env = "FORWARDER_LOG")]
    #[arg(value_name = "LEVEL", hide_env_values = true)]
    log: Option<String>,
    /// Form of the log: lines, or JSON [default: text]
    #[arg(long, global = true, env = "FORWARDER_LOG_FORMAT")]
    #[arg(value_enum, hide_env_values = true, hide_possible_values = true)]
    #[arg(value_name = "text|json")]
    log_format: Option<LogFormat>,
    #[arg(skip)]
    #[serde(default, skip_serializing)]
    network: BTreeMap<String, NetworkRules>,
    #[arg(skip)]
    #[serde(default, skip_serializing)]
    port: BTreeMap<PortName, PortRules>,
    #[arg(skip)]
    #[serde(default, skip_serializing)]
    container: BTreeMap<String, ContainerRules>,
}

impl Settings {
    /// Completes flags and variables by the conventional variables, the file and the defaults.
    ///
    /// `variable` reads the environment. `file` must exist, but [`FILE`] may be missing.
    ///
    /// # Errors
    /// The file cannot be read, has an unknown key or a wrong value. The error names file, line and
    /// key.
    pub fn resolve(
        self,
        file: Option<&Path>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Config> {
        let path = file.unwrap_or(Path::new(FILE)).to_owned();
        let file = read(file)?;
        Ok(self.complete(path, file, variable))
    }

    /// Completes flags and variables by what a file holds.
    fn complete(
        self,
        path: PathBuf,
        file: Self,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Config {
        let set = |name| variable(name).filter(|value| !value.is_empty());
        let conventional = Self {
            docker: set("DOCKER_HOST"),
            log: set("RUST_LOG"),
            ..Self::default()
        };
        let Self {
            docker,
            uplink,
            state_dir,
            bpffs_dir,
            xdp,
            xdp_tcp,
            flows,
            flow_quota,
            flow_rate,
            tcp_loose,
            reserved_ports,
            mode,
            attach,
            allow_direct_routing,
            log,
            log_format,
            network,
            port,
            container,
        } = self.or(conventional).or(file);
        let default = Config::default();
        let flows = flows.unwrap_or(default.flows);
        Config {
            docker: docker.unwrap_or(default.docker),
            uplinks: uplink.unwrap_or(default.uplinks),
            state_dir: state_dir.unwrap_or(default.state_dir),
            bpffs_dir: bpffs_dir.unwrap_or(default.bpffs_dir),
            xdp: xdp.unwrap_or(default.xdp),
            xdp_tcp: xdp_tcp.unwrap_or(default.xdp_tcp),
            flows,
            flow_quota: flow_quota.unwrap_or(flows / capacity::QUOTA_SHARE),
            flow_rate: flow_rate.unwrap_or(default.flow_rate),
            tcp_loose: tcp_loose.unwrap_or(default.tcp_loose),
            reserved_ports: reserved_ports.unwrap_or(default.reserved_ports),
            mode: mode.unwrap_or(default.mode),
            attach: attach.unwrap_or(default.attach),
            allow_direct_routing: allow_direct_routing.unwrap_or(default.allow_direct_routing),
            file: path,
            rules: Overrides {
                networks: network,
                ports: port,
                containers: container,
            },
            log: log.unwrap_or(default.log),
            log_format: log_format.unwrap_or(default.log_format),
        }
    }

    /// Takes from `lower` what `self` does not set.
    fn or(self, lower: Self) -> Self {
        Self {
            docker: self.docker.or(lower.docker),
            uplink: self.uplink.or(lower.uplink),
            state_dir: self.state_dir.or(lower.state_dir),
            bpffs_dir: self.bpffs_dir.or(lower.bpffs_dir),
            xdp: self.xdp.or(lower.xdp),
            xdp_tcp: self.xdp_tcp.or(lower.xdp_tcp),
            flows: self.flows.or(lower.flows),
            flow_quota: self.flow_quota.or(lower.flow_quota),
            flow_rate: self.flow_rate.or(lower.flow_rate),
            tcp_loose: self.tcp_loose.or(lower.tcp_loose),
            reserved_ports: self.reserved_ports.or(lower.reserved_ports),
            mode: self.mode.or(lower.mode),
            attach: self.attach.or(lower.attach),
            allow_direct_routing: self.allow_direct_routing.or(lower.allow_direct_routing),
            log: self.log.or(lower.log),
            log_format: self.log_format.or(lower.log_format),
            // Only the file has these tables.
            network: lower.network,
            port: lower.port,
            container: lower.container,
        }
    }
}

/// Parses `FIRST-LAST`, or `off`.
fn port_range(text: &str) -> Result<PortRange, String> {
    if matches!(text, "off" | "") {
        return Ok(PortRange::default());
    }
    let ends = text.split_once('-');
    let number = |end: &str| end.trim().parse::<u16>().ok();
    ends.and_then(|(first, last)| Some((number(first)?, number(last)?)))
        .filter(|(first, last)| (RESERVED_MIN..=*last).contains(first))
        .map(|(first, last)| PortRange { first, last })
        .ok_or_else(|| format!("neither a range of ports from {RESERVED_MIN} on nor off"))
}
