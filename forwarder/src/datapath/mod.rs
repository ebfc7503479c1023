// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's side of the agent: reads and changes maps and programs. The only module that uses
//! aya.

mod apply;
mod binds;
mod defrag;
mod defrag_loopback;
mod drops;
mod events;
mod families;
mod family_rows;
mod flow_operations;
mod flows;
mod followed;
mod hooks;
mod ipv6;
mod kept;
mod kernel_owned;
mod lease;
mod maps;
mod messages;
mod neighbours;
mod peer_veths;
mod pins;
mod programs;
mod rows;
mod simulate;
mod sockets;
mod view;

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use aya::maps::MapError;
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader};
use forwarder_common::abi::{PortRange, Settings, armed, map_sizes};
use forwarder_common::clock::{Ticks, ticks};
use forwarder_common::reason::Reason;
use forwarder_state::desired_state::{Hook, Observed, SocketHook};
use rustix::io::Errno;

use crate::sys::expedite;
use crate::sys::netns::netns_cookie;
use crate::sys::sock_diag::SockDiag;

pub use binds::Binds;
pub use defrag_loopback::{can_reassemble, make_defrag_loopback};
pub use drops::Drops;
pub use events::{Events, FlowEvent};
pub use flow_operations::FlowOperations;
pub use flows::{Ends, FlowSnapshot};
use hooks::Hooks;
use kept::Kept;

use maps::{Maps, Wire};
use messages::Messages;
use peer_veths::PeerVeths;
use pins::Pins;
use programs::Programs;

pub use maps::MapFill;
pub use simulate::{Arrival, Simulated};
pub use view::View;

/// The BPF object that `cargo xtask build` compiled; empty in a build without it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/forwarder-ebpf.o"));

/// Where and how the datapath is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// A directory on a bpffs.
    pub bpffs_dir: PathBuf,
    /// A directory for state that cannot be pinned.
    pub state_dir: PathBuf,
    /// The maximum number of flows.
    pub flows: u32,
    /// The maximum number of open flows that one container may have created; 0 for no limit.
    pub flow_quota: u32,
    /// The number of flows that one container may create per second; 0 for no limit.
    pub flow_rate: u32,
    /// Whether an unknown TCP connection is picked up in mid-stream.
    pub tcp_loose: bool,
    /// Ports that only root may bind, reserved for the translation of containers' flows.
    pub reserved_ports: PortRange,
    /// Whether to attach by clsact filters instead of tcx links.
    pub clsact: bool,
}

/// The loaded programs and their maps.
pub struct Datapath {
    maps: Maps,
    hooks: Hooks,
    peer_veths: PeerVeths,
    messages: Messages,
    tcp_loose: bool,
}

impl Datapath {
    /// Opens the pinned maps, or creates new ones, which are not armed.
    ///
    /// # Errors
    /// The kernel refuses a map; another layout is pinned; the pinned flow table has another size.
    /// What this call has created stays: see [`take_back`].
    pub fn open(setup: &Setup) -> Result<Self> {
        ensure!(
            !OBJECT.is_empty(),
            "this build has no BPF programs: build it with `cargo xtask build`"
        );
        let pins = Pins::below(&setup.bpffs_dir);
        pins.make()?;
        let dir = pins.maps();
        let kept = Kept::make(&pins)?;
        let mut ebpf = load(&dir, setup.flows, Some(&kept.ring()))?;
        let messages = Messages::of(&mut ebpf)?;
        let mut maps = Maps::open(&dir)?;
        maps.fill(setup.flows)?;
        let settings = maps.settings()?;
        maps.set_settings(Settings {
            flow_quota: setup.flow_quota,
            flow_rate: setup.flow_rate,
            tcp_strict: tcp_strict(setup.tcp_loose, settings.armed),
            reserved_ports: setup.reserved_ports,
            ..settings
        })?;
        let clsact = setup.clsact.then(|| setup.state_dir.join(CLSACT));
        let mut programs = Programs::new(ebpf);
        programs.keep(kept, &dir);
        let hooks = Hooks::new(programs, pins, clsact)?;
        let peer_veths = PeerVeths::remembered_in(setup.state_dir.join(FAR_ENDS));
        Ok(Self {
            maps,
            hooks,
            peer_veths,
            messages,
            tcp_loose: setup.tcp_loose,
        })
    }

