// SPDX-License-Identifier: MIT OR Apache-2.0
//! Flags that select flows.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use forwarder_state::overrides::range;
use ipnet::IpNet;

use crate::cli::ask;
use crate::config::Config;
use crate::control::Verb;
use crate::report::{EndpointRow, Filter, state_named};

#[derive(Debug, clap::Args)]
pub(super) struct Conditions {
    /// Only flows of a container: its name, or the beginning of its id; asks the agent
    #[arg(long, value_name = "NAME")]
    container: Option<String>,
    /// Only flows with this port, before or after translation
    #[arg(long, value_name = "N")]
    port: Option<u16>,
    /// Only flows in this state, as the list shows it
    #[arg(long, value_name = "STATE", value_parser = state_named)]
    state: Option<String>,
    /// Only flows with an address in this range, before or after translation
    #[arg(long, value_name = "CIDR", value_parser = net)]
    peer: Option<IpNet>,
    /// Only flows of this protocol
    #[arg(long, value_enum)]
    proto: Option<Proto>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Proto {
    Tcp,
    Udp,
    Sctp,
    Icmp,
}

impl Conditions {
    /// Builds the filter, with a container's name replaced by its addresses.
    pub(super) fn resolve(&self, config: &Config) -> Result<Filter> {
        let addresses = |wanted: &String| {
            let rows = ask::<Vec<_>>(config, Verb::Endpoints).with_context(|| {
                format!(
                    "only the agent knows the address of {wanted}: start the agent, or give the \
                     address with --peer"
                )
            })?;
            addresses(&rows, wanted)
        };
        let proto = |proto: Proto| {
            match proto {
                Proto::Tcp => "tcp",
                Proto::Udp => "udp",
                Proto::Sctp => "sctp",
                Proto::Icmp => "icmp",
            }
            .to_owned()
        };
        Ok(Filter {
            addresses: self.container.as_ref().map(addresses).transpose()?,
            port: self.port,
            state: self.state.clone(),
            peer: self.peer,
            proto: self.proto.map(proto),
        })
    }
}

/// Returns the addresses of the container with this name, or else of the only container whose id
/// begins with it.
fn addresses(rows: &[EndpointRow], wanted: &str) -> Result<BTreeSet<IpAddr>> {
    let of = |is: &dyn Fn(&&EndpointRow) -> bool| rows.iter().filter(is).collect::<Vec<_>>();
    let mut own = of(&|row| row.container == wanted);
    if own.is_empty() && !wanted.is_empty() {
        own = of(&|row| row.id.starts_with(wanted));
    }
    ensure!(
        !own.is_empty(),
        "no container on a bridge network has the name {wanted} or an id that begins with it: see \
         `forwarder endpoints`"
    );
    let ids: BTreeSet<_> = own.iter().map(|row| &row.id).collect();
    ensure!(
        ids.len() == 1,
        "the ids of {} containers begin with {wanted}: give more characters of the id",
        ids.len()
    );
    Ok(own.iter().filter_map(|row| row.address).collect())
}

/// Parses a range, or a single address.
fn net(text: &str) -> Result<IpNet, String> {
    range(text).ok_or_else(|| "neither an address range nor an address".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(container: &str, id: &str, last: u8) -> EndpointRow {
        EndpointRow {
            network: "bridge".to_owned(),
            container: container.to_owned(),
            id: id.to_owned(),
            address: Some([172, 17, 0, last].into()),
            mac: None,
            veth: None,
            hooked: true,
        }
    }

    /// A container is named by its name or by the beginning of its ID.
    #[test]
    fn container_is_named_by_name_or_id_prefix() {
        let rows = [
            row("web", "aa11", 2),
            row("web", "aa11", 3),
            row("aa", "bb22", 4),
            row("app", "aa33", 5),
        ];
        let last = |wanted: &str| {
            addresses(&rows, wanted).map(|all| {
                let octet = |address: &IpAddr| match address {
                    IpAddr::V4(address) => address.octets()[3],
                    IpAddr::V6(_) => 0,
                };
                all.iter().map(octet).collect::<Vec<_>>()
            })
        };
        assert_eq!(last("web").unwrap(), [2, 3]);
        assert_eq!(last("aa1").unwrap(), [2, 3]);
        assert_eq!(last("aa").unwrap(), [4], "a name comes before ids");
        let several = last("a").unwrap_err().to_string();
        assert!(several.contains("2 containers"), "{several}");
        for unknown in ["we", "cc", ""] {
            let none = last(unknown).unwrap_err().to_string();
            assert!(none.contains("forwarder endpoints"), "{none}");
        }
    }

    #[test]
    fn address_is_a_range_of_one() {
        assert_eq!(net("198.18.1.2").unwrap().to_string(), "198.18.1.2/32");
        assert_eq!(net("198.18.0.0/15").unwrap().prefix_len(), 15);
        assert!(net("web").is_err() && net("198.18.1.2/33").is_err());
    }
}
