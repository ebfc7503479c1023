// SPDX-License-Identifier: MIT OR Apache-2.0
//! The address family as a type parameter, and integers in wire order.

use core::fmt::Debug;
use core::hash::Hash;

use bytemuck::{Pod, Zeroable};

/// A 16-bit integer in wire order: a port, an ICMP identifier, a checksum.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Pod, Zeroable)]
pub struct Be16(u16);

impl Be16 {
    /// From a host-order value.
    #[inline(always)]
    #[must_use]
    pub const fn new(value: u16) -> Self {
        Self(value.to_be())
    }

    /// The host-order value.
    #[inline(always)]
    #[must_use]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// The 16 bits as they lie in memory, for checksum arithmetic (RFC 1071 is order-neutral).
    #[inline(always)]
    #[must_use]
    pub const fn word(self) -> u16 {
        self.0
    }

    /// From 16 bits as they lie in memory.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u16) -> Self {
        Self(word)
    }
}

/// A 32-bit integer in wire order: an IPv4 address.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Pod, Zeroable)]
pub struct Be32(u32);

impl Be32 {
    /// From a host-order value.
    #[inline(always)]
    #[must_use]
    pub const fn new(value: u32) -> Self {
        Self(value.to_be())
    }

    /// From four bytes as on the wire.
    #[inline(always)]
    #[must_use]
    pub const fn from_octets(octets: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(octets))
    }

    /// The four bytes as on the wire.
    #[inline(always)]
    #[must_use]
    pub const fn octets(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }

    /// The host-order value.
    #[inline(always)]
    #[must_use]
    pub const fn get(self) -> u32 {
        u32::from_be(self.0)
    }

    /// The 32 bits as they lie in memory, for checksums and kernel structures.
    #[inline(always)]
    #[must_use]
    pub const fn word(self) -> u32 {
        self.0
    }

    /// From 32 bits as they lie in memory.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u32) -> Self {
        Self(word)
    }
}

/// A 128-bit integer in wire order: an IPv6 address.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Pod, Zeroable)]
pub struct Be128([Be32; 4]);

impl Be128 {
    /// The unspecified address, `::`.
    pub const ANY: Self = Self([Be32::new(0); 4]);

    /// From sixteen bytes as on the wire.
    #[must_use]
    pub const fn from_octets(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Self([
            Be32::from_octets([a, b, c, d]),
            Be32::from_octets([e, f, g, h]),
            Be32::from_octets([i, j, k, l]),
            Be32::from_octets([m, n, o, p]),
        ])
    }

    /// The sixteen bytes as on the wire.
    #[must_use]
    pub fn octets(self) -> [u8; 16] {
        bytemuck::cast(self)
    }

    /// From four words in wire order.
    #[inline(always)]
    #[must_use]
    pub const fn from_words(words: Wide) -> Self {
        Self(words)
    }

    /// The four words as they lie in memory, for kernel structures.
    #[inline(always)]
    #[must_use]
    pub fn words(self) -> [u32; 4] {
        self.0.map(Be32::word)
    }

    /// Whether it is in fe80::/10 (RFC 4291 section 2.5.6).
    #[inline(always)]
    #[must_use]
    pub fn is_link_local(self) -> bool {
        self.0[0].get() >> 22 == 0xfe80_0000 >> 22
    }

    /// Whether it is in ff00::/8 (RFC 4291 section 2.7).
    #[inline(always)]
    #[must_use]
    pub fn is_multicast(self) -> bool {
        self.0[0].get() >> 24 == 0xff
    }

    /// The link-local address that is derived from a MAC address (RFC 4291 appendix A).
    #[must_use]
    pub const fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Self {
        Self([
            Be32::new(0xfe80_0000),
            Be32::new(0),
            Be32::from_octets([a ^ 2, b, c, 0xff]),
            Be32::from_octets([0xfe, d, e, f]),
        ])
    }
}

/// An address of either family as four words in wire order.
pub type Wide = [Be32; 4];

/// The prefix of IPv4-mapped addresses, `::ffff:0:0/96`.
const MAPPED: [Be32; 3] = [Be32::new(0), Be32::new(0), Be32::new(0xffff)];

