// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names in place of addresses: a container's, and the port by which it is published. They are the
//! agent's answer; without an agent, addresses are shown.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use crate::cli::ask;
use crate::config::Config;
use crate::control::Verb;
use crate::report::{EndpointRow, Ends, FlowRow, PortRow};

/// An address of the host at which a port is published, and the container, if it is known.
type Publication = (IpAddr, Option<String>);

/// What the agent knows about addresses and ports.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    /// Containers by address.
    containers: BTreeMap<IpAddr, String>,
    /// Containers by the host's end of their veth.
    veths: BTreeMap<String, String>,
    /// Where ports are published, by protocol and port.
    ports: BTreeMap<(String, u16), Vec<Publication>>,
}

impl Names {
    /// Asks the agent. Without an answer there are no names.
    pub(super) fn ask(config: &Config) -> Self {
        let endpoints = ask::<Vec<_>>(config, Verb::Endpoints).unwrap_or_default();
        let ports = ask::<Vec<_>>(config, Verb::Ports).unwrap_or_default();
        Self::of(endpoints, ports)
    }

    /// Takes newer names. A container that has gone keeps its name until another one has its
    /// address, because its flows end after it. Without an agent there are no names.
    pub(super) fn renew(&mut self, newer: Self) {
        if newer == Self::default() {
            *self = newer;
            return;
        }
        self.containers.extend(newer.containers);
        self.veths.extend(newer.veths);
        self.ports = newer.ports;
    }

    fn of(endpoints: Vec<EndpointRow>, ports: Vec<PortRow>) -> Self {
        let mut published: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for row in ports {
            let of_port = published.entry((row.proto, row.host_port)).or_default();
            of_port.push((row.host_ip, row.container));
        }
        let veths = endpoints
            .iter()
            .filter_map(|row| Some((row.veth.clone()?, row.container.clone())));
        Self {
            veths: veths.collect(),
            containers: endpoints
                .into_iter()
                .filter_map(|row| Some((row.address?, row.container)))
                .collect(),
            ports: published,
        }
    }

    /// What is known about one container.
    #[cfg(test)]
    pub(super) fn of_one(name: &str, address: IpAddr, veth: &str) -> Self {
        Self {
            containers: [(address, name.to_owned())].into(),
            veths: [(veth.to_owned(), name.to_owned())].into(),
            ports: [("tcp".to_owned(), 8080)]
                .map(|port| (port, vec![([198, 18, 1, 1].into(), Some(name.to_owned()))]))
                .into(),
        }
    }

    /// Formats the direction of the originator's packets. A published port stands for the host's
    /// address, if a container answers.
    pub(super) fn original(&self, flow: &FlowRow) -> String {
        let Ends {
            src,
            sport,
            dst,
            dport,
        } = flow.original;
        let is_published = self.ports.contains_key(&(flow.proto.clone(), dport))
            && self.containers.contains_key(&flow.reply.src)
            && flow.reply.src != dst;
        let to = if is_published {
            format!(":{dport}")
        } else {
            self.end(dst, dport)
        };
        format!("{} > {to}", self.end(src, sport))
    }

    /// Formats the direction of the replies.
    pub(super) fn reply(&self, flow: &FlowRow) -> String {
        let ends = flow.reply;
        let from = self.end(ends.src, ends.sport);
        format!("{from} > {}", self.end(ends.dst, ends.dport))
    }

    fn end(&self, address: IpAddr, port: u16) -> String {
        match self.containers.get(&address) {
            Some(name) => format!("{name}:{port}"),
            None => SocketAddr::new(address, port).to_string(),
        }
    }

    /// Formats an end of a packet that may have no port.
    pub(super) fn end_of_packet(&self, address: IpAddr, port: Option<u16>) -> String {
        match (port, self.containers.get(&address)) {
            (Some(port), _) => self.end(address, port),
            (None, Some(name)) => name.clone(),
            (None, None) => address.to_string(),
        }
    }

    /// Returns the container behind a veth.
    pub(super) fn behind(&self, veth: &str) -> Option<&str> {
        self.veths.get(veth).map(String::as_str)
    }

