// SPDX-License-Identifier: MIT OR Apache-2.0
//! The program itself: what it weighs, and what it leaves to Docker's own.

use std::fs;

use anyhow::{Context as _, Result};
use harness::{Docker, Lab, Peer, Running, forwarder_bin, forwarder_proxy_bin};
use object::elf::{FileHeader64, PT_INTERP};
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use object::{Endianness, elf};

use super::{run, scene, shims};

/// What a shim may have for itself, in kB.
const PRIVATE_KB: u64 = 512;

#[test]
fn shim_needs_no_shared_library() -> Result<()> {
    let bytes = fs::read(forwarder_proxy_bin()?)?;
    let header = FileHeader64::<Endianness>::parse(&*bytes)?;
    let endian = header.endian()?;
    let all = header.program_headers(endian, &*bytes)?;
    let interpreter = all.iter().any(|part| part.p_type(endian) == PT_INTERP);
    assert!(!interpreter, "it is linked dynamically");
    assert!(all.iter().any(|part| part.p_type(endian) == elf::PT_LOAD));
    Ok(())
}

#[test]
fn shim_is_small() -> Result<()> {
    let scene = scene("small")?;
    // First one alone, which shares nothing with another.
    let alone = ["-p", "0.0.0.0:9090:80/udp"];
    scene.host.run("alone", &alone, &Peer::serve(80))?;
    weigh(&shims(&scene.host)?, 1)?;
    run(&scene.host, "web", &[])?;
    weigh(&shims(&scene.host)?, 3)
}

fn weigh(shims: &[Running], count: usize) -> Result<()> {
    assert_eq!(shims.len(), count);
    for shim in shims {
        let private = shim.private_kb()?;
        println!("{private} kB: {}", shim.line);
        assert!(private <= PRIVATE_KB, "{private} kB");
    }
    Ok(())
}

#[test]
fn doctor_knows_the_shim() -> Result<()> {
    let scene = scene("doctor")?;
    let said = scene.host.forwarder(&["doctor"])?.stdout;
    let good = "✓ dockerd starts the shim for each published port";
    assert!(said.contains(good), "{said}");
    let apart = format!("--state-dir={}", scene.host.bpffs_dir().display());
    let said = scene.host.cmd(&[
        forwarder_bin()?.to_str().context("not UTF-8")?,
        "doctor",
        &apart,
    ]);
    let said = format!("{said:?}");
    assert!(
        said.contains("dockerd's shims look for the agent in "),
        "{said}"
    );
    Ok(())
}

#[test]
fn ipv6_port_is_served_by_docker_proxy() -> Result<()> {
    let scene = scene("v6")?;
    let host = &scene.host;
    host.sysctl("net/ipv6/conf/lo/disable_ipv6", "0")?;
    host.run("web", &["-p", "8080:80"], &Peer::serve(80))?;
    assert_eq!(shims(host)?.len(), 1, "one for IPv4");
    let proxies = Running::named("docker-proxy", host)?;
    assert_eq!(proxies.len(), 1, "{proxies:?}");
    assert!(proxies[0].line.contains("-host-ip :: "), "{proxies:?}");
    host.container("web").remove()?;
    assert!(Running::named("docker-proxy", host)?.is_empty());
    Ok(())
}

#[test]
fn ipv6_port_without_docker_proxy_says_so() -> Result<()> {
    let lab = Lab::new("no-v6")?;
    let docker = Docker::replace_with_shim().env("FORWARDER_DOCKER_PROXY", "/nowhere/docker-proxy");
    let host = lab.host(docker)?;
    let _agent = host.agent().start()?;
    let refused = host
        .run("web", &["-p", "[::1]:8080:80"], &Peer::serve(80))
        .err()
        .context("it starts")?;
    let refused = format!("{refused:#}");
    assert!(
        refused.contains("[::1]:8080/tcp is a port for Docker's own docker-proxy")
            && refused.contains("/nowhere/docker-proxy (FORWARDER_DOCKER_PROXY) does not exist"),
        "{refused}"
    );
    Ok(())
}
