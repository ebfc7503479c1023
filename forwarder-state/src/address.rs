// SPDX-License-Identifier: MIT OR Apache-2.0
//! Addresses and ranges of either family, from the standard library's types to wire order.

use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use forwarder_common::family::{Be32, Be128};
use ipnet::IpNet;

/// An address in wire order, as the tables hold it.
pub trait WireAddress: Copy + Ord + Debug + Default {
    /// The standard library's address of the same family.
    type Std: Copy;

    /// The number of bits of an address.
    const BITS: u8;

    /// Returns an address in wire order.
    #[must_use]
    fn from_std(address: Self::Std) -> Self;

    /// Returns the address if it is of this family.
    #[must_use]
    fn of(address: IpAddr) -> Option<Self>;

    /// Returns the address as the standard library has it.
    #[must_use]
    fn ip(self) -> IpAddr;

    /// Returns the first `len` bits; all others are zero.
    #[must_use]
    fn prefix(self, len: u8) -> Self;

    /// Returns the address and the prefix length of a range if it is of this family. Host bits are
    /// zero.
    #[must_use]
    fn range(address: IpAddr, len: u8) -> Option<(Self, u8)> {
        let len = len.min(Self::BITS);
        Some((Self::of(address)?.prefix(len), len))
    }

    /// Returns the same of a parsed range.
    #[must_use]
    fn of_net(net: &IpNet) -> Option<(Self, u8)> {
        Self::range(net.network(), net.prefix_len())
    }
}

impl WireAddress for Be32 {
    type Std = Ipv4Addr;
    const BITS: u8 = 32;

    fn from_std(address: Ipv4Addr) -> Self {
        Self::from_octets(address.octets())
    }

    fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(address) => Some(Self::from_std(address)),
            IpAddr::V6(_) => None,
        }
    }

    fn ip(self) -> IpAddr {
        self.octets().into()
    }

    fn prefix(self, len: u8) -> Self {
        let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
        Self::new(self.get() & mask)
    }
}

impl WireAddress for Be128 {
    type Std = Ipv6Addr;
    const BITS: u8 = 128;

    fn from_std(address: Ipv6Addr) -> Self {
        Self::from_octets(address.octets())
    }

    fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V6(address) => Some(Self::from_std(address)),
            IpAddr::V4(_) => None,
        }
    }

    fn ip(self) -> IpAddr {
        self.octets().into()
    }

    fn prefix(self, len: u8) -> Self {
        let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
        Self::from_octets((u128::from_be_bytes(self.octets()) & mask).to_be_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_survives_both_conversions() {
        for text in ["198.18.1.2", "2001:db8::9"] {
            let ip: IpAddr = text.parse().unwrap();
            let back = (Be32::of(ip).map(Be32::ip), Be128::of(ip).map(Be128::ip));
            let of_family = (ip.is_ipv4().then_some(ip), ip.is_ipv6().then_some(ip));
            assert_eq!(back, of_family);
        }
    }

    #[test]
    fn range_has_no_host_bits() {
        let v4 = |text: &str, len| Be32::range(text.parse().unwrap(), len);
        let v6 = |text: &str, len| Be128::range(text.parse().unwrap(), len);
        let be32 = |text: &str| Be32::of(text.parse().unwrap()).unwrap();
        let be128 = |text: &str| Be128::of(text.parse().unwrap()).unwrap();
        assert_eq!(v4("172.17.9.9", 16), Some((be32("172.17.0.0"), 16)));
        assert_eq!(v4("172.17.9.9", 99), Some((be32("172.17.9.9"), 32)));
        assert_eq!(v4("172.17.9.9", 0), Some((Be32::default(), 0)));
        assert_eq!(v6("2001:db8::9", 32), Some((be128("2001:db8::"), 32)));
        assert_eq!(v6("2001:db8::9", 255), Some((be128("2001:db8::9"), 128)));
        assert_eq!(v6("2001:db8::9", 0), Some((Be128::ANY, 0)));
        assert_eq!((v4("::1", 128), v6("127.0.0.1", 8)), (None, None));
    }
}
