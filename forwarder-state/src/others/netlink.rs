// SPDX-License-Identifier: MIT OR Apache-2.0
//! Parsing of the kernel's answers about qdiscs, filters, routing rules and IPsec policies
//! (`linux/rtnetlink.h`, `pkt_sched.h`, `fib_rules.h`, `xfrm.h`).

use std::net::Ipv4Addr;

use super::{Direction, IpsecPolicy, Range};
use crate::desired_state::Hook;

/// Qdiscs that send packets as fast as the device accepts them.
const HARMLESS: [&str; 9] = [
    "noop",
    "noqueue",
    "pfifo_fast",
    "pfifo",
    "bfifo",
    "fq",
    "fq_codel",
    "mq",
    "mqprio",
];

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Returns the attributes of a message, by type.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let body = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        // The two upper bits are flags.
        Some((kind & 0x3fff, body))
    })
}

fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(kind, _)| *kind == wanted)
        .map(|(_, body)| body)
}

fn text(bytes: &[u8]) -> String {
    let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// The size of `struct tcmsg`, and in it the offsets of the device's index and the handle;
/// `TCA_KIND`, `TCA_OPTIONS`.
const TC: usize = 20;
const TC_INDEX: usize = 4;
const TC_HANDLE: usize = 8;
const TC_KIND: u16 = 1;
const TC_OPTIONS: u16 = 2;
/// `TCA_BPF_NAME`.
const BPF_NAME: u16 = 7;

/// The kind of a qdisc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Qdisc {
    /// It delays, drops or orders packets that leave.
    Shapes(String),
    /// It has filters for packets that arrive.
    Filters {
        /// Whether it also has filters for packets that leave.
        both: bool,
    },
}

/// Parses a qdisc that matters, and its device's index (`RTM_NEWQDISC`).
#[must_use]
pub fn qdisc(message: &[u8]) -> Option<(u32, Qdisc)> {
    let index = word(message, TC_INDEX)?;
    let kind = text(attribute(message.get(TC..)?, TC_KIND)?);
    match kind.as_str() {
        "ingress" => Some((index, Qdisc::Filters { both: false })),
        "clsact" => Some((index, Qdisc::Filters { both: true })),
        kind if HARMLESS.contains(&kind) => None,
        _ => Some((index, Qdisc::Shapes(kind))),
    }
}

/// Parses the name of a filter that is not ours (`RTM_NEWTFILTER`). The kernel first lists the
/// common part of all filters of a priority, without a handle; that part is ignored.
#[must_use]
pub fn filter(message: &[u8]) -> Option<String> {
    if word(message, TC_HANDLE)? == 0 {
        return None;
    }
    let attributes = message.get(TC..)?;
    let kind = text(attribute(attributes, TC_KIND)?);
    let name = attribute(attributes, TC_OPTIONS)
        .and_then(|options| attribute(options, BPF_NAME))
        .map(text);
    let ours = kind == "bpf"
        && name
            .as_deref()
            .is_some_and(|name| Hook::named(name).is_some());
    (!ours).then(|| format!("a filter ({kind})"))
}

/// The size of `struct fib_rule_hdr`, and in it the offsets of the type of service and the flags;
/// and its attributes.
const RULE: usize = 12;
const RULE_TOS: usize = 3;
const RULE_FLAGS: usize = 8;
const RULE_PRIORITY: u16 = 6;
const RULE_MARK: u16 = 10;
const RULE_MASK: u16 = 16;
/// `FIB_RULE_INVERT`.
const INVERT: u32 = 2;

/// Parses a routing rule that `bpf_fib_lookup` does not apply, in words (`RTM_NEWRULE`): a rule by
/// mark or by type of service. An inverted rule (`not fwmark`) is ignored: it matches packets
/// without a mark, and `bpf_fib_lookup` has no mark.
#[must_use]
pub fn routing_rule(message: &[u8]) -> Option<String> {
    let attributes = message.get(RULE..)?;
    let number = |kind| attribute(attributes, kind).and_then(|body| word(body, 0));
    let inverted = word(message, RULE_FLAGS)? & INVERT != 0;
    let tos = *message.get(RULE_TOS)?;
    let mark = number(RULE_MARK).unwrap_or_default();
    if inverted || mark == 0 && tos == 0 {
        return None;
    }
    let priority = number(RULE_PRIORITY).unwrap_or_default();
    Some(if mark == 0 {
        format!("{priority}: tos {tos:#x}")
    } else {
        let mask = number(RULE_MASK).unwrap_or(u32::MAX);
        format!("{priority}: fwmark {mark:#x}/{mask:#x}")
    })
}

/// Offsets in `struct xfrm_userpolicy_info`: first its selector, then lifetimes.
const SELECTOR_DST: usize = 0;
const SELECTOR_SRC: usize = 16;
const SELECTOR_FAMILY: usize = 40;
const SELECTOR_DST_LEN: usize = 42;
const SELECTOR_SRC_LEN: usize = 43;
const POLICY_DIRECTION: usize = 160;
const POLICY_ACTION: usize = 161;
/// The size of `struct xfrm_userpolicy_info`.
const POLICY: usize = 168;
/// `XFRMA_TMPL`.
const TEMPLATES: u16 = 5;
const IPV4: u16 = 2;