    /// Returns the container that publishes a port at an address of the host: at this one, or else
    /// at all.
    pub(super) fn publishing(&self, proto: &str, address: IpAddr, port: u16) -> Option<&str> {
        let ports = self.ports.get(&(proto.to_owned(), port))?;
        let at = |is: &dyn Fn(IpAddr) -> bool| ports.iter().find(|(own, _)| is(*own));
        let (_, container) =
            at(&|own| own == address).or_else(|| at(&|own| own.is_unspecified()))?;
        container.as_deref()
    }

    /// Whether there is a container of this name.
    pub(super) fn know(&self, name: &str) -> bool {
        let mut all = self.containers.values().chain(self.veths.values());
        all.any(|known| known == name)
    }

    /// Returns the container that has an address.
    pub(super) fn with_address(&self, address: IpAddr) -> Option<&str> {
        self.containers.get(&address).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(src: [u8; 4], sport: u16, dst: [u8; 4], dport: u16) -> Ends {
        Ends {
            src: src.into(),
            sport,
            dst: dst.into(),
            dport,
        }
    }

    fn flow(original: Ends, reply: Ends) -> FlowRow {
        FlowRow {
            proto: "tcp".into(),
            original,
            reply,
            state: "ESTABLISHED".into(),
            packets: 1,
            bytes: 60,
            idle_s: 0,
        }
    }

    const CLIENT: [u8; 4] = [198, 18, 1, 2];
    const HOST: [u8; 4] = [198, 18, 1, 1];
    const WEB: [u8; 4] = [172, 17, 0, 2];

    fn names() -> Names {
        let endpoint = EndpointRow {
            network: "bridge".into(),
            container: "web".into(),
            id: "0123".into(),
            address: Some(WEB.into()),
            mac: None,
            veth: None,
            hooked: true,
        };
        let port = PortRow {
            proto: "tcp".into(),
            host_ip: [0, 0, 0, 0].into(),
            host_port: 8080,
            container: Some("web".into()),
            network: Some("bridge".into()),
            container_ip: WEB.into(),
            container_port: 80,
        };
        Names::of(vec![endpoint], vec![port])
    }

    #[test]
    fn names_stand_for_what_the_agent_knows() {
        let inward = flow(ends(CLIENT, 4000, HOST, 8080), ends(WEB, 80, CLIENT, 4000));
        assert_eq!(names().original(&inward), "198.18.1.2:4000 > :8080");
        assert_eq!(names().reply(&inward), "web:80 > 198.18.1.2:4000");
        // A remote port of the same number is not ours.
        let outward = flow(
            ends(WEB, 5000, CLIENT, 8080),
            ends(CLIENT, 8080, HOST, 5000),
        );
        assert_eq!(names().original(&outward), "web:5000 > 198.18.1.2:8080");
        assert_eq!(names().reply(&outward), "198.18.1.2:8080 > 198.18.1.1:5000");
    }

    /// The flows of a container that has gone end with its name, unless another one has its
    /// address.
    #[test]
    fn name_stays_until_the_address_is_anothers() {
        let ended = flow(ends(WEB, 5000, CLIENT, 80), ends(CLIENT, 80, HOST, 5000));
        let named = |container: &str, last: u8| Names {
            containers: [([172, 17, 0, last].into(), container.to_owned())].into(),
            ..Names::default()
        };
        let mut known = names();
        known.renew(named("db", 3));
        assert_eq!(known.original(&ended), "web:5000 > 198.18.1.2:80");
        known.renew(named("db", 2));
        assert_eq!(known.original(&ended), "db:5000 > 198.18.1.2:80");
        known.renew(Names::default());
        assert_eq!(known.original(&ended), "172.17.0.2:5000 > 198.18.1.2:80");
    }

    #[test]
    fn addresses_are_shown_without_an_agent() {
        let inward = flow(ends(CLIENT, 4000, HOST, 8080), ends(WEB, 80, CLIENT, 4000));
        let none = Names::default();
        assert_eq!(none.original(&inward), "198.18.1.2:4000 > 198.18.1.1:8080");
        assert_eq!(none.reply(&inward), "172.17.0.2:80 > 198.18.1.2:4000");
    }
}
