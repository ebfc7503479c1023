// SPDX-License-Identifier: MIT OR Apache-2.0
//! Observation of the host, as plain data. Judges nothing and changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forwarder_state::desired::is_named_as_dockers;
use forwarder_state::host_state::Update;
use forwarder_state::others::{Firewall, Others};
use procfs::process::Process;
use rustix::fs::FsWord;
use rustix::thread::CapabilitySet;
use tokio::sync::{Notify, mpsc};
use tokio::time::sleep;
use tracing::subscriber::NoSubscriber;

use super::dockerd::Setup;
use crate::config::Config;
use crate::datapath;
use crate::sys;
use crate::sys::process::named;
use crate::trusted;
use crate::watch;

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS_MAGIC: FsWord = 0xcafe_4a11;
/// How long a daemon that accepts a connection may take to report its version.
const GREETING: Duration = Duration::from_secs(3);

/// What was observed of the host.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    /// Required capabilities that this process lacks.
    pub(super) lacks: Vec<&'static str>,
    /// The verifier's messages about programs that it refuses; empty if it was not asked.
    pub(super) refused: Vec<String>,
    /// Why the pins cannot be taken over.
    pub(super) conflict: Option<String>,
    /// The kernel's release.
    pub(super) kernel: String,
    /// Whether the kernel is built with BPF.
    pub(super) bpf: bool,
    /// Whether the kernel compiles BPF programs (JIT).
    pub(super) jit: bool,
    /// Whether the kernel has BTF.
    pub(super) btf: bool,
    /// Whether the kernel has tcx.
    pub(super) tcx: bool,
    pub(super) bpffs: Bpffs,
    /// Directories of ours that others than root can change.
    pub(super) foreign: Vec<String>,
    pub(super) docker: Docker,
    /// Where cgroup v2 is mounted.
    pub(super) cgroup: Option<PathBuf>,
    /// Whether the kernel closes sockets on request; none if it does not say.
    pub(super) ends_sockets: Option<bool>,
    /// The range of ephemeral ports (`net.ipv4.ip_local_port_range`); none if the kernel does not
    /// say.
    pub(super) local_ports: Option<(u16, u16)>,
    /// The ranges within it that the kernel does not assign (`net.ipv4.ip_local_reserved_ports`).
    pub(super) undrawn_ports: Vec<(u16, u16)>,
    /// Whether the kernel reassembles fragments for programs.
    pub(super) reassembles: bool,
    pub(super) firewall: Firewall,
    /// The configuration of other software.
    pub(super) others: Others,
    /// Whether a program is installed that can add the notrack rule.
    pub(super) untracks: bool,
    /// Whether nft is installed.
    pub(super) nft: bool,
    /// Why the kernel refuses our own tables; empty if it was not asked.
    pub(super) refused_tables: Vec<String>,
    /// Names of devices by index.
    pub(super) names: BTreeMap<u32, String>,
    /// The configuration of dockerd.
    pub(super) dockerd: Option<Setup>,
    /// The number of `docker-proxy` processes for IPv4 ports in our network namespace.
    pub(super) proxies: usize,
    /// `net.ipv4.ip_forward`.
    pub(super) forwarding: bool,
    /// Docker's bridges with IPv6.
    pub(super) ipv6: BTreeSet<String>,
    /// Names of the devices in our network namespace.
    pub(super) devices: BTreeSet<String>,
}

/// The file system of the pins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Bpffs {
    /// A bpffs is mounted.
    Mounted(PathBuf),
    /// There is an empty directory to mount it on.
    Mountable(PathBuf),
    /// There is an empty directory, but in a mount namespace that ends with this process.
    Private(PathBuf),
    /// There is no directory for it, or the directory is not empty.
    Absent(PathBuf),
}

/// Docker's daemon.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Docker {
    /// It answers with this version.
    Answers(String),
    /// It does not answer; it may start later.
    Absent(String),
    /// It can never be used.
    Unfit { what: String, todo: String },
}

