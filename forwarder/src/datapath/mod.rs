//! The kernel's side of the agent: maps and programs, read and changed. The only place that names
//! aya.

mod cgroup;
mod defrag;
mod errands;
mod events;
mod far_ends;
mod hooks;
mod maps;
mod namespace;
mod neighbours;
mod pins;
mod round;
mod simulate;
mod sock_diag;
mod sockets;
mod view;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use aya::maps::lpm_trie::Key;
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader};
use forwarder_common::abi::{
    AllowedKey, Endpoint, IngressKey, Network, PortKey, Published, Settings, SourceKey,
};
use forwarder_common::family::{Be32, V4};
use forwarder_common::reason::Reason;
use forwarder_common::socket;
use forwarder_common::timeouts::{Ticks, ticks};
use rustix::io::Errno;

use crate::diff::Op;
use crate::tables::{EndpointKey, FarEnd, NetworkRow, Observed, Target};
pub use cgroup::cgroup_root;
pub use errands::Errands;
pub use events::{Events, FlowEvent};
use far_ends::FarEnds;
use hooks::Hooks;
pub use maps::FlowSnapshot;
use maps::{Maps, Wire};
pub use namespace::{netns_cookie, netns_cookie_of};
use pins::Pins;
pub use round::{can_reassemble, make_round};
pub use simulate::{Arrival, Fate};
use sock_diag::SockDiag;
pub use sock_diag::can_end_sockets;
pub use view::{MapFill, View};

/// The programs, as `cargo xtask build` made them; empty in a build without them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/forwarder-ebpf.o"));

/// Where and how the datapath is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// A directory on a bpffs.
    pub bpffs_dir: PathBuf,
    /// A directory for what cannot be pinned.
    pub state_dir: PathBuf,
    /// How many flows there may be.
    pub flows: u32,
    /// How many flows one container may have opened at once; 0 is any number.
    pub flow_quota: u32,
    /// How many flows one container may open in a second; 0 is any number.
    pub flow_rate: u32,
    /// Whether a TCP connection is taken up in its middle.
    pub tcp_loose: bool,
    /// Attach by clsact filters instead of tcx links.
    pub clsact: bool,
}

/// The loaded programs and their maps.
pub struct Datapath {
    maps: Maps,
    hooks: Hooks,
    far_ends: FarEnds,
}

impl Datapath {
    /// Loads the programs over the maps that are pinned, or over new ones, and puts them in the
    /// place of an earlier agent's: its flows and its traffic go on.
    ///
    /// # Errors
    /// The kernel refuses a program or a map; another layout is pinned; the flow table that is
    /// pinned has another size. What this call has made new stays: see [`take_back`].
    pub fn open(setup: &Setup, name_of: impl Fn(u32) -> Option<String>) -> Result<Self> {
        ensure!(
            !OBJECT.is_empty(),
            "built without its programs: use `cargo xtask build`"
        );
        let pins = Pins::below(&setup.bpffs_dir);
        pins.make()?;
        let dir = pins.maps();
        let ebpf = load(&dir, setup.flows)?;
        let mut maps = Maps::open(&dir)?;
        maps.fill(setup.flows)?;
        let settings = maps.settings()?;
        maps.set_settings(Settings {
            netns_cookie: netns_cookie()?,
            flow_quota: setup.flow_quota,
            flow_rate: setup.flow_rate,
            tcp_strict: u32::from(!setup.tcp_loose),
            ..settings
        })?;
        let clsact = setup.clsact.then(|| setup.state_dir.join(CLSACT));
        let mut hooks = Hooks::new(ebpf, pins, clsact)?;
        hooks.adopt(name_of)?;
        hooks.adopt_sockets()?;
        let far_ends = FarEnds::remembered_in(setup.state_dir.join(FAR_ENDS));
        Ok(Self {
            maps,
            hooks,
            far_ends,
        })
    }

