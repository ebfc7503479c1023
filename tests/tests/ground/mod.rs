// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ground that loaded programs are tried on: a network namespace with the model's devices and
//! routes, a bpffs, the programs, and tables that are kept equal to a model's.

mod damage;
#[path = "../../../forwarder-common/tests/model/mod.rs"]
pub(crate) mod model;
pub(crate) mod raw;
pub(crate) mod traffic;
pub(crate) mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::ProgramArray;
use aya::programs::SchedClassifier;
use forwarder::datapath::{Arrival, Datapath, Fate, Setup, remove_all};
use forwarder::diff::Op;
use forwarder::tables::{EndpointKey, FarEnd, Hook, Key6, NetworkRow, Row6, Target, XdpKind};
use harness::{Lab, Netns, Space};
use model::Host;
use model::host::{
    BRIDGE, CLIENT, FAR_VETH, OTHER_BRIDGE, SECOND, UPLINK, VPN, WEB_VETH, far_mac, mac,
};
pub(crate) use raw::Raw;
use rustix::mount::{MountFlags, mount};
use tokio::runtime::Runtime;

/// A device that the agent does not know.
pub(crate) const STRANGER: u32 = 5;

/// Names the tests' own programs, and what runs one of ours on a packet with a hash.
const OBJECT: &str = "FORWARDER_TESTS_BPF_OBJECT";
const CARRIER: &str = "carrier";
const CARRIED: &str = "CARRIED";

/// The namespace and the directories; dropped, they are gone.
pub(crate) struct Ground {
    netns: Netns,
    _lab: Lab,
    folder: PathBuf,
}

impl Ground {
    /// Makes the namespace, its devices and its routes. Nothing that is loaded there needs tcx.
    pub(crate) fn new(label: &str) -> Result<Self> {
        harness::require_root();
        let lab = Lab::new(label)?;
        let netns = lab.netns("ground")?;
        // Named like a lab's folder, so that what a killed test leaves is swept with the rest.
        let pid = std::process::id();
        let folder = std::env::temp_dir().join(format!("fwlab-{pid}-{label}-bpf"));
        fs::create_dir(&folder)?;
        let ground = Self {
            netns,
            _lab: lab,
            folder,
        };
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("bpf", &ground.folder, "bpf", flags, None).context("cannot mount a bpffs")?;
        ground.lay()?;
        Ok(ground)
    }

    fn lay(&self) -> Result<()> {
        let netns = &self.netns;
        for family in ["all", "default"] {
            netns.sysctl(&format!("net/ipv6/conf/{family}/disable_ipv6"), "1")?;
        }
        netns.sysctl("net/ipv4/ip_forward", "1")?;
        for index in [
            UPLINK,
            SECOND,
            VPN,
            STRANGER,
            WEB_VETH,
            WEB_VETH + 1,
            FAR_VETH,
        ] {
            let peer = format!("peer name p{index} index {}", index + 100);
            let address = text(mac(index));
            netns.ip(&format!(
                "link add name d{index} index {index} address {address} type veth {peer}"
            ))?;
            netns.ip(&format!(
                "link set p{index} address {} up",
                text(far_mac(index))
            ))?;
        }
        for index in [BRIDGE, OTHER_BRIDGE] {
            let address = text(mac(index));
            netns.ip(&format!(
                "link add name d{index} index {index} address {address} type bridge"
            ))?;
        }
        for words in [
            "link set d2 up",
            "link set d3 up mtu 1280",
            "link set d4 up mtu 1400",
            "link set d5 up",
            "link set d10 up",
            "link set d11 up",
            "link set d20 up",
            "link set d21 up",
            "link set d22 up",
            "address add 198.18.1.1/24 dev d2",
            "address add 198.18.2.1/24 dev d3",
            "address add 198.18.3.1/24 dev d4",
            "address add 198.18.5.1/24 dev d5",
            "address add 172.17.0.1/16 dev d10",
            "address add 172.18.0.1/16 dev d11",
            "neighbour add 198.18.1.2 lladdr 02:00:00:00:01:02 dev d2 nud permanent",
            "route add default via 198.18.1.2",
            "route add 198.19.2.0/24 via 198.18.2.2",
            "route add 198.19.3.0/24 via 198.18.3.2",
            "route add 198.19.4.0/24 via 198.18.1.2 mtu lock 600",
            "route add unreachable 198.19.5.0/24",
            "route add 198.19.6.0/24 via 198.18.5.2",
            "route add 198.19.7.0/24 via 172.18.0.2",
        ] {
            netns.ip(words)?;
        }
        Ok(())
    }

