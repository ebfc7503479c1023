// SPDX-License-Identifier: MIT OR Apache-2.0
//! A capture of everything that a device sent and received until the moment of a query.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, spawn};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use forwarder_testkit::packet::Packet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::netns::Space;
use crate::packet::PacketSocket;
use crate::process::succeed;

/// The interval at which the reader checks whether the capture was dropped.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};
/// The number of frames printed at the end.
const SHOWN: usize = 30;
/// Link types of the pcap format: Ethernet, and packets that begin with their IP header.
const ETHERNET: u32 = 1;
const RAW: u32 = 101;

/// One frame, link header included, as it passed the device. A frame that this machine created may
/// still lack its checksum (`ethtool` tx offload) and be larger than the MTU (segmentation).
#[derive(Debug, Clone)]
pub struct Frame {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Whether the device's own namespace sent it.
    pub outgoing: bool,
    /// When it was read.
    pub at: SystemTime,
}

impl Frame {
    /// Returns source and destination, if it is IPv4 in Ethernet without a VLAN tag.
    #[must_use]
    pub fn ipv4(&self) -> Option<(Ipv4Addr, Ipv4Addr)> {
        let ethertype = self.bytes.get(12..14)?;
        let address = |at: usize| {
            let bytes: [u8; 4] = self.bytes.get(at..at + 4)?.try_into().ok()?;
            Some(Ipv4Addr::from(bytes))
        };
        if ethertype == [0x08, 0x00] {
            Some((address(26)?, address(30)?))
        } else {
            None
        }
    }

    /// Whether the frame contains these bytes; they must not be empty.
    #[must_use]
    pub fn carries(&self, bytes: &[u8]) -> bool {
        self.bytes.windows(bytes.len()).any(|part| part == bytes)
    }
}

/// A capture on one device, until it is dropped. Its first frames are printed then: a test's output
/// is shown only if the test fails.
pub struct Capture {
    what: String,
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
    link_type: u32,
    scratch: PathBuf,
}

struct Shared {
    taken: Mutex<Taken>,
    over: AtomicBool,
}

struct Taken {
    socket: PacketSocket,
    frames: Vec<Frame>,
}

impl Shared {
    /// Locks the frames after reading everything that waits in the socket.
    fn drained(&self) -> Result<MutexGuard<'_, Taken>> {
        let mut guard = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let Taken { socket, frames } = &mut *guard;
        while let Some((bytes, outgoing)) = socket.receive()? {
            frames.push(Frame {
                bytes: bytes.to_vec(),
                outgoing,
                at: SystemTime::now(),
            });
        }
        Ok(guard)
    }
}

impl Capture {
    pub(crate) fn start(space: &Space, device: &str) -> Result<Self> {
        let socket = space.enter(|| PacketSocket::open(device))??;
        let what = format!("{device} of {}", space.name());
        let link_type = if socket.has_link_header() {
            ETHERNET
        } else {
            RAW
        };
        let wake = rustix::io::dup(&socket)?;
        let taken = Mutex::new(Taken {
            socket,
            frames: Vec::new(),
        });
        let shared = Arc::new(Shared {
            taken,
            over: AtomicBool::new(false),
        });
        let reader = Arc::clone(&shared);
        let reader = spawn(move || {
            while !reader.over.load(Ordering::Relaxed) {
                let mut ready = [PollFd::new(&wake, PollFlags::IN)];
                // If the device has gone, reading fails here and in frames(), which reports it.
                if poll(&mut ready, Some(&LOOK)).is_err() || reader.drained().is_err() {
                    return;
                }
            }
        });
        let (reader, scratch) = (Some(reader), space.scratch().to_owned());
        Ok(Self {
            what,
            shared,
            reader,
            link_type,
            scratch,
        })
    }

    /// Returns all frames until now, including everything that passed the device before the call.
    ///
    /// # Errors
    /// The device has gone.
    pub fn frames(&self) -> Result<Vec<Frame>> {
        let taken = self
            .shared
            .drained()
            .with_context(|| format!("capture on {}", self.what))?;
        Ok(taken.frames.clone())
    }

    /// Returns how many frames until now satisfy the closure.
    ///
    /// # Errors
    /// The device has gone.
    pub fn count(&self, wanted: impl Fn(&Frame) -> bool) -> Result<usize> {
        Ok(self.frames()?.iter().filter(|frame| wanted(frame)).count())
    }

    /// Returns `tcpdump`'s lines (numeric, with link headers) of the frames until now that match a
    /// filter in its language, as in `"src net 172.16.0.0/12"`; all frames with an empty filter.
    ///
    /// # Errors
    /// tcpdump is not installed or does not understand the filter.
    pub fn lines(&self, filter: &str) -> Result<Vec<String>> {
        self.dump(&self.frames()?, filter)
    }

    /// Returns the IPv4 packet of a frame that was captured here.
    pub(crate) fn packet(&self, frame: &Frame) -> Option<Packet> {
        if self.link_type == ETHERNET {
            Packet::in_frame(&frame.bytes)
        } else {
            Packet::read(&frame.bytes)
        }
    }

    fn dump(&self, frames: &[Frame], filter: &str) -> Result<Vec<String>> {
        let file = self.write_pcap(frames)?;
        let mut command = Command::new("tcpdump");
        let text = succeed(command.args(["-nnevv", "-tt", "-r"]).arg(&file).arg(filter));
        std::fs::remove_file(&file)?;
        // With -v a packet's line continues in indented lines.
        Ok(text?
            .replace("\n    ", " ")
            .lines()
            .map(str::to_owned)
            .collect())
    }

    fn write_pcap(&self, frames: &[Frame]) -> Result<PathBuf> {
        static FILES: AtomicU32 = AtomicU32::new(0);
        let number = FILES.fetch_add(1, Ordering::Relaxed);
        let path = self.scratch.join(format!("capture-{number}.pcap"));
        std::fs::write(&path, pcap(frames, self.link_type)?)?;
        Ok(path)
    }

    fn show(&self) -> Result<()> {
        let mut frames = self.frames()?;
        eprintln!("captured on {}: {} frames", self.what, frames.len());
        frames.truncate(SHOWN);
        for line in self.dump(&frames, "")? {
            eprintln!("  | {line}");
        }
        Ok(())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if let Err(error) = self.show() {
            eprintln!("the capture on {} is lost: {error:#}", self.what);
        }
        self.shared.over.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            // A reader that panicked has already printed its message.
            let _ = reader.join();
        }
    }
}

/// Writes the frames in the classic pcap format, microseconds, little endian.
fn pcap(frames: &[Frame], link_type: u32) -> Result<Vec<u8>> {
    let mut file = Vec::new();
    let snap_length = 0x4_0000_u32;
    for word in [0xa1b2_c3d4, 0x0004_0002, 0, 0, snap_length, link_type] {
        file.extend(u32::to_le_bytes(word));
    }
    for frame in frames {
        let at = frame.at.duration_since(UNIX_EPOCH)?;
        let length = u32::try_from(frame.bytes.len())?;
        let seconds = u32::try_from(at.as_secs())?;
        for word in [seconds, at.subsec_micros(), length, length] {
            file.extend(u32::to_le_bytes(word));
        }
        file.extend(&frame.bytes);
    }
    Ok(file)
}
