//! Boundaries that hold: what hostile containers, machines of the LAN and users of the host try.

mod claims;
mod ipsec;
mod marks;
mod rules;
mod shaping;
mod users;