    /// Passes programs through the verifier at once, by their names; [`Self::load`] and
    /// [`Self::load_socket`] then return the results. Stops early if the agent is asked to stop.
    pub fn load_together(
        &mut self,
        names: &[&'static str],
        is_stopped: &(dyn Fn() -> bool + Sync),
    ) {
        self.hooks.programs.load_together(names, is_stopped);
    }

    /// Passes a device program through the verifier, once. A program that the kernel has refused is
    /// not loaded again.
    ///
    /// # Errors
    /// The kernel refuses the program.
    pub fn load(&mut self, hook: Hook) -> Result<()> {
        self.hooks.programs.load(hook)
    }

    /// Passes a socket program through the verifier, once.
    ///
    /// # Errors
    /// The kernel refuses the program.
    pub fn load_socket(&mut self, hook: SocketHook) -> Result<()> {
        self.hooks.programs.load_socket(hook)
    }

    /// Replaces the programs of an earlier agent by this build's, which are the same if that agent
    /// was of this build. Its flows and its traffic continue.
    ///
    /// # Errors
    /// The kernel refuses a program. Then the earlier agent's programs stay.
    pub fn adopt(&mut self, name_of: impl Fn(u32) -> Option<String>) -> Result<()> {
        self.hooks.adopt(name_of)?;
        self.hooks.adopt_sockets()
    }

    /// Returns whether the programs enforce their verdicts, and what is behind them
    /// ([`armed`]). Until an agent's first start is complete, they
    /// pass every packet unchanged.
    ///
    /// # Errors
    /// The settings cannot be read.
    pub fn armed(&self) -> Result<u32> {
        Ok(self.maps.settings()?.armed)
    }

    /// Makes all programs enforce their verdicts, by one write.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn arm(&mut self, armed: u32) -> Result<()> {
        let settings = self.maps.settings()?;
        self.maps.set_settings(Settings {
            armed,
            tcp_strict: tcp_strict(self.tcp_loose, armed),
            netns_cookie: netns_cookie()?,
            ..settings
        })
    }

    /// Sets the mode in which XDP programs will run, and removes programs that run in the other
    /// mode.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub fn settle_xdp(&self, generic: bool) -> Result<()> {
        self.hooks.settle_xdp(generic)
    }

    /// Reads what the kernel holds. With `look` it also asks whether the pinned links are still
    /// attached.
    ///
    /// # Errors
    /// The kernel's state cannot be read.
    pub fn observe(&mut self, look: bool) -> Result<Observed> {
        let mut observed = self.maps.observe()?;
        observed.tables.hooks = self.hooks.observe(look)?;
        observed.tables.sockets = self.hooks.observe_sockets()?;
        Ok(observed)
    }

    /// Reads again what the kernel itself removes with a device: the programs on it, as far as their
    /// pins say, and the redirects to it.
    ///
    /// # Errors
    /// The kernel's state cannot be read.
    pub fn observe_devices(&mut self, observed: &mut Observed) -> Result<()> {
        observed.tables.xdp_devmap = self.maps.read_devmap()?;
        observed.tables.hooks = self.hooks.observe(false)?;
        Ok(())
    }

    /// Waits until the kernel has detached programs: it does so some time after [`Self::apply`].
    pub async fn await_detached(&self, links: &[(u32, Hook)]) {
        hooks::taken_off(links).await;
    }

    /// Closes the sockets of this namespace that were redirected to a container whose published
    /// port has gone. Their owners get an error at once and can reconnect. Sockets that connected
    /// to a container's own address are not touched, and none of a network that is left to the
    /// kernel: they reach their container without the forwarder.
    ///
    /// # Errors
    /// A socket could not be closed. A kernel that cannot close sockets is no error: `doctor`
    /// reports it.
    pub fn sever_sockets(&self) -> Result<()> {
        let maps = &self.maps;
        if maps.sockets.keys().next().is_none() {
            return Ok(());
        }
        let kernel = SockDiag::open()?;
        for socket in kernel.connected()? {
            let key = socket.key();
            let Ok(Wire(asked)) = maps.sockets.get(&Wire(key), 0) else {
                continue;
            };
            if maps.is_not_ours(key.peer) || maps.socket_target(&asked) == Some(key.peer) {
                continue;
            }
            match kernel.destroy(&socket) {
                Err(Errno::OPNOTSUPP) => return Ok(()),
                ended => ended.context("cannot close a socket whose published port has gone")?,
            }
        }
        Ok(())
    }

    /// Makes each flow check once whether it may continue, because none was admitted in this
    /// generation.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn ask_flows(&mut self, policy: u32) -> Result<()> {
        self.maps
            .change_settings(|settings| Settings { policy, ..settings })
    }

    /// Returns how often each resource was exhausted, by reason.
    ///
    /// # Errors
    /// The counters cannot be read.
    pub fn exhausted(&self) -> Result<[(Reason, u64); Reason::EXHAUSTED.len()]> {
        let mut counts = Reason::EXHAUSTED.map(|reason| (reason, 0));
        for (reason, count) in &mut counts {
            *count = self.maps.count(*reason)?;
        }
        Ok(counts)
    }

    /// Returns how many live flows each container created, by its address.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn opened(&self) -> Result<Vec<(IpAddr, u32)>> {
        self.maps.opened()
    }

    /// Tells the programs that the agent is alive, and logs their messages.
    pub fn housekeeping(&mut self) -> Result<()> {
        self.messages.flush();
        let settings = self.maps.settings()?;
        self.maps.set_settings(Settings {
            heartbeat: now(),
            unprivileged_port_start: unprivileged_port_start(),
            ..settings
        })?;
        events::tidy(&self.hooks.pins)?;
        drops::tidy(&self.hooks.pins)
    }
}