    /// Says in which mode XDP programs are going to run: none that runs in the other one stays.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub fn settle_xdp(&self, generic: bool) -> Result<()> {
        self.hooks.settle_xdp(generic)
    }

    /// What the kernel holds.
    pub fn observe(&self) -> Result<Observed> {
        let maps = &self.maps;
        let settings = maps.settings()?;
        let mut observed = Observed::default();
        let tables = &mut observed.tables;
        tables.route_generation = settings.route_generation;
        tables.xdp_tcp = settings.xdp_tcp != 0;
        tables.route_mtu = settings.route_mtu;
        tables.policy = settings.policy;
        tables.round = settings.round;
        for entry in &maps.devices {
            let (index, Wire(device)) = entry?;
            tables.devices.insert(index, device);
        }
        for entry in &maps.networks {
            let (bridge, Wire(network)) = entry?;
            let Network {
                flags,
                floor,
                gateway,
                source,
                policy,
            } = network;
            let row = NetworkRow {
                flags,
                gateway,
                source,
                policy,
            };
            tables.networks.insert(bridge, row);
            let key = EndpointKey::Floor(bridge);
            observed.endpoint_slots.insert(key, floor);
            tables
                .endpoints
                .insert(key, maps.endpoints.get(&floor, 0)?.0);
        }
        for entry in &maps.endpoint_slots {
            let (Wire(address), slot) = entry?;
            let key = EndpointKey::Address(address);
            observed.endpoint_slots.insert(key, slot);
            tables
                .endpoints
                .insert(key, maps.endpoints.get(&slot, 0)?.0);
        }
        for entry in &maps.subnets {
            let (key, bridge) = entry?;
            tables
                .subnets
                .insert((key.data().0, key.prefix_len() as u8), bridge);
        }
        for key in maps.locals.keys() {
            tables.locals.insert(key?.0);
        }
        for entry in &maps.sources {
            let (key, Wire(source)) = entry?;
            let Wire(SourceKey { ifindex, next_hop }) = key.data();
            tables
                .sources
                .insert((ifindex, next_hop, (key.prefix_len() - 32) as u8), source);
        }
        for entry in &maps.published {
            let (Wire(key), Wire(published)) = entry?;
            observed.mapping_slots.insert(key, published.mapping);
            let incarnation = maps.mappings.get(&published.mapping, 0)?;
            let Published {
                addr, port, policy, ..
            } = published;
            let target = Target {
                addr,
                port,
                policy,
                incarnation,
            };
            tables.published.insert(key, target);
        }
        for key in maps.trusted.keys() {
            tables.trusted.insert(key?.0);
        }
        for key in maps.links.keys() {
            tables.links.insert(key?.0);
        }
        for entry in &maps.ingress {
            let (key, word) = entry?;
            let Wire(IngressKey { list, client }) = key.data();
            tables
                .ingress
                .insert((list, client, (key.prefix_len() - 32) as u8), word);
        }
        for entry in &maps.allowed {
            let (key, word) = entry?;
            let Wire(AllowedKey { device, source }) = key.data();
            tables
                .allowed
                .insert((device, source, (key.prefix_len() - 32) as u8), word);
        }
        for veth in maps.ports.keys() {
            tables.ports.insert(veth?, nobody());
        }
        tables.hooks = self.hooks.observe()?;
        tables.sockets = self.hooks.observe_sockets()?;
        Ok(observed)
    }

    /// Carries out one operation. `names` are the devices' names by index.
    ///
    /// # Errors
    /// The kernel refuses it. Nothing is half done that a repetition would not complete.
    pub async fn apply(&mut self, op: &Op, names: &BTreeMap<u32, String>) -> Result<()> {
        let maps = &mut self.maps;
        match *op {
            Op::Settings {
                route_generation,
                xdp_tcp,
                route_mtu,
            } => {
                let settings = maps.settings()?;
                let xdp_tcp = u32::from(xdp_tcp);
                maps.set_settings(Settings {
                    route_generation,
                    xdp_tcp,
                    route_mtu,
                    ..settings
                })?;
            }
            Op::PutDevice(index, device) => maps.devices.insert(index, Wire(device), 0)?,
            Op::DropDevice(index) => maps.devices.remove(&index)?,
            Op::PutEndpoint {
                key,
                slot,
                endpoint,
            } => {
                let Wire(before) = maps.endpoints.get(&slot, 0)?;
                maps.endpoints.set(slot, Wire(endpoint), 0)?;
                if let EndpointKey::Address(address) = key {
                    maps.endpoint_slots.insert(Wire(address), slot, 0)?;
                    if before.incarnation != endpoint.incarnation {
                        neighbours::forget(endpoint.bridge, address.octets().into()).await?;
                    }
                }
            }
            Op::DropEndpoint { key, slot } => {
                let Wire(before) = maps.endpoints.get(&slot, 0)?;
                if let EndpointKey::Address(address) = key {
                    maps.endpoint_slots.remove(&Wire(address))?;
                }
                maps.endpoints
                    .set(slot, Wire(Endpoint::<V4>::default()), 0)?;
                if let EndpointKey::Address(address) = key {
                    neighbours::forget(before.bridge, address.octets().into()).await?;
                }
            }
            Op::PutNetwork { bridge, row, floor } => {
                let NetworkRow {
                    flags,
                    gateway,
                    source,
                    policy,
                } = row;
                let network = Network {
                    flags,
                    floor,
                    gateway,
                    source,
                    policy,
                };
                maps.networks.insert(bridge, Wire(network), 0)?;
            }
            Op::DropNetwork(bridge) => maps.networks.remove(&bridge)?,
            Op::PutSubnet(subnet, bridge) => maps.subnets.insert(&subnet_key(subnet), bridge, 0)?,
            Op::DropSubnet(subnet) => maps.subnets.remove(&subnet_key(subnet))?,
            Op::PutLocal(address) => maps.locals.insert(Wire(address), 1, 0)?,
            Op::DropLocal(address) => maps.locals.remove(&Wire(address))?,
            Op::PutSource(key, source) => {
                maps.sources.insert(&source_key(key), Wire(source), 0)?;
            }
            Op::DropSource(key) => maps.sources.remove(&source_key(key))?,
            Op::PutPublished { key, slot, target } => {
                let Target {
                    addr,
                    port,
                    policy,
                    incarnation,
                } = target;
                maps.mappings.set(slot, incarnation, 0)?;
                let published = Published {
                    mapping: slot,
                    policy,
                    addr,
                    port,
                    reserved: 0,
                };
                maps.published.insert(Wire(key), Wire(published), 0)?;
            }
            Op::DropPublished { key, slot } => {
                maps.published.remove(&Wire(key))?;
                maps.mappings.set(slot, 0, 0)?;
            }
            Op::PutTrusted(key) => maps.trusted.insert(Wire(key), 1, 0)?,
            Op::DropTrusted(key) => maps.trusted.remove(&Wire(key))?,
            Op::PutLink(key) => maps.links.insert(Wire(key), 1, 0)?,
            Op::DropLink(key) => maps.links.remove(&Wire(key))?,
            Op::PutIngress(key, word) => maps.ingress.insert(&ingress_key(key), word, 0)?,
            Op::DropIngress(key) => maps.ingress.remove(&ingress_key(key))?,
            Op::PutAllowed(key, word) => maps.allowed.insert(&allowed_key(key), word, 0)?,
            Op::DropAllowed(key) => maps.allowed.remove(&allowed_key(key))?,
            Op::Policy(policy) => {
                let settings = maps.settings()?;
                maps.set_settings(Settings { policy, ..settings })?;
            }
            Op::Round(round) => {
                let settings = maps.settings()?;
                maps.set_settings(Settings { round, ..settings })?;
            }
            Op::PutPort(veth, ref far_end) => {
                self.far_ends.prepare(veth, far_end).await?;
                maps.ports.insert(veth, veth, None, 0)?;
            }
            Op::DropPort(veth) => {
                self.far_ends.forget(veth);
                maps.ports.remove(veth)?;
            }
            Op::Attach { ifindex, hook, xdp } => {
                let device = names.get(&ifindex).context("the device has gone")?;
                self.hooks.attach(ifindex, device, hook, xdp).await?;
            }
            Op::Detach { ifindex, hook } => self.hooks.detach(ifindex, hook)?,
            Op::AttachSocket(hook) => self.hooks.attach_socket(hook)?,
            Op::DetachSocket(hook) => self.hooks.detach_socket(hook)?,
            Op::SeverSockets => self.sever_sockets()?,
        }
        Ok(())
    }

    /// Ends this namespace's sockets that were pointed at a container where no published port leads
    /// any more: their owners are told at once and connect anew. Who connected to a container's
    /// address himself is left alone.
    ///
    /// # Errors
    /// Some socket could not be ended. A kernel that ends none is no error: `doctor` says so.
    pub fn sever_sockets(&self) -> Result<()> {
        let maps = &self.maps;
        if maps.sockets.keys().next().is_none() {
            return Ok(());
        }
        let published =
            |key: &PortKey<V4>| maps.published.get(&Wire(*key), 0).ok().map(|row| row.0);
        let kernel = SockDiag::open()?;
        for socket in kernel.connected()? {
            let key = socket.key();
            let Ok(Wire(asked)) = maps.sockets.get(&Wire(key), 0) else {
                continue;
            };
            // An address that has left the host does not end what was connected by it.
            if socket::target(&asked, |_| true, published) == Some(key.peer) {
                continue;
            }
            match kernel.destroy(&socket) {
                Err(Errno::OPNOTSUPP) => return Ok(()),
                ended => ended.context("cannot end a socket whose published port has gone")?,
            }
        }
        Ok(())
    }

    /// How often something was used up, by reason.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn exhausted(&self) -> Result<[(Reason, u64); Reason::EXHAUSTED.len()]> {
        let mut counts = Reason::EXHAUSTED.map(|reason| (reason, 0));
        for (reason, count) in &mut counts {
            *count = self.maps.count(*reason)?;
        }
        Ok(counts)
    }

    /// How many flows that each container opened live, by its address.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn opened(&self) -> Result<Vec<(Be32, u32)>> {
        self.maps.opened()
    }

    /// Tells the programs that the agent is alive.
    pub fn beat(&mut self) -> Result<()> {
        let settings = self.maps.settings()?;
        self.maps.set_settings(Settings {
            heartbeat: now(),
            ..settings
        })?;
        events::tidy(&self.hooks.pins.maps())
    }
}

