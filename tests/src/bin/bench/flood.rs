// SPDX-License-Identifier: MIT OR Apache-2.0
//! UDP: a flood of frames out of the client's device, and the counters where they arrive.

use std::env;
use std::io::IoSliceMut;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use aya::Ebpf;
use aya::maps::{Array, PerCpuArray};
use aya::programs::tc::SchedClassifierLinkId;
use aya::programs::{
    Program, ProgramError, SchedClassifier, TcAttachType, TestRun as _, TestRunAttrs,
    TestRunOptions, Xdp,
};
use forwarder_testkit::packet::Packet;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{MsgFlags, MultiHeaders, recvmmsg, setsockopt, sockopt};

use crate::arms::Route;
use crate::cpu::Cpu;

/// The receiver's port, the same in a container and published.
pub(crate) const PORT: u16 = 9000;
/// The first of the sender's ports, and the maximum number of flows with the ports from it on.
const FROM: u16 = 1 << 15;
pub(crate) const MAX_FLOWS: u32 = 1 << 15;
/// The length of the shortest frame on a wire, without its check sequence, and of the payload of a
/// datagram in it.
const LENGTH: usize = 60;
const PAYLOAD: usize = LENGTH - 14 - 20 - 8;
/// The number of words in the generator's parameters.
const WORDS: usize = LENGTH / 4 + 3;

/// The variable with the path of the compiled programs; the default `OBJECT` is relative to this
/// binary's folder.
const VARIABLE: &str = "FORWARDER_TESTS_BPF_OBJECT";
const OBJECT: &str = "../bpf/forwarder-tests-ebpf.o";

/// Frames per batch, and per call: short enough to end soon, long enough that the cost of the call
/// does not matter.
const BATCH: u32 = 64;
const CALL: u32 = 1 << 16;
/// The time for neighbours, a flow, and caches to settle.
const WARM_UP: Duration = Duration::from_millis(300);
/// The time that is counted.
const COUNTED: Duration = Duration::from_secs(1);
/// The number of datagrams that the receiver reads at once, and the bytes that may wait for it.
const DATAGRAMS: usize = 64;
const BUFFER: usize = 4 << 20;
/// How long the receiver pauses when it has read everything.
const INTERVAL: Duration = Duration::from_micros(20);

/// The bench's own programs, loaded.
pub(crate) struct Flood {
    ebpf: Ebpf,
    flows: u32,
}

impl Flood {
    /// Loads the programs. The frames belong in turn to this number of flows, a power of two.
    ///
    /// # Errors
    /// The programs were not built, or the kernel refuses them.
    pub(crate) fn load(flows: u32) -> Result<Self> {
        let path = object()?;
        let mut ebpf = Ebpf::load_file(&path).with_context(|| {
            format!(
                "cannot load {}: run `cargo xtask build`, as root",
                path.display()
            )
        })?;
        program::<Xdp>(&mut ebpf, "generator")?.load()?;
        program::<SchedClassifier>(&mut ebpf, "door")?.load()?;
        Ok(Self { ebpf, flows })
    }

