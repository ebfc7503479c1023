// SPDX-License-Identifier: MIT OR Apache-2.0
//! A port of the host, as Docker names it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A transport protocol that ports can be published for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl FromStr for Proto {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Ok(match name {
            "tcp" => Self::Tcp,
            "udp" => Self::Udp,
            "sctp" => Self::Sctp,
            _ => return Err(()),
        })
    }
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// A port of the host: it belongs to at most one container at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// Protocol.
    pub proto: Proto,
    /// The host's address; unspecified means any local address of its family.
    pub ip: IpAddr,
    /// The port, in host byte order.
    pub port: u16,
}

impl HostPort {
    /// Whether a socket bound to one of the ports prevents binding the other.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let same_address =
            self.ip == other.ip || self.ip.is_unspecified() || other.ip.is_unspecified();
        (self.proto, self.port) == (other.proto, other.port)
            && self.ip.is_ipv4() == other.ip.is_ipv4()
            && same_address
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", SocketAddr::new(self.ip, self.port), self.proto)
    }
}
