// SPDX-License-Identifier: MIT OR Apache-2.0
//! Switching on `nf_defrag_ipv4`: a netfilter program that accepts every packet, and a link that
//! requests whole datagrams (`BPF_F_NETFILTER_IP_DEFRAG`). It uses bpf(2) directly, because aya
//! does not support such programs.
#![expect(unsafe_code, reason = "the bpf system call takes pointers")]

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::libc;

/// Commands of bpf(2).
const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
const LINK_CREATE: libc::c_long = 28;
/// `BPF_PROG_TYPE_NETFILTER` and its attach type `BPF_NETFILTER`.
const NETFILTER: u32 = 32;
const AT_NETFILTER: u32 = 45;
const IPV4: u32 = 2;
const PRE_ROUTING: u32 = 0;
/// `BPF_F_NETFILTER_IP_DEFRAG`.
const WHOLE: u32 = 1;
/// The priorities to try: after defragmentation itself (-400), as the kernel requires of a program
/// that requests whole datagrams. Each program needs a priority of its own.
const PRIORITIES: std::ops::Range<i32> = -399..-383;

/// `return NF_ACCEPT`: `r0 = 1`, `exit`.
const PROGRAM: [u64; 2] = [0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];

/// The part of `union bpf_attr` that loading a program needs.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instructions: u32,
    program: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    place: u32,
}

/// The part of `union bpf_attr` that creating a link needs.
#[repr(C)]
#[derive(Default)]
struct Link {
    program: u32,
    target: u32,
    place: u32,
    flags: u32,
    family: u32,
    hook: u32,
    priority: i32,
    wants: u32,
}

/// The part of `union bpf_attr` that pinning an object needs.
#[repr(C)]
#[derive(Default)]
struct Pin {
    path: u64,
    object: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<i32> {
    // SAFETY: the attributes are plain integers of the stated length, and their pointers outlive
    // the call; the kernel does not write through any of them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    i32::try_from(result)
        .ok()
        .filter(|result| *result >= 0)
        .ok_or_else(io::Error::last_os_error)
}

fn owned(result: io::Result<i32>) -> io::Result<OwnedFd> {
    // SAFETY: the command created this descriptor for us.
    result.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Loads the program that accepts every packet.
fn load() -> Result<OwnedFd> {
    owned(bpf(
        PROG_LOAD,
        &Load {
            kind: NETFILTER,
            instructions: PROGRAM.len() as u32,
            program: PROGRAM.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            name: *b"reassemble\0\0\0\0\0\0",
            place: AT_NETFILTER,
            ..Load::default()
        },
    ))
    .context(
        "the kernel has no netfilter programs that request defragmentation (Linux 6.6 or \
        later is needed)",
    )
}

/// Whether the kernel supports such programs. Changes nothing.
pub(super) fn is_possible() -> bool {
    load().is_ok()
}

/// Switches defragmentation on in our network namespace, and pins the link. Does nothing if it is
/// already pinned.
///
/// # Errors
/// The kernel has no such programs (before 6.6, or built without them).
pub(super) fn switch_on(pin: &Path) -> Result<()> {
    let program = load()?;
    let pinned = pin.exists();
    for priority in PRIORITIES {
        let link = owned(bpf(
            LINK_CREATE,
            &Link {
                program: program.as_raw_fd() as u32,
                place: AT_NETFILTER,
                family: IPV4,
                hook: PRE_ROUTING,
                priority,
                wants: WHOLE,
                ..Link::default()
            },
        ));
        match link {
            Ok(link) => return keep(&link, pin, pinned),
            // The link of an earlier agent of ours.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && pinned => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => {
                return Err(error)
                    .context("the kernel refuses to reassemble fragments for programs");
            }
        }
    }
    bail!("other programs use every netfilter priority that is possible after defragmentation");
}

/// Pins a link, in place of a link whose network namespace has gone.
fn keep(link: &OwnedFd, pin: &Path, pinned: bool) -> Result<()> {
    if pinned {
        std::fs::remove_file(pin)?;
    }
    let path = CString::new(pin.as_os_str().as_bytes())?;
    bpf(
        OBJ_PIN,
        &Pin {
            path: path.as_ptr() as u64,
            object: link.as_raw_fd() as u32,
            flags: 0,
        },
    )
    .with_context(|| format!("cannot pin {}", pin.display()))?;
    Ok(())
}
