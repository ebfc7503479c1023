//! Boundaries that hold: what hostile containers, machines of the LAN and users of the host try.

mod claims;
mod host;
mod ipsec;
mod ipv6;
mod marks;
mod routes;
mod rules;
mod shaping;
mod users;
