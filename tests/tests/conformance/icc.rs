// SPDX-License-Identifier: MIT OR Apache-2.0
//! Networks without inter-container communication, and the links that open holes in them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::{Space, eventually, serve};

use crate::ask::{Access, is_kept_from, is_reached, pings, reaches};
use crate::site::Site;

/// Docker tells nobody that a link has gone: the agent finds out by looking.
const LOOKED: Duration = Duration::from_secs(15);

/// Two servers without inter-container communication, the first of them published.
fn apart(site: &Site, network: &str) -> Result<()> {
    let _server = serve(site.lan(), 7)?;
    let on = ["--network", network];
    let ports = ["-p", "8080:80", "-p", "8080:80/udp"];
    let one = site.serve("one", &[&on[..], &ports].concat())?;
    let two = site.serve("two", &on)?;
    let (inside, own) = (two.space()?, one.ip()?.to_string());
    let watch = one.space()?.capture("eth0")?;
    Access::NONE.is_that_of(&inside, &own)?;
    Access::NONE.is_that_of(&one.space()?, &two.ip()?.to_string())?;
    let came = watch.lines(&format!("ip and src host {}", two.ip()?))?;
    ensure!(came.is_empty(), "{came:?}");
    // All else as ever: a peer's published port (as Docker is about to do it), the way out, the
    // host both ways, the way in.
    let gateway = two.inspect("{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}")?;
    reaches(&inside, "198.18.1.1:8080", &gateway)?;
    reaches(&inside, "198.18.1.2:7", "198.18.1.1")?;
    ensure!(pings(&inside, &gateway), "the bridge does not answer");
    Access::ALL.is_that_of(&site.host, &own)?;
    reaches(site.lan(), "198.18.1.1:8080", "198.18.1.2")
}

/// Containers without inter-container communication reach everything but each other.
///
/// Case 30, `TestDaemonICCPing`, on a network of the user's.
#[test]
fn icc_false_separates_siblings_only() -> Result<()> {
    let site = Site::ours("c30-icc")?;
    site.network("apart", &["--label", "forwarder.enable_icc=false"])?;
    apart(&site, "apart")
}

/// Case 30, by Docker's own option.
#[test]
fn dockers_icc_option_does_the_same() -> Result<()> {
    let site = Site::ours("c30-icc-option")?;
    let option = ["-o", "com.docker.network.bridge.enable_icc=false"];
    site.network("apart", &option)?;
    apart(&site, "apart")
}

/// The default bridge is without inter-container communication when the configuration says so.
///
/// Case 30, on the default bridge, where dockerd refuses the option without iptables.
#[test]
fn default_bridge_icc_follows_configuration() -> Result<()> {
    let site = Site::configured("c30-icc-default", "[network.bridge]\nicc = false\n")?;
    apart(&site, "bridge")
}

fn is_open(from: &Space, to: &str) -> Result<()> {
    ensure!(is_reached(from, to)?, "{to} is closed");
    Ok(())
}

/// A link opens what the linked container exposes, and closes it when the link is removed.
///
/// Case 30, `TestLegacyLink`, `TestRemoveLegacyLink`, `TestDaemonICCLinkExpose`.
#[test]
fn link_opens_exposed_ports_until_it_is_removed() -> Result<()> {
    let site = Site::configured("c30-links", "[network.bridge]\nicc = false\n")?;
    let expose = ["--expose", "80/tcp", "--expose", "80/udp"];
    let child = site.serve("child", &expose)?;
    let parent = site.serve("parent", &["--link", "child:alias"])?;
    let stranger = site.serve("stranger", &[])?;
    let own = child.ip()?.to_string();
    let (exposed, other) = (format!("{own}:80"), format!("{own}:81"));
    let inside = parent.space()?;
    eventually(crate::SOON, || is_open(&inside, &exposed))?;
    is_kept_from(&inside, &other).context("not exposed")?;
    is_kept_from(&stranger.space()?, &exposed).context("not linked")?;
    is_kept_from(&child.space()?, &format!("{}:80", parent.ip()?)).context("the other way")?;
    site.host.docker(&["rm", "--link", "/parent/alias"])?;
    eventually(LOOKED, || is_kept_from(&inside, &exposed))?;
    // On a network of the user's a link is a name and opens nothing.
    let option = ["-o", "com.docker.network.bridge.enable_icc=false"];
    site.network("apart", &option)?;
    let on = ["--network", "apart"];
    let child = site.serve("child2", &[&on[..], &expose].concat())?;
    let parent = site.serve("parent2", &[&on[..], &["--link", "child2:alias"]].concat())?;
    is_kept_from(&parent.space()?, &format!("{}:80", child.ip()?))
}
