// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's ethtool netlink interface, as far as a device's GRO switch needs it.
//!
//! The ioctl needs `unsafe`, the program may be missing, and the crate `ethtool` reads features but
//! does not set them.
use anyhow::{Context, Result};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use rtnetlink::packet_core::{
    DecodeError, DefaultNla, Emitable, NLA_F_NESTED, NLA_HEADER_SIZE, NLM_F_ACK, NlasIterator,
    ParseableParametrized,
};

use super::netlink::{Requests, protocols};

const FAMILY: &str = "ethtool";
// linux/ethtool_netlink.h.
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
    requests: Requests,
    family: u16,
}

impl Ethtool {
    /// Opens the socket and looks up the family.
    pub(super) fn open() -> Result<Self> {
        let requests = Requests::open(protocols::NETLINK_GENERIC)
            .context("cannot open a generic netlink socket")?;
        let mut family = None;
        let question = GenlMessage::from_payload(GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName(FAMILY.into())],
        });
        let take = |answer: GenlMessage<GenlCtrl>| {
            family = answer.payload.nlas.iter().find_map(|nla| match nla {
                GenlCtrlAttrs::FamilyId(id) => Some(*id),
                _ => None,
            });
        };
        requests
            .ask(question, NLM_F_ACK, take)
            .context("this kernel has no ethtool netlink")?;
        let family = family.context("the kernel gives no id for ethtool netlink")?;
        Ok(Self { requests, family })
    }

    /// Turns GRO of device `index` on or off; returns the previous state.
    pub(super) fn set_gro(&self, index: u32, on: bool) -> Result<bool> {
        let device = || {
            let index = DefaultNla::new(HEADER_DEV_INDEX, index.to_ne_bytes().into());
            nested(FEATURES_HEADER, &[index])
        };
        let was = self
            .ask(FEATURES_GET, &[device()])
            .with_context(|| format!("cannot read the features of device {index}"))?;
        if was != on {
            let mut bit = vec![DefaultNla::new(BIT_NAME, GRO.into())];
            bit.extend(on.then(|| DefaultNla::new(BIT_VALUE, Vec::new())));
            let bits = nested(BITSET_BITS, &[nested(BITS_BIT, &bit)]);
            // The kernel also reports the other features that it changed.
            self.ask(FEATURES_SET, &[device(), nested(FEATURES_WANTED, &[bits])])
                .with_context(|| format!("cannot switch GRO of device {index}"))?;
        }
        Ok(was)
    }

    /// Sends a request; returns whether the kernel's answer lists GRO as active.
    fn ask(&self, command: u8, attributes: &[DefaultNla]) -> Result<bool> {
        let mut active = false;
        let payload = Features {
            command,
            attributes: bytes(attributes),
        };
        let mut request = GenlMessage::from_payload(payload);
        request.set_resolved_family_id(self.family);
        let take = |answer: GenlMessage<Features>| {
            active |= is_active(&answer.payload.attributes, GRO);
        };
        self.requests.ask(request, NLM_F_ACK, take)?;
        Ok(active)
    }
}

/// A message about features.
#[derive(Debug)]
struct Features {
    command: u8,
    attributes: Vec<u8>,
}

impl GenlFamily for Features {
    fn family_name() -> &'static str {
        FAMILY
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Features {
    fn buffer_len(&self) -> usize {
        self.attributes.len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.attributes);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Features {
    fn parse_with_param(bytes: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        Ok(Self {
            command: header.cmd,
            attributes: bytes.to_owned(),
        })
    }
}

/// Whether the list of active features holds `name` (the list names only features that are on).
fn is_active(features: &[u8], name: &[u8]) -> bool {
    let bits = find(features, FEATURES_ACTIVE).and_then(|set| find(set, BITSET_BITS));
    bits.is_some_and(|bits| each(bits).any(|(_, bit)| find(bit, BIT_NAME) == Some(name)))
}

fn nested(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    DefaultNla::new(kind | NLA_F_NESTED, bytes(attributes))
}

fn bytes(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

fn find(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    each(attributes)
        .find(|(k, _)| *k == kind)
        .map(|(_, value)| value)
}

/// Returns the attributes in order, up to the first malformed one.
fn each(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let whole = NlasIterator::new(bytes).map_while(Result::ok);
    whole.map(|attribute| {
        let (kind, length) = (attribute.kind(), usize::from(attribute.length()));
        (kind, &attribute.into_inner()[NLA_HEADER_SIZE..length])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> DefaultNla {
        DefaultNla::new(kind, value.to_owned())
    }

    /// Attributes survive encoding and decoding, and reading stops at garbage.
    #[test]
    fn attributes_round_trip_and_stop_at_garbage() {
        let inner = nested(2, &[attribute(1, b"abc")]);
        let mut bytes = bytes(&[inner, attribute(7, &[])]);
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
        let bit = |name: &[u8]| nested(BITS_BIT, &[attribute(BIT_NAME, name)]);
        let set = |bits: &[DefaultNla]| {
            let active = nested(FEATURES_ACTIVE, &[nested(BITSET_BITS, bits)]);
            bytes(&[active])
        };
        assert!(is_active(&set(&[bit(b"rx-lro\0"), bit(GRO)]), GRO));
        assert!(!is_active(&set(&[bit(b"rx-gro-hw\0")]), GRO));
        assert!(!is_active(&[], GRO));
    }
}
