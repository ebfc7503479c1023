// SPDX-License-Identifier: MIT OR Apache-2.0
//! Removal of everything that a lab created: in the same way at a test's end, after a panic, and
//! for what a killed test left.
//!
//! There are no records: what belongs to a lab is found by the lab's name (namespaces and its
//! folder), and by being inside its namespaces (processes). All of it is best effort, because it
//! runs in `Drop` and beside others that remove the same leftovers.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::netns::NETNS_DIR;
use crate::process::finish;

/// The prefix of the names of all labs; the owner's process id follows.
pub(crate) const PREFIX: &str = "fwlab-";

/// The directory of the sockets of containerd's shims, whatever containerd's own folders are.
const SHIM_SOCKETS: &str = "/run/containerd/s/";

/// The identity of a namespace.
type Id = (u64, u64);

/// Removes everything of labs whose owner no longer runs. [`Lab::new`](crate::Lab::new) does this
/// once per process.
pub fn sweep() {
    let namespaces = entries(Path::new(NETNS_DIR));
    let folders = entries(&std::env::temp_dir());
    let dead = |path: &PathBuf| owner(path).is_some_and(|pid| !alive(pid));
    let (namespaces, folders): (Vec<_>, Vec<_>) = (
        namespaces.into_iter().filter(dead).collect(),
        folders.into_iter().filter(dead).collect(),
    );
    remove(&namespaces, &folders);
}

/// Removes everything of one lab: the namespaces whose names begin with its name, and its folder.
pub(crate) fn remove_lab(name: &str, folder: &Path) {
    let prefix = format!("{name}-");
    let ours = |path: &PathBuf| file_name(path).is_some_and(|name| name.starts_with(&prefix));
    let namespaces: Vec<_> = entries(Path::new(NETNS_DIR))
        .into_iter()
        .filter(ours)
        .collect();
    remove(&namespaces, &[folder.to_owned()]);
}

/// Removes one host: its namespace and its folder.
pub(crate) fn remove_host(namespace: &str, folder: &Path) {
    remove(
        &[Path::new(NETNS_DIR).join(namespace)],
        &[folder.to_owned()],
    );
}

/// Removes one namespace and the processes in it.
pub(crate) fn remove_netns(namespace: &str) {
    remove(&[Path::new(NETNS_DIR).join(namespace)], &[]);
}

fn remove(namespaces: &[PathBuf], folders: &[PathBuf]) {
    let mounts: Vec<_> = mounts()
        .into_iter()
        .filter(|mount| folders.iter().any(|folder| mount.point.starts_with(folder)))
        .collect();
    // Docker keeps a container's namespace as a mount in its folder.
    let kept = mounts
        .iter()
        .filter(|mount| mount.kind == "nsfs")
        .map(|mount| &mount.point);
    let ids: Vec<_> = namespaces
        .iter()
        .chain(kept)
        .filter_map(|path| id(path))
        .collect();
    evict(&ids);
    for mount in mounts.iter().rev() {
        let _ = unmount(&mount.point, UnmountFlags::DETACH);
    }
    for namespace in namespaces.iter().filter(|path| path.exists()) {
        if let Some(name) = file_name(namespace) {
            let _ = finish(Command::new("ip").args(["netns", "del", name]));
        }
    }
    for folder in folders {
        remove_cgroups(folder);
        let _ = fs::remove_dir_all(folder);
    }
}

/// Kills the processes inside the namespaces until there are none.
fn evict(namespaces: &[Id]) {
    let own = id(Path::new("/proc/self/ns/net"));
    let namespaces: Vec<_> = namespaces.iter().filter(|id| Some(**id) != own).collect();
    let inside = |pid: &i32| {
        id(&PathBuf::from(format!("/proc/{pid}/ns/net")))
            .is_some_and(|id| namespaces.contains(&&id))
    };
    let mut sockets = Vec::new();
    for _ in 0..200 {
        // A process that has ended but was not waited for is in no namespace any more.
        let victims: Vec<_> = pids().into_iter().filter(inside).collect();
        let Some(first) = victims.first() else { break };
        sockets.extend(shim_sockets(*first));
        for pid in victims.iter().filter_map(|pid| Pid::from_raw(*pid)) {
            let _ = kill_process(pid, Signal::KILL);
        }
        sleep(Duration::from_millis(5));
    }
    for socket in sockets {
        let _ = fs::remove_file(socket);
    }
}

/// Returns the shim sockets that are open in the namespace of a process.
fn shim_sockets(pid: i32) -> Vec<PathBuf> {
    let table = fs::read_to_string(format!("/proc/{pid}/net/unix")).unwrap_or_default();
    let paths = table
        .lines()
        .filter_map(|line| line.split_whitespace().nth(7));
    paths
        .filter(|path| path.starts_with(SHIM_SOCKETS))
        .map(PathBuf::from)
        .collect()
}

/// Removes the cgroups of a lab's or a host's containers, because the daemon that would remove them
/// was killed.
fn remove_cgroups(folder: &Path) {
    let hosts = entries(folder).into_iter().chain([folder.to_owned()]);
    let containers: Vec<_> = hosts
        .flat_map(|host| entries(&host.join("data/containers")))
        .collect();
    for root in mounts()
        .iter()
        .filter(|mount| mount.kind.starts_with("cgroup"))
    {
        for id in containers.iter().filter_map(|path| file_name(path)) {
            let _ = fs::remove_dir(root.point.join("docker").join(id));
        }
    }
}

struct Mount {
    point: PathBuf,
    kind: String,
}

fn mounts() -> Vec<Mount> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let parse = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let point = before.split(' ').nth(4)?.into();
        Some(Mount {
            point,
            kind: after.split(' ').next()?.to_owned(),
        })
    };
    table.lines().filter_map(parse).collect()
}

fn owner(path: &Path) -> Option<u32> {
    file_name(path)?
        .strip_prefix(PREFIX)?
        .split('-')
        .next()?
        .parse()
        .ok()
}

fn alive(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

fn pids() -> Vec<i32> {
    entries(Path::new("/proc"))
        .iter()
        .filter_map(|path| file_name(path)?.parse().ok())
        .collect()
}

fn id(path: &Path) -> Option<Id> {
    fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let read = fs::read_dir(folder).into_iter().flatten();
    read.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

fn file_name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_contains_the_owner() {
        assert_eq!(
            owner(Path::new("/run/netns/fwlab-812-0-published-h1")),
            Some(812)
        );
        assert_eq!(owner(Path::new("/tmp/fwlab-x")), None);
        assert_eq!(owner(Path::new("/tmp/other-812-0")), None);
    }

    #[test]
    fn own_process_is_alive_and_root_is_mounted() {
        assert!(alive(std::process::id()));
        assert!(mounts().iter().any(|mount| mount.point == Path::new("/")));
    }
}