    /// Returns the rate at which a socket of the server receives, in million packets per second.
    ///
    /// # Errors
    /// The flood or the socket fails.
    pub(crate) fn socket(&mut self, route: &Route) -> Result<f64> {
        self.aim(route)?;
        let (count, over) = (AtomicU64::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            let receiver = scope.spawn(|| route.server.enter(|| receive(&count, &over))?);
            let rate = self.run(route, || Ok(count.load(Ordering::Relaxed)));
            over.store(true, Ordering::Relaxed);
            let received = receiver
                .join()
                .map_err(|_| anyhow!("the receiver panicked"))?;
            received.and(rate)
        })
    }

    /// Returns the rate at which packets reach the server's device, in million packets per second.
    ///
    /// # Errors
    /// The flood fails or the counting program cannot be attached.
    pub(crate) fn door(&mut self, route: &Route) -> Result<f64> {
        self.aim(route)?;
        let door = program::<SchedClassifier>(&mut self.ebpf, "door")?;
        let link = route
            .server
            .enter(|| door.attach(&route.door, TcAttachType::Ingress))?
            .with_context(|| format!("cannot attach the counting program to {}", route.door))?;
        let map = self
            .ebpf
            .map("DROPPED")
            .context("the object has no map DROPPED")?;
        let dropped = PerCpuArray::<_, u64>::try_from(map)?;
        let rate = self.run(route, || Ok(dropped.get(&0, 0)?.iter().sum()));
        self.close(link).and(rate)
    }

    fn close(&mut self, link: SchedClassifierLinkId) -> Result<()> {
        Ok(program::<SchedClassifier>(&mut self.ebpf, "door")?.detach(link)?)
    }

    /// Floods a route and returns the rate at which `count` grows, in millions per second.
    fn run(&self, route: &Route, count: impl Fn() -> Result<u64>) -> Result<f64> {
        let entry = &route.entry;
        // Redirected frames enter a veth only if its peer polls, which GRO causes. GRO is on only
        // for this, because TCP is measured on devices with default settings.
        entry.space.ethtool(&entry.name, "gro on")?;
        let over = AtomicBool::new(false);
        let rate = thread::scope(|scope| {
            let sender = scope.spawn(|| route.client.enter(|| self.send(route, &over))?);
            let rate = rate(count);
            over.store(true, Ordering::Relaxed);
            let sent = sender.join().map_err(|_| anyhow!("the sender panicked"))?;
            sent.and(rate)
        });
        entry.space.ethtool(&entry.name, "gro off").and(rate)
    }

    /// Tells the generator what to send, and through which device.
    fn aim(&mut self, route: &Route) -> Result<()> {
        let index = route.client.enter(|| if_nametoindex(route.exit.as_str()))?;
        let index = index.with_context(|| format!("no device {}", route.exit))?;
        // The program's `Load`: the frame, the device, the mask of the flows, the first turn.
        let mut load = [0; WORDS];
        let frame = datagram(route)?;
        for (word, bytes) in load.iter_mut().zip(frame.as_chunks().0) {
            *word = u32::from_ne_bytes(*bytes);
        }
        load[WORDS - 3..].copy_from_slice(&[index, self.flows - 1, 0]);
        let map = self.ebpf.map_mut("LOAD");
        let map = map.context("the object has no map LOAD")?;
        Ok(Array::<_, [u32; WORDS]>::try_from(map)?.set(0, load, 0)?)
    }

    /// Sends until it is told to end. It runs in the client's namespace, because the program uses
    /// device indexes of that namespace.
    fn send(&self, route: &Route, over: &AtomicBool) -> Result<()> {
        Cpu::Work.keep()?;
        let generator = self
            .ebpf
            .program("generator")
            .context("no program generator")?;
        let generator: &Xdp = generator.try_into()?;
        let frame = datagram(route)?;
        while !over.load(Ordering::Relaxed) {
            generator.test_run(TestRunOptions {
                data_in: Some(&frame),
                repeat: CALL,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::new()
            })?;
        }
        Ok(())
    }
}

fn datagram(route: &Route) -> Result<[u8; LENGTH]> {
    let source = SocketAddrV4::new(route.source, FROM);
    let datagram = Packet::udp(
        source,
        SocketAddrV4::new(route.address, PORT),
        &[0; PAYLOAD],
    );
    let [to, from] = route.macs;
    Ok(datagram.frame(to, from).as_slice().try_into()?)
}

/// Returns the rate at which a count grows after the warm-up, in millions per second.
fn rate(count: impl Fn() -> Result<u64>) -> Result<f64> {
    thread::sleep(WARM_UP);
    let (start, before) = (Instant::now(), count()?);
    thread::sleep(COUNTED);
    let (grown, elapsed) = (count()? - before, start.elapsed());
    Ok(grown as f64 / elapsed.as_secs_f64() / 1e6)
}

/// Counts what a socket receives until it is told to end. It runs in the server's namespace. It
/// polls at intervals instead of being woken: waking it would cost the flood more than the path
/// into the socket, which is what is measured.
fn receive(count: &AtomicU64, over: &AtomicBool) -> Result<()> {
    Cpu::Reader.keep()?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
    let mut room = [[0; LENGTH]; DATAGRAMS];
    let mut headers = MultiHeaders::<()>::preallocate(DATAGRAMS, None);
    while !over.load(Ordering::Relaxed) {
        let mut slices = room.each_mut().map(|room| [IoSliceMut::new(room)]);
        let flags = MsgFlags::MSG_DONTWAIT;
        match recvmmsg(socket.as_raw_fd(), &mut headers, &mut slices, flags, None) {
            Ok(received) => {
                count.fetch_add(received.count() as u64, Ordering::Relaxed);
            }
            Err(Errno::EAGAIN) => thread::sleep(INTERVAL),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot receive"),
        }
    }
    Ok(())
}

fn program<'ebpf, P>(ebpf: &'ebpf mut Ebpf, name: &str) -> Result<&'ebpf mut P>
where
    &'ebpf mut P: TryFrom<&'ebpf mut Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name);
    let program = program.with_context(|| format!("the object has no program {name}"))?;
    Ok(program.try_into()?)
}

fn object() -> Result<PathBuf> {
    let default = || {
        let folder = env::current_exe()?;
        let folder = folder.parent().context("this binary lies nowhere")?;
        Ok(folder.join(OBJECT))
    };
    env::var_os(VARIABLE).map_or_else(default, |path| Ok(path.into()))
}
