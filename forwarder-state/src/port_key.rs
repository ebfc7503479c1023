// SPDX-License-Identifier: MIT OR Apache-2.0
//! Published ports: from their names to the keys of the tables, and back.

use forwarder_common::abi::{PortKey, PortKey6};
use forwarder_common::family::{Be16, Family};
use forwarder_common::wire::proto;
use forwarder_protocol::{HostPort, Proto};

use crate::address::WireAddress;

/// Returns the datapath's key of a published port if its address is of the family.
#[must_use]
pub fn port_key<F: Family<Addr: WireAddress>>(host: &HostPort) -> Option<PortKey<F>> {
    let (addr, port, proto) = place(host)?;
    Some(PortKey { addr, port, proto })
}

/// Returns the port that a key stands for.
#[must_use]
pub fn host_port<F: Family<Addr: WireAddress>>(key: &PortKey<F>) -> Option<HostPort> {
    let mut all = [Proto::Tcp, Proto::Udp, Proto::Sctp].into_iter();
    Some(HostPort {
        proto: all.find(|&proto| number(proto) == key.proto)?,
        ip: key.addr.ip(),
        port: key.port.get(),
    })
}

/// Returns the key of a port that is published on an IPv6 address.
#[must_use]
pub fn port_key6(host: &HostPort) -> Option<PortKey6> {
    let (addr, port, proto) = place(host)?;
    Some(PortKey6 { addr, port, proto })
}

/// Returns the parts of a port's key if its address is of the family.
fn place<A: WireAddress>(host: &HostPort) -> Option<(A, Be16, u16)> {
    Some((A::of(host.ip)?, Be16::new(host.port), number(host.proto)))
}

/// Returns the number of a protocol whose ports the datapath translates.
#[must_use]
pub fn number(proto: Proto) -> u16 {
    match proto {
        Proto::Tcp => proto::TCP as u16,
        Proto::Udp => proto::UDP as u16,
        Proto::Sctp => proto::SCTP as u16,
    }
}

#[cfg(test)]
mod tests {
    use forwarder_common::family::V4;

    use super::*;

    #[test]
    fn key_names_its_port() {
        for proto in [Proto::Tcp, Proto::Udp, Proto::Sctp] {
            let ip = [198, 18, 1, 1].into();
            let port = HostPort {
                proto,
                ip,
                port: 8080,
            };
            let key = port_key::<V4>(&port).unwrap();
            assert_eq!(host_port(&key), Some(port));
        }
        let port = HostPort {
            proto: Proto::Tcp,
            ip: "::".parse().unwrap(),
            port: 80,
        };
        assert_eq!(port_key::<V4>(&port), None);
    }
}
