// SPDX-License-Identifier: MIT OR Apache-2.0
//! A swarm of one node beside us.

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::{Docker, IMAGE, eventually};

use crate::ask::reaches;
use crate::site::Site;

/// How long swarm takes to start a task.
const TASK: Duration = Duration::from_secs(90);

/// A service that is published in mode host is reached as any container is.
///
/// Case 39, `TestHostPortMappings` and `TestSwarmPublish*`, in mode host: the routing mesh needs IPVS,
/// which is not in this kernel.
#[test]
fn host_mode_service_is_reached_as_a_container() -> Result<()> {
    let site = Site::with("c39-swarm", Docker::replace(), "")?;
    site.host
        .docker(&["swarm", "init", "--advertise-addr", "198.18.1.1"])?;
    site.host
        .docker(&["network", "create", "-d", "overlay", "over"])?;
    let mut publish = Vec::new();
    for proto in ["tcp", "udp"] {
        publish.push(format!(
            "--publish=mode=host,published=8080,target=80,protocol={proto}"
        ));
    }
    let service = [
        "service",
        "create",
        "-d",
        "--no-resolve-image",
        "--name=web",
        "--network=over",
    ];
    let service = [&service[..], &[&publish[0], &publish[1], IMAGE]].concat();
    site.host
        .docker(&[&service[..], &["/peer", "serve", "80"]].concat())?;
    eventually(TASK, || {
        let tasks = site.host.docker(&["service", "ps", "web"])?;
        ensure!(tasks.contains("Running "), "{tasks}");
        reaches(site.lan(), "198.18.1.1:8080", "198.18.1.2")
    })?;
    site.host.docker(&["service", "rm", "web"])?;
    site.host.docker(&["swarm", "leave", "--force"]).map(drop)
}
