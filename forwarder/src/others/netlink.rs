//! The kernel's answers about qdiscs, filters, rules of routing and IPsec policies, read from their
//! bytes (`linux/rtnetlink.h`, `pkt_sched.h`, `fib_rules.h`, `xfrm.h`).

use std::net::Ipv4Addr;

use super::{Direction, IpsecPolicy, Range};
use crate::tables::Hook;

/// Qdiscs that send what comes as fast as the device takes it.
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

/// The attributes of a message, by type.
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

/// Octets of `struct tcmsg`, in it the device's index; `TCA_KIND`, `TCA_OPTIONS`.
const TC: usize = 20;
const TC_INDEX: usize = 4;
const TC_KIND: u16 = 1;
const TC_OPTIONS: u16 = 2;
/// `TCA_BPF_NAME`.
const BPF_NAME: u16 = 7;

/// What a qdisc is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Qdisc {
    /// It delays, drops or orders what leaves.
    Shapes(String),
    /// It has filters for what comes, and if so said for what leaves.
    Filters { both: bool },
}

/// A qdisc that matters, and its device's index (`RTM_NEWQDISC`).
pub(crate) fn qdisc(message: &[u8]) -> Option<(u32, Qdisc)> {
    let index = word(message, TC_INDEX)?;
    let kind = text(attribute(message.get(TC..)?, TC_KIND)?);
    match kind.as_str() {
        "ingress" => Some((index, Qdisc::Filters { both: false })),
        "clsact" => Some((index, Qdisc::Filters { both: true })),
        kind if HARMLESS.contains(&kind) => None,
        _ => Some((index, Qdisc::Shapes(kind))),
    }
}

/// What a filter is called that is not ours (`RTM_NEWTFILTER`).
pub(crate) fn filter(message: &[u8]) -> Option<String> {
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

/// Octets of `struct fib_rule_hdr`, in it the type of service and the flags; and attributes.
const RULE: usize = 12;
const RULE_TOS: usize = 3;
const RULE_FLAGS: usize = 8;
const RULE_PRIORITY: u16 = 6;
const RULE_MARK: u16 = 10;
const RULE_MASK: u16 = 16;
/// `FIB_RULE_INVERT`.
const INVERT: u32 = 2;

/// A rule of routing that `bpf_fib_lookup` does not ask, in words (`RTM_NEWRULE`): one by mark or by
/// type of service. Inverted (`not fwmark`), it is about what has no mark, as `bpf_fib_lookup` has none.
pub(crate) fn routing_rule(message: &[u8]) -> Option<String> {
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

/// `struct xfrm_userpolicy_info`: its selector first, then lifetimes.
const SELECTOR_DST: usize = 0;
const SELECTOR_SRC: usize = 16;
const SELECTOR_FAMILY: usize = 40;
const SELECTOR_DST_LEN: usize = 42;
const SELECTOR_SRC_LEN: usize = 43;
const POLICY_DIRECTION: usize = 160;
const POLICY_ACTION: usize = 161;
/// Octets of it.
const POLICY: usize = 168;
/// `XFRMA_TMPL`.
const TEMPLATES: u16 = 5;
const IPV4: u16 = 2;

/// An IPsec policy for what is forwarded (`XFRM_MSG_NEWPOLICY`). Those of sockets and for what comes
/// in are not.
pub(crate) fn policy(message: &[u8]) -> Option<IpsecPolicy> {
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