impl Probe {
    /// Observes everything.
    pub(super) fn take(config: &Config) -> Self {
        let lists = |path: &str, wanted: &str| {
            read(path)
                .lines()
                .any(|line| line.split_whitespace().any(|word| word == wanted))
        };
        let names = names();
        Self {
            lacks: lacks(),
            refused: Vec::new(),
            conflict: datapath::conflict(&config.bpffs_dir, config.flows)
                .map_or_else(|error| Some(format!("{error:#}")), |()| None),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            bpf: lists("/proc/filesystems", "bpf"),
            jit: read("/proc/sys/net/core/bpf_jit_enable").trim() != "0",
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            tcx: datapath::has_tcx(),
            bpffs: bpffs(&config.bpffs_dir),
            foreign: [&config.state_dir, &config.bpffs_dir]
                .into_iter()
                .filter_map(|dir| trusted::is_there(dir).err())
                .map(|error| format!("{error:#}"))
                .collect(),
            docker: docker(&config.docker),
            cgroup: sys::cgroup::cgroup_root(),
            ends_sockets: sys::sock_diag::can_end_sockets(),
            local_ports: local_ports(&read("/proc/sys/net/ipv4/ip_local_port_range")),
            undrawn_ports: port_list(&read("/proc/sys/net/ipv4/ip_local_reserved_ports")),
            reassembles: datapath::can_reassemble(),
            firewall: sys::firewall::read(),
            others: watch::others::read_kernel(),
            untracks: sys::netfilter::can_untrack(),
            nft: sys::netfilter::has_nft(),
            refused_tables: Vec::new(),
            names: names.clone(),
            dockerd: Setup::take(),
            proxies: proxies(),
            forwarding: read("/proc/sys/net/ipv4/ip_forward").trim() == "1",
            ipv6: with_ipv6(&read("/proc/self/net/if_inet6")),
            devices: names.into_values().collect(),
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Returns the missing capabilities. `CAP_SYS_ADMIN` includes those that were split from it.
fn lacks() -> Vec<&'static str> {
    let needed = [
        ("CAP_BPF", CapabilitySet::BPF | CapabilitySet::SYS_ADMIN),
        (
            "CAP_PERFMON",
            CapabilitySet::PERFMON | CapabilitySet::SYS_ADMIN,
        ),
        ("CAP_NET_ADMIN", CapabilitySet::NET_ADMIN),
    ];
    let own = rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |s| s.effective);
    needed
        .into_iter()
        .filter(|(_, any)| !own.intersects(*any))
        .map(|(name, _)| name)
        .collect()
}

fn bpffs(dir: &Path) -> Bpffs {
    let here = dir
        .ancestors()
        .find(|dir| dir.is_dir())
        .unwrap_or(Path::new("/"));
    if rustix::fs::statfs(here).is_ok_and(|fs| fs.f_type == BPF_FS_MAGIC) {
        return Bpffs::Mounted(here.to_owned());
    }
    let point = dir.parent().unwrap_or(dir).to_owned();
    let empty = fs::read_dir(&point).is_ok_and(|mut entries| entries.next().is_none());
    if !empty {
        Bpffs::Absent(point)
    } else if is_private() {
        Bpffs::Private(point)
    } else {
        Bpffs::Mountable(point)
    }
}

/// Whether our mount namespace is private, as `ip netns exec`, service managers and containers
/// create it: then our parent has another one.
fn is_private() -> bool {
    let namespace = |process: String| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_pid().to_string());
    namespace("self".into()) != parent.and_then(namespace)
}

/// Asks through the source of Docker's updates itself, so that the requirements are in one place.
fn docker(address: &str) -> Docker {
    if let Some(path) = address.strip_prefix("unix://")
        && let Err(error) = UnixStream::connect(path)
        && error.kind() != std::io::ErrorKind::PermissionDenied
    {
        return Docker::Absent(error.to_string());
    }
    // Its messages are for the agent's own log, later.
    let _quiet = tracing::subscriber::set_default(NoSubscriber::new());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(greet(address)),
        Err(error) => Docker::Absent(error.to_string()),
    }
}