/// Parses an IPsec policy for forwarded packets (`XFRM_MSG_NEWPOLICY`). Policies of sockets and for
/// incoming packets are ignored.
#[must_use]
pub fn policy(message: &[u8]) -> Option<IpsecPolicy> {
    let family = u16::from_ne_bytes(*message.get(SELECTOR_FAMILY..)?.first_chunk()?);
    let direction = match message.get(POLICY_DIRECTION)? {
        1 => Direction::Out,
        2 => Direction::Forward,
        _ => return None,
    };
    if family != IPV4 && family != 0 {
        return None;
    }
    let range = |at: usize, len: usize| -> Option<Range> {
        let octets: [u8; 4] = *message.get(at..)?.first_chunk()?;
        let len = if family == 0 { 0 } else { *message.get(len)? };
        Some((Ipv4Addr::from(octets), len))
    };
    let blocks = *message.get(POLICY_ACTION)? != 0;
    let demands = attribute(message.get(POLICY..)?, TEMPLATES).is_some();
    Some(IpsecPolicy {
        direction,
        src: range(SELECTOR_SRC, SELECTOR_SRC_LEN)?,
        dst: range(SELECTOR_DST, SELECTOR_DST_LEN)?,
        restricts: blocks || demands,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds a netlink attribute.
    fn attribute(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut all = (body.len() as u16 + 4).to_ne_bytes().to_vec();
        all.extend(kind.to_ne_bytes());
        all.extend(body);
        all.resize(all.len().next_multiple_of(4), 0);
        all
    }

    /// Builds a message about device 7 with a handle.
    fn tc(handle: u32, kind: &[u8], options: &[u8]) -> Vec<u8> {
        let mut message = vec![0; TC];
        message[TC_INDEX] = 7;
        message[TC_HANDLE..TC_HANDLE + 4].copy_from_slice(&handle.to_ne_bytes());
        message.extend(attribute(TC_KIND, kind));
        message.extend(attribute(TC_OPTIONS, options));
        message
    }

    #[test]
    fn our_filters_are_not_foreign() {
        let named = |name: &[u8]| tc(1, b"bpf\0", &attribute(BPF_NAME, name));
        assert_eq!(filter(&named(b"outside_in\0")), None);
        assert_eq!(filter(&tc(0, b"bpf\0", &[])), None, "what all of them have");
        let theirs = Some("a filter (bpf)".to_owned());
        assert_eq!(filter(&named(b"cil_from_netdev\0")), theirs);
        let u32 = filter(&tc(0x8000_0800, b"u32\0", &[]));
        assert_eq!(u32.as_deref(), Some("a filter (u32)"));
    }

    #[test]
    fn only_shaping_qdiscs_shape() {
        for harmless in [&b"noqueue\0"[..], b"fq_codel\0", b"mq\0"] {
            assert_eq!(qdisc(&tc(0, harmless, &[])), None);
        }
        let tbf = Qdisc::Shapes("tbf".to_owned());
        assert_eq!(qdisc(&tc(0, b"tbf\0", &[])), Some((7, tbf)));
        let both = Qdisc::Filters { both: true };
        assert_eq!(qdisc(&tc(0, b"clsact\0", &[])), Some((7, both)));
    }

    #[test]
    fn rules_by_mark_are_found() {
        let rule = |flags: u32| {
            let mut message = vec![0; RULE];
            message[RULE_FLAGS..].copy_from_slice(&flags.to_ne_bytes());
            for (kind, word) in [(RULE_PRIORITY, 9_u32), (RULE_MARK, 7), (RULE_MASK, 255)] {
                message.extend(attribute(kind, &word.to_ne_bytes()));
            }
            message
        };
        let found = routing_rule(&rule(0));
        assert_eq!(found.as_deref(), Some("9: fwmark 0x7/0xff"));
        assert_eq!(routing_rule(&rule(INVERT)), None);
        assert_eq!(routing_rule(&[0; RULE]), None);
    }

    #[test]
    fn policies_are_read() {
        let mut message = vec![0; POLICY];
        message[SELECTOR_DST..4].copy_from_slice(&[10, 1, 0, 0]);
        message[SELECTOR_SRC..SELECTOR_SRC + 4].copy_from_slice(&[172, 17, 0, 0]);
        message[SELECTOR_FAMILY..SELECTOR_FAMILY + 2].copy_from_slice(&IPV4.to_ne_bytes());
        (message[SELECTOR_DST_LEN], message[SELECTOR_SRC_LEN]) = (24, 16);
        message[POLICY_DIRECTION] = 1;
        let read = policy(&message).unwrap();
        assert_eq!(read.words(), "src 172.17.0.0/16 dst 10.1.0.0/24 dir out");
        assert!(!read.restricts, "it lets pass");
        message.extend(attribute(TEMPLATES, &[0; 64]));
        assert!(policy(&message).unwrap().restricts);
        message[POLICY_DIRECTION] = 3;
        assert_eq!(policy(&message), None, "a socket's");
    }
}
