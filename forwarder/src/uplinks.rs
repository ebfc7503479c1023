// SPDX-License-Identifier: MIT OR Apache-2.0
//! Uplinks: which of them run XDP, and in which mode.

use std::fs;
use std::path::Path;

use forwarder_state::desired_state::XdpKind;
use forwarder_state::host_state::{HostState, Link, LinkLayer};

use crate::config::XdpMode;
use crate::report;

/// An uplink and the decision about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Choice {
    /// Its device index.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// The XDP mode on it, if XDP runs there.
    pub xdp: Option<XdpKind>,
    /// The reason, for a person.
    pub why: String,
}

impl Choice {
    /// Returns the choice as the status shows it.
    #[must_use]
    pub fn report(&self) -> report::Uplink {
        let xdp = match self.xdp {
            Some(XdpKind::Native) => XdpMode::Native,
            Some(XdpKind::Generic) => XdpMode::Generic,
            None => XdpMode::Off,
        };
        report::Uplink {
            name: self.name.clone(),
            xdp,
            why: self.why.clone(),
        }
    }
}

/// Chooses for each uplink: the named ones, otherwise those of the default routes.
#[must_use]
pub fn choose(
    host_state: &HostState,
    named: &[String],
    mode: XdpMode,
    driver: impl Fn(&str) -> Option<String>,
) -> Vec<Choice> {
    let is_uplink = |link: &&Link| {
        if named.is_empty() {
            host_state.routing.defaults.contains(&link.index)
        } else {
            named.contains(&link.name)
        }
    };
    let of = |link: &Link| {
        let (xdp, why) = decide(link, mode, || driver(&link.name));
        Choice {
            ifindex: link.index,
            name: link.name.clone(),
            xdp,
            why,
        }
    };
    host_state
        .links
        .values()
        .filter(is_uplink)
        .map(of)
        .collect()
}

fn decide(
    link: &Link,
    mode: XdpMode,
    driver: impl FnOnce() -> Option<String>,
) -> (Option<XdpKind>, String) {
    let off = |why: &str| (None, why.to_owned());
    match mode {
        XdpMode::Off => off("off by configuration"),
        _ if link.layer != LinkLayer::Ethernet => off("no Ethernet header"),
        XdpMode::Native => (Some(XdpKind::Native), "native by configuration".to_owned()),
        XdpMode::Generic => (
            Some(XdpKind::Generic),
            "generic by configuration".to_owned(),
        ),
        XdpMode::Auto if !link.kind.is_empty() => {
            // XDP there costs more than it gains: it disables offloads on the other end.
            (None, format!("auto: a {} is no physical device", link.kind))
        }
        XdpMode::Auto => match driver() {
            None => off("auto: no driver known"),
            Some(driver) if driver == "virtio_net" => off("auto: virtio would lose its offloads"),
            Some(driver) => (
                Some(XdpKind::Native),
                format!("auto: a physical device ({driver})"),
            ),
        },
    }
}

/// Returns the driver of a device, from sysfs; none for virtual devices.
#[must_use]
pub fn driver(name: &str) -> Option<String> {
    let link = fs::read_link(Path::new("/sys/class/net").join(name).join("device/driver")).ok()?;
    Some(link.file_name()?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic(kind: &str) -> Link {
        Link {
            index: 2,
            name: "eth0".into(),
            kind: kind.into(),
            up: true,
            ..Link::default()
        }
    }

    #[test]
    fn auto_takes_physical_devices_only() {
        let decide_auto =
            |link: &Link, driver: &str| decide(link, XdpMode::Auto, || Some(driver.to_owned())).0;
        assert_eq!(decide_auto(&nic(""), "mlx5_core"), Some(XdpKind::Native));
        assert_eq!(decide_auto(&nic(""), "virtio_net"), None);
        assert_eq!(decide(&nic(""), XdpMode::Auto, || None).0, None);
        for kind in ["veth", "bridge", "bond", "vlan"] {
            assert_eq!(decide_auto(&nic(kind), "mlx5_core"), None, "{kind}");
        }
    }

    #[test]
    fn xdp_mode_is_followed_where_supported() {
        assert_eq!(
            decide(&nic("veth"), XdpMode::Native, || None).0,
            Some(XdpKind::Native)
        );
        assert_eq!(
            decide(&nic("veth"), XdpMode::Generic, || None).0,
            Some(XdpKind::Generic)
        );
        assert_eq!(decide(&nic(""), XdpMode::Off, || None).0, None);
        let tun = Link {
            layer: LinkLayer::Raw,
            ..nic("tun")
        };
        assert_eq!(decide(&tun, XdpMode::Native, || None).0, None);
    }

    /// Uplinks are the devices that were named, or else those of default routes.
    #[test]
    fn uplinks_are_named_or_have_default_routes() {
        let mut host_state = HostState::default();
        host_state.links.insert(2, nic(""));
        assert!(choose(&host_state, &[], XdpMode::Off, |_| None).is_empty());
        host_state.routing.defaults.insert(2);
        assert_eq!(
            choose(&host_state, &[], XdpMode::Off, |_| None)[0].name,
            "eth0"
        );
        let named = ["eth1".to_owned()];
        assert!(choose(&host_state, &named, XdpMode::Off, |_| None).is_empty());
    }
}
