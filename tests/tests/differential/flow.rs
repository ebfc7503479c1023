// SPDX-License-Identifier: MIT OR Apache-2.0
//! A flow of the trace, by names that both arms understand: what each end sends, and what it sees.

use std::net::Ipv4Addr;

use crate::place::{At, End};

/// Which way a packet of a flow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Towards {
    /// To whom the originator asked.
    Server,
    /// Back.
    Originator,
}

impl Towards {
    /// The other way.
    pub(crate) fn back(self) -> Self {
        match self {
            Self::Server => Self::Originator,
            Self::Originator => Self::Server,
        }
    }
}

/// An end by a name.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Name {
    /// The same in both arms.
    Fixed(Ipv4Addr, u16),
    /// What the server of this flow sees as its client.
    Seen(usize),
}

/// What an end sends or sees of a flow: source and destination.
pub(crate) type Pair = (Name, Name);

/// How far a TCP connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nothing but packets: UDP, echo.
    Plain,
    /// Its SYN was sent.
    Opening,
    /// Open.
    Open,
    /// Both sides have closed.
    Closed,
}

/// A flow.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    /// Its number in the trace.
    pub(crate) number: usize,
    /// Its protocol.
    pub(crate) proto: u8,
    /// Where its originator is.
    pub(crate) originator_at: At,
    /// Its originator.
    pub(crate) originator: End,
    /// Whom it asks; for echo, the port is 0.
    pub(crate) asked: End,
    /// Where its server is.
    pub(crate) server_at: At,
    /// Its server.
    pub(crate) server: End,
    /// How far it is.
    pub(crate) stage: Stage,
    /// The next sequence numbers of originator and server.
    pub(crate) next: [u32; 2],
    /// Whether the server has answered.
    pub(crate) answered: bool,
    /// Nothing more is sent of it.
    pub(crate) over: bool,
}

impl Flow {
    /// The source and destination of a packet as its sender writes it.
    pub(crate) fn sent(&self, way: Towards) -> Pair {
        match way {
            Towards::Server => self.by_originator(way),
            Towards::Originator => self.by_server(way),
        }
    }

    /// The source and destination of a packet as its receiver sees it.
    pub(crate) fn received(&self, way: Towards) -> Pair {
        match way {
            Towards::Server => self.by_server(way),
            Towards::Originator => self.by_originator(way),
        }
    }

    fn by_originator(&self, way: Towards) -> Pair {
        let (own, asked) = (fixed(self.originator), fixed(self.asked));
        match way {
            Towards::Server => (own, asked),
            Towards::Originator => (asked, own),
        }
    }

    fn by_server(&self, way: Towards) -> Pair {
        let (own, client) = (fixed(self.server), Name::Seen(self.number));
        match way {
            Towards::Server => (client, own),
            Towards::Originator => (own, client),
        }
    }

    /// Where a packet of this way is sent.
    pub(crate) fn sender(&self, way: Towards) -> At {
        match way {
            Towards::Server => self.originator_at,
            Towards::Originator => self.server_at,
        }
    }

    /// Where a packet of this way has to come.
    pub(crate) fn receiver(&self, way: Towards) -> At {
        self.sender(way.back())
    }

    /// What kind it is: out of a container, in to one, or from one to another.
    pub(crate) fn kind(&self) -> &'static str {
        match (self.originator_at, self.server_at) {
            (_, At::Lan) => "out",
            (At::Lan, _) => "in",
            (client, server) if client == server => "self",
            (client, server) if (client == At::Other) == (server == At::Other) => "sibling",
            _ => "cross",
        }
    }

    /// Whether one of its ends is there.
    pub(crate) fn touches(&self, at: At) -> bool {
        self.originator_at == at || self.server_at == at
    }
}

/// An end that is the same in both arms.
pub(crate) fn fixed(end: End) -> Name {
    Name::Fixed(end.0, end.1)
}
