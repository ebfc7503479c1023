//! Boundaries that hold: what hostile containers, machines of the LAN and users of the host try.

mod claims;
mod ipv6;
mod users;
