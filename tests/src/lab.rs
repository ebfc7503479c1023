// SPDX-License-Identifier: MIT OR Apache-2.0
//! A lab: the LAN namespace, the hosts on it, and one folder for all their files.

use std::net::Ipv4Addr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};

use anyhow::{Context as _, Result, ensure};

use crate::check::require_root;
use crate::dockerd::Docker;
use crate::host::Host;
use crate::image;
use crate::netns::{Netns, Space, veth};
use crate::teardown;

/// A network with Docker hosts. When it is dropped, it removes everything created in it.
pub struct Lab {
    lan: Lan,
    hosts: AtomicU8,
    others: AtomicU8,
    site: Arc<Site>,
}

impl Lab {
    /// Creates an empty lab: a LAN without hosts. The label (letters, digits, `-`) becomes part of
    /// its names. The first lab of a process removes what killed processes left behind.
    ///
    /// # Errors
    /// A namespace cannot be created.
    ///
    /// # Panics
    /// The process does not run as root.
    pub fn new(label: &str) -> Result<Self> {
        static SWEPT: Once = Once::new();
        static LABS: AtomicU32 = AtomicU32::new(0);
        require_root();
        SWEPT.call_once(teardown::sweep);
        let plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '-';
        // Socket paths in the lab's folder may have 107 bytes.
        ensure!(
            label.len() <= 32 && label.chars().all(plain),
            "a lab's label has at most 32 letters, digits or -, not {label:?}"
        );
        let (pid, number) = (std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        let site = Site::new(format!("{}{pid}-{number}-{label}", teardown::PREFIX))?;
        let lan = Lan(site.netns("lan", site.folder())?);
        lan.sysctl("net/ipv4/ip_forward", "1")?;
        Ok(Self {
            lan,
            hosts: AtomicU8::new(0),
            others: AtomicU8::new(0),
            site: Arc::new(site),
        })
    }

    /// Adds a Docker host, number N from 1 on: 198.18.N.1/24 on its `up0`, with the LAN's
    /// 198.18.N.2 as default gateway. Hosts reach each other through the LAN.
    ///
    /// # Errors
    /// dockerd does not start; the error shows its log.
    pub fn host(&self, docker: Docker) -> Result<Host> {
        let number = self.hosts.fetch_add(1, Ordering::Relaxed) + 1;
        Host::start(&self.site, &self.lan, number, docker)
            .with_context(|| format!("host {number} of lab {}", self.site.name))
    }

    /// Returns the LAN: the neighbour and the gateway of every host.
    #[must_use]
    pub fn lan(&self) -> &Lan {
        &self.lan
    }

    /// Adds a machine behind the LAN: 198.19.N.2/24, N from 1 on, routed by the LAN.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn far(&self) -> Result<Far> {
        let number = self.others.fetch_add(1, Ordering::Relaxed) + 1;
        let name = format!("far{number}");
        let netns = self.netns(&name)?;
        let [here, there] = [2, 1].map(|last| Ipv4Addr::new(198, 19, number, last));
        let lan_end = (&*self.lan.0, name.as_str(), format!("{there}/24"));
        veth(
            (&netns, "eth0", &format!("{here}/24")),
            (lan_end.0, lan_end.1, &lan_end.2),
        )?;
        netns.ip(&format!("route add default via {there}"))?;
        Ok(Far {
            netns,
            address: here,
        })
    }

    /// Creates an empty namespace, to be connected with [`veth`](crate::veth).
    ///
    /// # Errors
    /// It cannot be created.
    pub fn netns(&self, role: &str) -> Result<Netns> {
        self.site.netns(role, self.site.folder())
    }
}

/// The LAN's namespace; device `hN` with address 198.18.N.2 faces host N.
pub struct Lan(Netns);

impl Deref for Lan {
    type Target = Space;

    fn deref(&self) -> &Space {
        &self.0
    }
}

/// A machine that the hosts reach through the LAN.
pub struct Far {
    netns: Netns,
    address: Ipv4Addr,
}

impl Far {
    /// Returns its address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }
}

impl Deref for Far {
    type Target = Space;

    fn deref(&self) -> &Space {
        &self.netns
    }
}

/// What all parts of a lab share, kept until the last of them is dropped: the name and the folder.
pub(crate) struct Site {
    name: String,
    folder: PathBuf,
    image: Mutex<Option<PathBuf>>,
}

impl Site {
    fn new(name: String) -> Result<Self> {
        let folder = std::env::temp_dir().join(&name);
        std::fs::create_dir(&folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        Ok(Self {
            name,
            folder,
            image: Mutex::new(None),
        })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn netns(&self, role: &str, scratch: &Path) -> Result<Netns> {
        Netns::create(&format!("{}-{role}", self.name), scratch)
    }

    /// Returns the archive of the image, packed once.
    pub(crate) fn image(&self) -> Result<PathBuf> {
        let mut packed = self.image.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(archive) = &*packed {
            return Ok(archive.clone());
        }
        let archive = image::pack(&self.folder)?;
        Ok(packed.insert(archive).clone())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        teardown::remove_lab(&self.name, &self.folder);
    }
}