async fn greet(address: &str) -> Docker {
    let (updates, mut received) = mpsc::channel(1);
    let renumber = Notify::new();
    tokio::select! {
        ended = watch::docker::watch(address, &renumber, &updates) => match ended {
            Ok(()) => Docker::Absent("no answer".into()),
            Err(error) => {
                let line = format!("{error:#}");
                let (what, todo) = line.split_once(": ").unwrap_or((&line, "choose another one"));
                Docker::Unfit { what: what.into(), todo: todo.into() }
            }
        },
        Some(Update::DockerUp { version }) = received.recv() => Docker::Answers(version),
        () = sleep(GREETING) => Docker::Absent("no answer".into()),
    }
}

fn names() -> BTreeMap<u32, String> {
    let all = nix::net::if_::if_nameindex();
    let all = all.iter().flat_map(|list| list.iter());
    all.map(|device| (device.index(), device.name().to_string_lossy().into_owned()))
        .collect()
}

/// Returns the number of docker-proxy processes for IPv4. For IPv6 they are allowed: our own shim
/// becomes one.
fn proxies() -> usize {
    let is_v4 = |process: &Process| {
        let words = process.cmdline().unwrap_or_default();
        let host = words.iter().position(|word| word == "-host-ip");
        host.and_then(|at| words.get(at + 1))
            .is_none_or(|address| !address.contains(':'))
    };
    named("docker-proxy")
        .iter()
        .filter(|process| is_v4(process))
        .count()
}

/// Parses two numbers.
fn local_ports(text: &str) -> Option<(u16, u16)> {
    let mut numbers = text.split_whitespace().map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Parses a list such as `80,8000-8080`.
fn port_list(text: &str) -> Vec<(u16, u16)> {
    let ranges = text.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some((first.parse().ok()?, last.parse().ok()?))
    });
    ranges.collect()
}

/// Returns Docker's bridges with an IPv6 address that is not link-local: all bridges have a
/// link-local one.
fn with_ipv6(text: &str) -> BTreeSet<String> {
    let rows = text.lines().filter_map(|line| {
        // The fields are the address, then in hexadecimal the device's index, the prefix length,
        // the scope and the flags, then the device's name.
        let mut words = line.split_whitespace().skip(3);
        let (scope, name) = (words.next()?, words.nth(1)?);
        (scope == "00" && is_named_as_dockers(name)).then(|| name.to_owned())
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bridges_with_ipv6_are_read() {
        let text = "\
            fd000017000000000000000000000001 03 40 00 80  docker0\n\
            fe800000000000000000000000000001 03 40 20 80  docker0\n\
            fe80000000000000004217fffe000001 04 40 20 80 br-0123456789ab\n\
            fd000018000000000000000000000001 02 40 00 82     eth0\n";
        assert_eq!(with_ipv6(text), BTreeSet::from(["docker0".into()]));
        assert_eq!(with_ipv6(""), BTreeSet::new());
    }

    #[test]
    fn port_ranges_are_read() {
        assert_eq!(local_ports("32768\t60999\n"), Some((32_768, 60_999)));
        assert_eq!(local_ports(""), None);
        assert_eq!(port_list("80,8000-8080\n"), [(80, 80), (8000, 8080)]);
        assert_eq!(port_list("\n"), []);
    }

    /// A directory with other things in it is no mount point.
    #[test]
    fn nonempty_directory_is_no_mount_point() {
        let dir = std::env::temp_dir().join(format!("forwarder-bpffs-{}", std::process::id()));
        fs::create_dir_all(dir.join("other")).unwrap();
        assert_eq!(bpffs(&dir.join("forwarder")), Bpffs::Absent(dir.clone()));
        let empty = dir.join("other");
        let seen = bpffs(&empty.join("forwarder"));
        assert!(matches!(seen, Bpffs::Mountable(p) | Bpffs::Private(p) if p == empty));
        let nowhere = dir.join("nowhere");
        assert_eq!(bpffs(&nowhere.join("forwarder")), Bpffs::Absent(nowhere));
        fs::remove_dir_all(dir).unwrap();
    }

    /// An address that is no Unix socket is unfit; a socket that is missing may still come.
    #[test]
    fn only_a_unix_socket_fits_as_docker_address() {
        assert!(matches!(
            docker("tcp://198.18.0.1:2375"),
            Docker::Unfit { .. }
        ));
        assert!(matches!(
            docker("unix:///nowhere/docker.sock"),
            Docker::Absent(_)
        ));
    }
}