    /// The namespace.
    pub(crate) fn space(&self) -> &Space {
        &self.netns
    }

    /// The bpffs.
    pub(crate) fn bpffs(&self) -> PathBuf {
        self.folder.join("pins")
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.folder, rustix::mount::UnmountFlags::DETACH);
        let _ = fs::remove_dir(&self.folder);
    }
}

/// Tells a model of the ground's routes.
pub(crate) fn routes(host: &mut Host) {
    use model::frames::ip;
    let zero = ip(0, 0, 0, 0);
    host.route((zero, 0), UPLINK, CLIENT, 1500);
    host.route((ip(198, 19, 2, 0), 24), SECOND, ip(198, 18, 2, 2), 1280);
    host.route((ip(198, 19, 3, 0), 24), VPN, ip(198, 18, 3, 2), 1400);
    host.route((ip(198, 19, 4, 0), 24), UPLINK, CLIENT, 600);
    host.routes.insert(
        (ip(198, 19, 5, 0), 24),
        forwarder_common::tables::Route::Kernel,
    );
    host.route((ip(198, 18, 5, 0), 24), STRANGER, zero, 1500);
    host.route((ip(198, 19, 6, 0), 24), STRANGER, ip(198, 18, 5, 2), 1500);
    host.route(
        (ip(198, 19, 7, 0), 24),
        OTHER_BRIDGE,
        ip(172, 18, 0, 2),
        1500,
    );
    for subnet in [1, 2, 3, 5] {
        for end in [1, 255] {
            let own = (ip(198, 18, subnet, end), 32);
            host.routes
                .insert(own, forwarder_common::tables::Route::Kernel);
        }
    }
}

/// The programs, loaded over tables that [`Loaded::mirror`] keeps equal to a model's. Belongs to
/// the thread that is in the ground's namespace.
pub(crate) struct Loaded {
    /// The datapath.
    pub(crate) datapath: Datapath,
    /// Its maps as bytes.
    pub(crate) raw: Raw,
    carrier: Ebpf,
    runtime: Runtime,
    rows: Vec<Op>,
    folder: PathBuf,
    bpffs: PathBuf,
}