/// Loads the object over the maps that are pinned in `dir`; makes those that are not.
fn load(dir: &Path, flows: u32) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    for (map, size) in maps::sizes(flows) {
        loader.map_pin_path(map, dir.join(map));
        if let Some(size) = size {
            loader.map_max_entries(map, size);
        }
    }
    loader.load(OBJECT).context("the kernel refuses the maps")
}

const CLSACT: &str = "clsact";
const FAR_ENDS: &str = "far-ends";

/// Takes everything of ours out of the kernel: programs, maps, pins, filters, and what was changed
/// in containers. Works with the agent dead, and with nothing there.
pub async fn remove_all(bpffs_dir: &Path, state_dir: &Path) -> Result<()> {
    hooks::remove_filters(&state_dir.join(CLSACT))?;
    pins::remove_all(bpffs_dir)?;
    round::remove().await?;
    far_ends::restore_all(&state_dir.join(FAR_ENDS)).await
}

/// Takes back what an agent made that did not come to attach anything. Where programs are attached,
/// they have what they need and go on.
///
/// # Errors
/// The kernel refuses it.
pub async fn take_back(bpffs_dir: &Path, state_dir: &Path) -> Result<()> {
    let filters = pins::entries(&state_dir.join(CLSACT))?;
    if filters.is_empty() && !Pins::below(bpffs_dir).hold_links()? {
        remove_all(bpffs_dir, state_dir).await?;
    }
    Ok(())
}

