// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether a shim's claim about a container agrees with what Docker and the kernel report. Pure.
//!
//! dockerd starts a shim before it lists the port, and possibly before it answers at all. Therefore
//! the claim must agree with what is known, and Docker's later list overrides it.

use std::net::IpAddr;

use forwarder_state::host_state::{Bound, Container, Family, HostPort, HostState, Subnet};

use crate::watch::shim::Binding;

/// Whether a new claim agrees: the address is in one of Docker's networks, and a running container
/// there publishes this container port. With `exactly`, it must publish it under this host port.
pub(super) fn of(binding: &Binding, exactly: bool, host_state: &HostState) -> Result<(), String> {
    let (address, port) = (binding.container_ip, binding.container_port);
    if !is_heard(host_state) {
        let why = || format!("{address} is not on a bridge of this host");
        return is_on_a_bridge(address, host_state)
            .then_some(())
            .ok_or_else(why);
    }
    if !is_in_a_network(address, host_state) {
        return Err(format!("{address} is not in a Docker network"));
    }
    let Some(container) = running_at(address, host_state) else {
        return Ok(());
    };
    if !container.published.contains(&(binding.proto, port)) {
        let name = &container.name;
        return Err(format!("Docker does not publish port {port} of {name}"));
    }
    if exactly {
        return lists(&binding.host(), port, container);
    }
    Ok(())
}

/// Whether an accepted claim agrees with what Docker lists now.
pub(super) fn with_list(
    port: &HostPort,
    bound: &Bound,
    host_state: &HostState,
) -> Result<(), String> {
    match running_at(bound.container_ip, host_state).filter(|_| is_heard(host_state)) {
        Some(container) => lists(port, bound.container_port, container),
        None => Ok(()),
    }
}

fn lists(port: &HostPort, to: u16, container: &Container) -> Result<(), String> {
    let mut ports = container.ports.iter();
    if ports.any(|own| own.host() == *port && own.container_port == to) {
        return Ok(());
    }
    let name = &container.name;
    Err(format!(
        "Docker does not publish port {to} of {name} as {port}"
    ))
}

fn is_heard(host_state: &HostState) -> bool {
    host_state.docker.is_some() && host_state.is_complete()
}

fn is_in_a_network(address: IpAddr, host_state: &HostState) -> bool {
    host_state.networks.values().any(|network| {
        network
            .subnets
            .iter()
            .any(|subnet| subnet.contains(address))
            && host_state.gateway(network, Family::of(address)) != Some(address)
    })
}

/// Whether an address is in the range of a bridge of this host: the check while Docker does not
/// answer. A bridge without an address (`inhibit_ipv4`) proves nothing.
fn is_on_a_bridge(address: IpAddr, host_state: &HostState) -> bool {
    let mut bridges = host_state
        .links
        .values()
        .filter(|link| link.kind == "bridge");
    bridges.any(|bridge| {
        let own = host_state.addresses.get(&bridge.index).map(Vec::as_slice);
        let mut own = own.unwrap_or_default().iter().peekable();
        let family = Family::of(address);
        if !own.clone().any(|at| Family::of(at.address) == family) {
            return true;
        }
        own.any(|at| {
            let range = Subnet {
                address: at.address,
                prefix_len: at.prefix_len,
                gateway: None,
            };
            range.contains(address) && at.address != address
        })
    })
}

fn running_at(address: IpAddr, host_state: &HostState) -> Option<&Container> {
    let (_, container) = host_state.endpoint_at(address)?;
    host_state.containers.get(container).filter(|c| c.running)
}