impl Loaded {
    /// Loads the programs, for so many flows. XDP is attached to the uplink, without which the
    /// kernel simulates no XDP there.
    pub(crate) fn open(bpffs: &Path, netns: &Path, flows: u32) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("fwlab-{}-state", std::process::id()));
        fs::create_dir_all(&folder)?;
        let setup = Setup {
            bpffs_dir: bpffs.to_owned(),
            state_dir: folder.clone(),
            flows,
            flow_quota: 0,
            flow_rate: 0,
            tcp_loose: true,
            reserved_ports: forwarder_common::abi::PortRange::default(),
            clsact: false,
        };
        let datapath = Datapath::open(&setup)?;
        let raw = Raw::open(&bpffs.join(format!("v{}/maps", forwarder_common::abi::LAYOUT)))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let mut carrier = Ebpf::load_file(env::var(OBJECT).context(OBJECT)?)?;
        let program = carrier.program_mut(CARRIER).context(CARRIER)?;
        <&mut SchedClassifier>::try_from(program)?.load()?;
        let rows = Vec::new();
        let mut loaded = Self {
            datapath,
            raw,
            carrier,
            runtime,
            rows,
            folder,
            bpffs: bpffs.to_owned(),
        };
        let far_end = FarEnd {
            sandbox_key: netns.display().to_string(),
            pid: std::process::id(),
            index: WEB_VETH + 100,
        };
        loaded.apply(&Op::Attach {
            ifindex: UPLINK,
            hook: Hook::Uplink,
            xdp: Some(XdpKind::Native),
        })?;
        loaded.apply(&Op::PutPort(WEB_VETH, far_end))?;
        Ok(loaded)
    }

    fn apply(&mut self, op: &Op) -> Result<()> {
        let names = BTreeMap::from([(UPLINK, format!("d{UPLINK}"))]);
        let applied = self.runtime.block_on(self.datapath.apply(op, &names));
        applied.with_context(|| format!("cannot apply {op:?}"))
    }

    /// Makes the kernel's tables equal to a model's; settings too, heartbeat included.
    pub(crate) fn mirror(&mut self, host: &Host) -> Result<()> {
        let rows = rows(host);
        for old in std::mem::take(&mut self.rows) {
            if !rows.contains(&old) {
                self.apply(&undo(&old).context("a row that cannot go")?)?;
            }
        }
        for row in &rows {
            self.apply(row)?;
        }
        self.rows = rows;
        self.raw.set_settings(host.settings)
    }

    /// Runs a hook on a frame.
    pub(crate) fn run(
        &mut self,
        hook: model::Hook,
        frame: &[u8],
        arrival: model::Arrival,
    ) -> Result<Fate> {
        let model::Arrival {
            ifindex,
            came_by,
            mark,
            hash,
            segment,
        } = arrival;
        let arrival = Arrival {
            ifindex,
            came_by,
            mark,
            hash,
            segment,
        };
        let hook = place(hook);
        if hash == 0 || hook == Hook::Uplink {
            return self.datapath.simulate(hook, frame, arrival, 1, None);
        }
        let program = self.datapath.program(hook)?;
        let map = self.carrier.map_mut(CARRIED).context(CARRIED)?;
        ProgramArray::try_from(map)?.set(0, &program, 0)?;
        let carrier = self.carrier.program(CARRIER).context(CARRIER)?;
        let carrier = Some(carrier.try_into()?);
        self.datapath.simulate(hook, frame, arrival, 1, carrier)
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        let _ = self.runtime.block_on(remove_all(&self.bpffs, &self.folder));
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The code that a model's outcome stands for: `TC_ACT_*`, or `XDP_*` on an uplink.
pub(crate) fn code(hook: model::Hook, outcome: &model::Outcome) -> i32 {
    use forwarder_common::reason::Path;
    match (
        hook,
        outcome.reason.map(forwarder_common::reason::Reason::path),
    ) {
        _ if matches!(
            outcome.target,
            Some(model::Target::Back(_) | model::Target::Ingress(_))
        ) =>
        {
            7
        }
        (model::Hook::Uplink, Some(_)) => 4,
        (model::Hook::Uplink, None) | (_, Some(Path::Drop)) => 2,
        (_, Some(Path::Fast)) => 7,
        (_, Some(Path::Kernel | Path::Again) | None) => -1,
    }
}

fn place(hook: model::Hook) -> Hook {
    match hook {
        model::Hook::OutsideIn => Hook::OutsideIn,
        model::Hook::OutsideInRaw => Hook::OutsideInRaw,
        model::Hook::OutsideOut => Hook::OutsideOut,
        model::Hook::OutsideOutRaw => Hook::OutsideOutRaw,
        model::Hook::ContainerIn => Hook::ContainerIn,
        model::Hook::ContainerOut => Hook::ContainerOut,
        model::Hook::BridgeIn => Hook::BridgeIn,
        model::Hook::BridgeOut => Hook::BridgeOut,
        model::Hook::RoundOut => Hook::RoundOut,
        model::Hook::Uplink => Hook::Uplink,
    }
}

/// A model's tables, as the operations that make them.
fn rows(host: &Host) -> Vec<Op> {
    let mut rows = Vec::new();
    rows.extend(
        host.devices
            .iter()
            .map(|(&index, &device)| Op::PutDevice(index, device)),
    );
    let floors: BTreeSet<_> = host
        .networks
        .values()
        .map(|network| network.floor)
        .collect();
    for (&bridge, network) in &host.networks {
        let row = NetworkRow {
            flags: network.flags,
            gateway: network.gateway,
            source: network.source,
            policy: network.policy,
        };
        let slot = network.floor;
        let endpoint = host.endpoints[slot as usize];
        rows.push(Op::PutEndpoint {
            key: EndpointKey::Floor(bridge),
            slot,
            endpoint,
        });
        rows.push(Op::PutNetwork {
            bridge,
            row,
            floor: slot,
        });
    }
    for (&address, &slot) in &host.endpoint_slots {
        assert!(!floors.contains(&slot));
        let endpoint = host.endpoints[slot as usize];
        rows.push(Op::PutEndpoint {
            key: EndpointKey::Address(address),
            slot,
            endpoint,
        });
    }
    rows.extend(
        host.subnets
            .iter()
            .map(|(&subnet, &bridge)| Op::PutSubnet(subnet, bridge)),
    );
    rows.extend(
        host.locals
            .iter()
            .map(|&address| Op::PutLocal((address, 32))),
    );
    rows.extend(
        host.sources
            .iter()
            .map(|(&key, &source)| Op::PutSource(key, source)),
    );
    let seen = host.seen_as.iter();
    rows.extend(seen.map(|(&key, &port)| Op::PutSeenAs(key, port)));
    rows.extend(host.trusted.iter().map(|&key| Op::PutTrusted(key)));
    rows.extend(host.links.iter().map(|&key| Op::PutLink(key)));
    rows.extend(
        host.ingress
            .iter()
            .map(|(&key, &word)| Op::PutIngress(key, word)),
    );
    rows.extend(ipv6_rows(host).map(|(key, row)| Op::PutIpv6(key, row)));
    for (&key, published) in &host.published {
        let slot = published.mapping;
        let incarnation = host.mappings[&slot];
        let target = Target {
            addr: published.addr,
            port: published.port,
            policy: published.policy,
            incarnation,
        };
        rows.push(Op::PutPublished { key, slot, target });
    }
    rows
}

fn ipv6_rows(host: &Host) -> impl Iterator<Item = (Key6, Row6)> {
    let locals = host.locals6.iter();
    let locals = locals.map(|&key| (Key6::Local(key), Row6::Index(1)));
    let subnets = host.subnets6.iter();
    let subnets =
        subnets.map(|(&(addr, len), &bridge)| (Key6::Subnet(addr, len), Row6::Index(bridge)));
    let owners = host.owners6.iter();
    let owners = owners.map(|(&key, &veth)| (Key6::Owner(key), Row6::Index(veth)));
    let endpoints = host.endpoints6.iter();
    let endpoints =
        endpoints.map(|(&veth, &endpoint)| (Key6::Endpoint(veth), Row6::Endpoint(endpoint)));
    let clients = host.ingress6.iter();
    let clients = clients.map(|(&(key, len), &word)| (Key6::Ingress(key, len), Row6::Index(word)));
    let sources = host.allowed6.iter();
    let sources = sources.map(|(&(key, len), &word)| (Key6::Allowed(key, len), Row6::Index(word)));
    let ports = host.published6.iter();
    let ports = ports.map(|(&key, &row)| (Key6::Published(key), Row6::Published(row)));
    let own = locals.chain(subnets).chain(owners).chain(endpoints);
    own.chain(clients).chain(sources).chain(ports)
}

fn undo(row: &Op) -> Option<Op> {
    Some(match *row {
        Op::PutDevice(index, _) => Op::DropDevice(index),
        Op::PutEndpoint { key, slot, .. } => Op::DropEndpoint { key, slot },
        Op::PutNetwork { bridge, .. } => Op::DropNetwork(bridge),
        Op::PutSubnet(subnet, _) => Op::DropSubnet(subnet),
        Op::PutLocal(range) => Op::DropLocal(range),
        Op::PutSource(key, _) => Op::DropSource(key),
        Op::PutSeenAs(key, _) => Op::DropSeenAs(key),
        Op::PutTrusted(key) => Op::DropTrusted(key),
        Op::PutLink(key) => Op::DropLink(key),
        Op::PutIngress(key, _) => Op::DropIngress(key),
        Op::PutIpv6(key, _) => Op::DropIpv6(key),
        Op::PutPublished { key, slot, .. } => Op::DropPublished { key, slot },
        _ => return None,
    })
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}