/// Whether there is anything of ours to take out of the kernel.
pub fn is_there(bpffs_dir: &Path, state_dir: &Path) -> Result<bool> {
    Ok(bpffs_dir.exists() || state_dir.exists() || round::is_there()?)
}

/// Whether the kernel attaches programs by tcx links (6.6); else by clsact filters.
#[must_use]
pub fn has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0))
}

/// The coarse monotonic clock that the datapath counts in.
#[must_use]
pub fn now() -> Ticks {
    ticks(coarse())
}

/// The same in nanoseconds.
fn coarse() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn subnet_key((address, len): (Be32, u8)) -> Key<Wire<Be32>> {
    Key::new(u32::from(len), Wire(address))
}

fn source_key((ifindex, next_hop, len): (u32, Be32, u8)) -> Key<Wire<SourceKey<V4>>> {
    Key::new(32 + u32::from(len), Wire(SourceKey { ifindex, next_hop }))
}

fn ingress_key((list, client, len): (u32, Be32, u8)) -> Key<Wire<IngressKey<V4>>> {
    Key::new(32 + u32::from(len), Wire(IngressKey { list, client }))
}

fn allowed_key((device, source, len): (u32, Be32, u8)) -> Key<Wire<AllowedKey<V4>>> {
    Key::new(32 + u32::from(len), Wire(AllowedKey { device, source }))
}

/// A far end of which only the veth is known.
fn nobody() -> FarEnd {
    FarEnd {
        sandbox_key: String::new(),
        pid: 0,
        index: 0,
    }
}
