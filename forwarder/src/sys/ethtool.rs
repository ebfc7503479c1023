// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's ethtool netlink interface, as far as a device's GRO switch needs it.
//!
//! It is written by hand: the ioctl needs `unsafe`, the program may be missing, and there are only
//! two messages.
use anyhow::{Context, Result, bail};
use rtnetlink::sys::protocols::NETLINK_GENERIC;
use rtnetlink::sys::{Socket, SocketAddr};

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const NESTED: u16 = 0x8000;
/// The size of a netlink header and the generic header after it.
const HEADERS: usize = 20;

const CONTROLLER: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const FEATURES_GET: u8 = 11;
const FEATURES_SET: u8 = 12;
const FEATURES_HEADER: u16 = 1;
const FEATURES_WANTED: u16 = 3;
const FEATURES_ACTIVE: u16 = 4;
const HEADER_DEV_INDEX: u16 = 1;
const BITSET_BITS: u16 = 3;
const BITS_BIT: u16 = 1;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;
const GRO: &[u8] = b"rx-gro\0";

/// A socket for the network namespace of the thread that opened it.
pub(super) struct Ethtool {
    socket: Socket,
    family: u16,
}

impl Ethtool {
    /// Opens the socket and looks up the family.
    pub(super) fn open() -> Result<Self> {
        let mut socket =
            Socket::new(NETLINK_GENERIC).context("cannot open a generic netlink socket")?;
        socket
            .bind_auto()
            .context("cannot bind a generic netlink socket")?;
        let name = attribute(CTRL_ATTR_FAMILY_NAME, b"ethtool\0");
        let answer = ask(&socket, CONTROLLER, CTRL_CMD_GETFAMILY, 0, &name)
            .context("this kernel has no ethtool netlink")?;
        let id = find(&answer, CTRL_ATTR_FAMILY_ID).and_then(|value| value.first_chunk().copied());
        let family = u16::from_ne_bytes(id.context("the kernel gives no id for ethtool netlink")?);
        Ok(Self { socket, family })
    }

    /// Turns GRO of device `index` on or off; returns the previous state.
    pub(super) fn set_gro(&self, index: u32, on: bool) -> Result<bool> {
        let device = attribute(
            FEATURES_HEADER | NESTED,
            &attribute(HEADER_DEV_INDEX, &index.to_ne_bytes()),
        );
        let features = ask(&self.socket, self.family, FEATURES_GET, 0, &device)
            .with_context(|| format!("cannot read the features of device {index}"))?;
        let was = is_active(&features, GRO);
        if was != on {
            let bit = attribute(
                BITS_BIT | NESTED,
                &[attribute(BIT_NAME, GRO), flag(BIT_VALUE, on)].concat(),
            );
            let wanted = attribute(
                FEATURES_WANTED | NESTED,
                &attribute(BITSET_BITS | NESTED, &bit),
            );
            ask(
                &self.socket,
                self.family,
                FEATURES_SET,
                NLM_F_ACK,
                &[device, wanted].concat(),
            )
            .with_context(|| format!("cannot switch GRO of device {index}"))?;
        }
        Ok(was)
    }
}

/// Sends one request and returns the attributes of the answer (none for an acknowledgement).
fn ask(
    socket: &Socket,
    family: u16,
    command: u8,
    flags: u16,
    attributes: &[u8],
) -> Result<Vec<u8>> {
    let mut request = Vec::with_capacity(HEADERS + attributes.len());
    request.extend(u32::try_from(HEADERS + attributes.len())?.to_ne_bytes());
    request.extend(family.to_ne_bytes());
    request.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    request.extend([0; 8]);
    request.extend([command, 1, 0, 0]);
    request.extend(attributes);
    socket.send_to(&request, &SocketAddr::new(0, 0), 0)?;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        let header = answer
            .first_chunk::<HEADERS>()
            .context("a netlink answer is truncated")?;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        if kind == NLMSG_ERROR {
            match i32::from_ne_bytes([header[16], header[17], header[18], header[19]]) {
                0 => return Ok(Vec::new()),
                code => return Err(std::io::Error::from_raw_os_error(-code).into()),
            }
        }
        if kind != family {
            bail!("a netlink answer is of an unknown kind ({kind})");
        }
        // The kernel first answers with the other features that it changed; only the
        // acknowledgement is the end.
        if flags & NLM_F_ACK == 0 {
            return Ok(answer[HEADERS..].to_vec());
        }
    }
}

/// Whether the list of active features holds `name` (the list names only features that are on).
fn is_active(features: &[u8], name: &[u8]) -> bool {
    let bits = find(features, FEATURES_ACTIVE).and_then(|set| find(set, BITSET_BITS));
    bits.is_some_and(|bits| each(bits).any(|(_, bit)| find(bit, BIT_NAME) == Some(name)))
}

fn flag(kind: u16, on: bool) -> Vec<u8> {
    if on { attribute(kind, &[]) } else { Vec::new() }
}

/// Builds an attribute: length, kind, value, padding to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    // Our attributes are a few bytes long; the length field has 16 bits.
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn find(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    each(attributes)
        .find(|(k, _)| *k == kind)
        .map(|(_, value)| value)
}

/// Returns the attributes in order, up to the first malformed one.
fn each(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [l0, l1, k0, k1] = *bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & !NESTED, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Attributes survive encoding and decoding, and reading stops at garbage.
    #[test]
    fn attributes_round_trip_and_stop_at_garbage() {
        let mut bytes = [
            attribute(2 | NESTED, &attribute(1, b"abc")),
            attribute(7, &[]),
        ]
        .concat();
        assert_eq!(
            find(&bytes, 2).and_then(|inner| find(inner, 1)),
            Some(&b"abc"[..])
        );
        assert_eq!(find(&bytes, 7), Some(&b""[..]));
        bytes.extend([3, 0, 9, 0]);
        assert_eq!(each(&bytes).count(), 2, "a length below four ends the walk");
    }

    #[test]
    fn feature_is_active_when_listed() {
        let bit = |name: &[u8]| attribute(BITS_BIT | NESTED, &attribute(BIT_NAME, name));
        let set = |bits: &[u8]| {
            attribute(
                FEATURES_ACTIVE | NESTED,
                &attribute(BITSET_BITS | NESTED, bits),
            )
        };
        assert!(is_active(&set(&[bit(b"rx-lro\0"), bit(GRO)].concat()), GRO));
        assert!(!is_active(&set(&bit(b"rx-gro-hw\0")), GRO));
        assert!(!is_active(&[], GRO));
    }
}