/// The address operations that the packet logic needs.
pub trait Address: Copy + Eq + Ord + Hash + Debug + Default + Pod {
    /// `0.0.0.0` or `::`, which in a published port stands for any address of the host.
    const ANY: Self;

    /// `127.0.0.1` or `::1`.
    const LOOPBACK: Self;

    /// The address as an IPv6 socket has it: an IPv4 address is mapped (`::ffff:…`, RFC 4291
    /// section 2.5.5.2).
    fn widen(self) -> Wide;

    /// The address of this family from which [`Self::widen`] makes `wide`.
    fn narrow(wide: Wide) -> Option<Self>;

    /// The unfolded ones' complement sum of the address's 16-bit words (RFC 1071).
    fn sum(self) -> u32;

    /// Whether it is in 127.0.0.0/8, or `::1`.
    fn is_loopback(self) -> bool;

    /// Whether it is a multicast, limited broadcast or "this network" address: the kernel never
    /// forwards to those.
    fn is_unroutable(self) -> bool;

    /// Whether it is reserved (240.0.0.0/4): never a valid source.
    fn is_reserved(self) -> bool;

    /// A placeholder address that belongs to nobody, and the part of this address that the
    /// placeholder does not contain: 28 bits at most. Two addresses of one host must not get the
    /// same placeholder.
    fn encode_placeholder(self) -> (Self, u32);

    /// The address that [`encode_placeholder`](Self::encode_placeholder) replaced.
    fn decode_placeholder(self, rest: u32) -> Self;

    /// A hash of the address for small tables; an attacker can predict it.
    fn mix(self) -> u32;
}

impl Address for Be32 {
    const ANY: Self = Self(0);
    const LOOPBACK: Self = Self::from_octets([127, 0, 0, 1]);

    #[inline(always)]
    fn widen(self) -> Wide {
        [MAPPED[0], MAPPED[1], MAPPED[2], self]
    }

    #[inline(always)]
    fn narrow(wide: Wide) -> Option<Self> {
        let [first, second, third, address] = wide;
        ([first, second, third] == MAPPED).then_some(address)
    }

    #[inline(always)]
    fn sum(self) -> u32 {
        (self.0 & 0xffff) + (self.0 >> 16)
    }

    #[inline(always)]
    fn is_loopback(self) -> bool {
        self.get() >> 24 == 127
    }

    #[inline(always)]
    fn is_unroutable(self) -> bool {
        let address = self.get();
        address >> 24 == 0 || address >> 28 == 0xe || address == u32::MAX
    }

    #[inline(always)]
    fn is_reserved(self) -> bool {
        self.get() >> 28 == 0xf
    }

    /// In 0.0.0.0/8, where no host is (RFC 1122 section 3.2.1.3) but which Linux routes. The
    /// complement, because an address may end in zero bits, but none ends in that many one bits.
    #[inline(always)]
    fn encode_placeholder(self) -> (Self, u32) {
        let address = self.get();
        (Self::new(!address & 0x00ff_ffff), address >> 24)
    }

    #[inline(always)]
    fn decode_placeholder(self, rest: u32) -> Self {
        Self::new(rest << 24 | !self.get() & 0x00ff_ffff)
    }

    #[inline(always)]
    fn mix(self) -> u32 {
        self.0.wrapping_mul(0x9e37_79b1)
    }
}

/// An address family. Everything that depends on it is generic over it.
pub trait Family: Copy + Eq + Ord + Hash + Debug + Default + 'static {
    /// The family's address.
    type Addr: Address;

    /// The Ethernet type in host order.
    const ETHERTYPE: u16;

    /// The protocol number of ICMP or ICMPv6.
    const ICMP: u8;
}

/// The address of a family, also where the family is a type alias.
pub type Addr<F> = <F as Family>::Addr;

/// IPv4 (RFC 791).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct V4;

impl Family for V4 {
    type Addr = Be32;
    const ETHERTYPE: u16 = 0x0800;
    const ICMP: u8 = 1;
}
