// SPDX-License-Identifier: MIT OR Apache-2.0
//! A network header of either family, and how it is read and rewritten.

use crate::family::{Be16, Family};
use crate::reason::Reason;
use crate::wire::frame::Frame;

/// A network header of either family.
#[derive(Clone, Copy, Debug)]
pub struct Header<F: Family> {
    /// Source address.
    pub src: F::Addr,
    /// Destination address.
    pub dst: F::Addr,
    /// The transport's protocol number.
    pub proto: u32,
    /// Offset of the transport header from the frame's start.
    pub l4: usize,
    /// The packet's length from its network header on; 0 for a GSO packet that is longer than the
    /// field allows (Linux' BIG TCP).
    pub len: u16,
    /// The remaining hop limit (TTL).
    pub hops: u8,
    /// Whether there are options or extension headers.
    pub options: bool,
    /// Whether the packet is a fragment.
    pub fragment: bool,
    /// Whether it is a later fragment, which has no transport header.
    pub later_fragment: bool,
    /// The identification field: which datagram a fragment belongs to.
    pub id: Be16,
    /// The fragment offset, in bytes.
    pub offset: u16,
    /// Whether more fragments follow.
    pub more: bool,
}

/// How the network header of a family is read and rewritten.
pub trait Ip: Family {
    /// Parses the network header at `l3`.
    ///
    /// # Errors
    /// [`Reason::Truncated`] if the bytes are not in the frame, [`Reason::Malformed`] if they are
    /// not a valid header.
    fn header(frame: &Frame<'_>, l3: usize) -> Result<Header<Self>, Reason>;

    /// Whether the checksum of the network header at `l3`, which has no options, is correct. The
    /// kernel's stack checks it for each packet, so it has to be checked here for packets that are
    /// redirected past the stack.
    fn is_intact(frame: &Frame<'_>, l3: usize) -> bool;

    /// Writes new addresses into the network header at `l3`, decrements its hop limit if `hop`, and
    /// updates the header checksum. Returns `false` and writes nothing if the header is not in the
    /// frame.
    fn readdress(
        frame: &mut Frame<'_>,
        l3: usize,
        src: Self::Addr,
        dst: Self::Addr,
        hop: bool,
    ) -> bool;

    /// Increments the hop limit in the network header at `l3`, unless it is at its maximum. Returns
    /// `false` if the header is not in the frame.
    fn lift(frame: &mut Frame<'_>, l3: usize) -> bool;

    /// Bytes that [`Self::prohibit`] writes.
    const REFUSAL: usize;

    /// Writes the headers of an ICMP error "administratively prohibited" at `l3`, before the
    /// `quoted` bytes of the packet that it answers. Returns `false` if the headers are not in the
    /// frame.
    fn prohibit(frame: &mut Frame<'_>, l3: usize, from: Self::Addr, quoted: u8) -> bool;
}