/// Treats an entry of a map that is already gone as removed.
fn unless_absent(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        removed => removed,
    }
}

/// Returns whether only a SYN opens a TCP flow. With Docker's rules in place a connection in
/// mid-stream is the kernel's, which may know it.
fn tcp_strict(loose: bool, armed: u32) -> u32 {
    u32::from(!loose || armed::keeps_rules(armed))
}

/// Loads the object with the maps that are pinned in `dir`, and creates those that are missing. The
/// programs' messages go to the ring that is pinned at `ring`, or to a new one.
fn load(dir: &Path, flows: u32, ring: Option<&Path>) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    messages::set_up(&mut loader);
    for (map, size) in map_sizes(flows) {
        loader.map_pin_path(map, dir.join(map));
        loader.map_max_entries(map, size);
    }
    if let Some(ring) = ring {
        loader.map_pin_path(messages::RING, ring);
    }
    loader.load(OBJECT).context("the kernel refuses the maps")
}

const CLSACT: &str = "clsact";
const FAR_ENDS: &str = "far-ends";

/// Removes all of the forwarder's state from the kernel: programs, maps, pins, filters, and changes
/// inside containers. Works without an agent, and if nothing is there.
pub async fn remove_all(bpffs_dir: &Path, state_dir: &Path) -> Result<()> {
    crate::sys::netfilter::remove();
    expedite::restore().await;
    hooks::remove_filters(&state_dir.join(CLSACT)).await?;
    pins::remove_all(bpffs_dir)?;
    defrag_loopback::remove().await?;
    peer_veths::restore_all(&state_dir.join(FAR_ENDS)).await
}

/// Removes what an agent created whose first start was not complete, or who attached nothing. Armed
/// programs have what they need and continue.
///
/// # Errors
/// The kernel refuses it.
pub async fn take_back(bpffs_dir: &Path, state_dir: &Path) -> Result<()> {
    let pins = Pins::below(bpffs_dir);
    if pins.other()?.is_some() {
        return Ok(());
    }
    let filters = pins::entries(&state_dir.join(CLSACT))?;
    let attached = !filters.is_empty() || pins.hold_links()?;
    if !attached || !maps::are_armed(&pins.maps()) {
        remove_all(bpffs_dir, state_dir).await?;
    }
    Ok(())
}

/// Checks that the pinned maps can be taken over for this number of flows.
///
/// # Errors
/// Why they cannot, and what to do.
pub fn conflict(bpffs_dir: &Path, flows: u32) -> Result<()> {
    let pins = Pins::below(bpffs_dir);
    pins.check()?;
    match Maps::open(&pins.maps()) {
        Ok(maps) => maps.fits(flows).map(drop),
        // Nothing is pinned, or the pins are not readable for this user.
        Err(_) => Ok(()),
    }
}

/// Returns the verifier's message for each program that it refuses. It uses maps of its own, which
/// are dropped again. Programs on the root cgroup are omitted, because an agent works without them.
#[must_use]
pub fn refused() -> Vec<String> {
    let mut loader = EbpfLoader::new();
    messages::set_up(&mut loader);
    let ebpf = loader.load(OBJECT).context("the kernel refuses the maps");
    let mut programs = match ebpf {
        Ok(ebpf) => Programs::new(ebpf),
        Err(error) => return vec![format!("{error:#}")],
    };
    let mut names = Hook::ALL.map(Hook::program).to_vec();
    names.push(SocketHook::SkLookup.program());
    programs.load_together(&names, &|| false);
    let mut judged: Vec<_> = Hook::ALL.map(|hook| programs.load(hook)).into();
    judged.push(programs.load_socket(SocketHook::SkLookup));
    let refused = judged.into_iter().filter_map(Result::err);
    refused.map(|error| format!("{error:#}")).collect()
}

/// Whether there is any of the forwarder's state to remove from the kernel.
pub fn is_there(bpffs_dir: &Path, state_dir: &Path) -> Result<bool> {
    Ok(bpffs_dir.exists() || state_dir.exists() || defrag_loopback::is_there()?)
}

/// Whether the kernel attaches programs by tcx links (6.6 or later). Otherwise clsact filters are
/// used.
#[must_use]
pub fn has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0))
}

/// Returns the name of the device with this index, if it exists.
#[must_use]
pub fn name_of(index: u32) -> Option<String> {
    hooks::name_of(index)
}

/// Whether a device with this index exists.
#[must_use]
pub fn is_device(index: u32) -> bool {
    hooks::name_of(index).is_some()
}

/// Returns the first port that an unprivileged process may bind; 0 if the kernel does not say, so
/// that only root counts as privileged.
fn unprivileged_port_start() -> u32 {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    text.ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or_default()
}

/// Returns the datapath's coarse monotonic clock, in ticks.
#[must_use]
pub fn now() -> Ticks {
    ticks(coarse())
}

/// Returns the same clock in nanoseconds.
fn coarse() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
