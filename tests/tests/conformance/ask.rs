// SPDX-License-Identifier: MIT OR Apache-2.0
//! Questions that have an answer: who reaches whom, by what, and is seen as whom.

use anyhow::{Context as _, Result, bail, ensure};
use harness::Space;

/// For what must not be answered.
const IN_VAIN: &str = "--timeout=300";

/// Both transports reach a server; hands back by which address it sees the client, which has to be
/// the same for both.
pub(crate) fn seen_as(from: &Space, to: &str) -> Result<String> {
    let what = |how: &str| format!("{how} from {} to {to}", from.name());
    let tcp = from.peer(&["get", to]).with_context(|| what("TCP"))?;
    let udp = from
        .peer(&["udp", to, "hello"])
        .with_context(|| what("UDP"))?;
    let address = |seen: &str| seen.rsplit_once(':').map(|(address, _)| address.to_owned());
    let (tcp, udp) = (address(&tcp), address(&udp));
    ensure!(tcp == udp, "TCP is seen as {tcp:?}, UDP as {udp:?}");
    tcp.with_context(|| what("no address"))
}

/// Both transports reach a server, which sees the client as this address.
pub(crate) fn reaches(from: &Space, to: &str, client: &str) -> Result<()> {
    let seen = seen_as(from, to)?;
    ensure!(
        seen == client,
        "{} is seen by {to} as {seen}, not {client}",
        from.name()
    );
    Ok(())
}

/// Neither transport reaches a server.
pub(crate) fn is_kept_from(from: &Space, to: &str) -> Result<()> {
    ensure!(
        !is_reached(from, to)?,
        "{} is answered by {to}",
        from.name()
    );
    Ok(())
}

/// Whether a server is reached: by both transports, or by neither.
pub(crate) fn is_reached(from: &Space, to: &str) -> Result<bool> {
    let answers = |argv: &[&str]| from.peer(&[argv, &[IN_VAIN]].concat()).is_ok();
    let (tcp, udp) = (answers(&["get", to]), answers(&["udp", to, "x"]));
    if tcp != udp {
        bail!("{to} is reached by TCP: {tcp}, by UDP: {udp}");
    }
    Ok(tcp)
}

/// Whether an address answers to ICMP echo.
pub(crate) fn pings(from: &Space, to: &str) -> bool {
    from.peer(&["ping", to, IN_VAIN]).is_ok()
}

/// What somebody gets of a container at its own address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    /// ICMP echo.
    pub(crate) ping: bool,
    /// Port 80, which is published.
    pub(crate) published: bool,
    /// Port 81, which is not.
    pub(crate) unpublished: bool,
}

impl Access {
    pub(crate) const NONE: Self = Self {
        ping: false,
        published: false,
        unpublished: false,
    };
    pub(crate) const PUBLISHED: Self = Self {
        published: true,
        ..Self::NONE
    };
    /// That of a routed network: what is published, and ICMP.
    pub(crate) const ROUTED: Self = Self {
        ping: true,
        ..Self::PUBLISHED
    };
    pub(crate) const ALL: Self = Self {
        unpublished: true,
        ..Self::ROUTED
    };

    /// Tries all of it.
    pub(crate) fn try_all(from: &Space, container: &str) -> Result<Self> {
        Ok(Self {
            ping: pings(from, container),
            published: is_reached(from, &format!("{container}:80"))?,
            unpublished: is_reached(from, &format!("{container}:81"))?,
        })
    }

    /// Fails unless somebody gets exactly this.
    pub(crate) fn is_that_of(self, from: &Space, container: &str) -> Result<()> {
        let got = Self::try_all(from, container)?;
        ensure!(
            got == self,
            "{} at {container}: {got:?}, not {self:?}",
            from.name()
        );
        Ok(())
    }
}
