// SPDX-License-Identifier: MIT OR Apache-2.0
//! Netlink: a socket of any protocol for one request at a time, notifications of groups, and the
//! asynchronous connection for routing netlink.

use std::convert::Infallible;
use std::ops::Deref;

use anyhow::{Context, Result};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use rtnetlink::packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use rtnetlink::packet_route::RouteNetlinkMessage;

pub(crate) use rtnetlink::sys::protocols;
use rtnetlink::sys::{Socket, SocketAddr};
use rtnetlink::{Handle, MulticastGroup, new_connection, new_multicast_connection};
use rustix::io::Errno;
use tokio::task::JoinHandle;

/// A socket for requests of one protocol, in the network namespace of the thread that opened it.
pub(crate) struct Requests(Socket);

impl Requests {
    pub(crate) fn open(protocol: isize) -> Result<Self, Errno> {
        Socket::new(protocol)
            .map(Self)
            .map_err(|error| errno(&error))
    }

    /// Sends a request and passes each answer to `take`, up to the kernel's last. `flags` are
    /// `NLM_F_DUMP` or `NLM_F_ACK`, without which the kernel does not say which answer is the last.
    /// An answer that cannot be parsed is skipped.
    pub(crate) fn ask<A: NetlinkDeserializable>(
        &self,
        request: impl NetlinkSerializable,
        flags: u16,
        mut take: impl FnMut(A),
    ) -> Result<(), Errno> {
        // There is one request at a time, so sequence numbers are not needed.
        let payload = NetlinkPayload::InnerMessage(request);
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), payload);
        message.header.flags = NLM_F_REQUEST | flags;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let kernel = SocketAddr::new(0, 0);
        self.0
            .send_to(&bytes, &kernel, 0)
            .map_err(|error| errno(&error))?;
        loop {
            let (datagram, _) = self.0.recv_from_full().map_err(|error| errno(&error))?;
            for answer in messages(&datagram) {
                match answer {
                    NetlinkPayload::InnerMessage(answer) => take(answer),
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) => {
                        let code = error.code.map(|code| Errno::from_raw_os_error(-code.get()));
                        return code.map_or(Ok(()), Err);
                    }
                    _ => {}
                }
            }
        }
    }
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// Returns the messages of a datagram in order, up to the first that is truncated.
pub(crate) fn messages<A: NetlinkDeserializable>(
    mut bytes: &[u8],
) -> impl Iterator<Item = NetlinkPayload<A>> {
    let all = std::iter::from_fn(move || {
        let length = NetlinkBuffer::new_checked(bytes).ok()?.length() as usize;
        let message = NetlinkMessage::deserialize(&bytes[..length]);
        // Messages begin at multiples of four bytes.
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    });
    all.flatten()
        .map(|message: NetlinkMessage<A>| message.payload)
}

/// A message whose body its sender builds and its receiver parses.
struct Raw {
    kind: u16,
    body: Vec<u8>,
}

impl NetlinkSerializable for Raw {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.body);
    }
}

impl NetlinkDeserializable for Raw {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, body: &[u8]) -> Result<Self, Infallible> {
        Ok(Self {
            kind: header.message_type,
            body: body.to_owned(),
        })
    }
}

/// Returns the kernel's answers to a dump request for which `read` returns a value. A kernel that
/// does not know the request has no such objects.
pub(crate) fn dump<T>(
    protocol: isize,
    kind: u16,
    request: &[u8],
    read: impl Fn(&[u8]) -> Option<T>,
) -> Vec<T> {
    let mut all = Vec::new();
    let body = request.to_owned();
    let asked = Requests::open(protocol).and_then(|requests| {
        let take = |answer: Raw| all.extend(read(&answer.body));
        requests.ask(Raw { kind, body }, NLM_F_DUMP, take)
    });
    if let Err(error) = asked {
        tracing::debug!("no answer to netlink request {kind} of protocol {protocol}: {error}");
    }
    all
}

/// Opens a socket that receives the notifications of groups, given as a mask. Reading from it does
/// not wait.
pub(crate) fn subscribe(protocol: isize, groups: u32) -> std::io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind(&SocketAddr::new(0, groups))?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// A task that ends with its owner.
struct Background(JoinHandle<()>);

impl Background {
    fn spawn(task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(task))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A connection for requests about links, addresses, routes and neighbours of our namespace.
pub(crate) struct Route {
    handle: Handle,
    _reader: Background,
}

impl Route {
    /// Opens the connection. Needs a tokio runtime.
    pub(crate) fn open() -> Result<Self> {
        let (reader, handle, _) = new_connection().context("cannot open a netlink socket")?;
        Ok(Self {
            handle,
            _reader: Background::spawn(reader),
        })
    }
}

impl Deref for Route {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.handle
    }
}

/// Notifications of routing netlink.
pub(crate) struct Notices {
    pub(crate) stream: BoxStream<'static, (NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    _reader: Background,
}

impl Notices {
    /// Subscribes to groups. Needs a tokio runtime.
    pub(crate) fn of(groups: &[MulticastGroup]) -> Result<Self> {
        let (reader, _, stream) = new_multicast_connection(groups)
            .context("cannot subscribe to the kernel's netlink notifications")?;
        Ok(Self {
            stream: stream.boxed(),
            _reader: Background::spawn(reader),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let body = body.to_owned();
        let payload = NetlinkPayload::InnerMessage(Raw { kind, body });
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), payload);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn messages_end_at_a_truncated_one() {
        let mut bytes = [message(40, b"abc"), message(41, b"")].concat();
        let all = |bytes: &[u8]| -> Vec<(u16, Vec<u8>)> {
            let of = |answer| match answer {
                NetlinkPayload::InnerMessage(Raw { kind, body }) => (kind, body),
                other => panic!("{}", other.message_type()),
            };
            messages::<Raw>(bytes).map(of).collect()
        };
        let both = vec![(40, b"abc".to_vec()), (41, Vec::new())];
        assert_eq!(all(&bytes), both);
        bytes.extend(&message(42, b"abcd")[..18]);
        assert_eq!(all(&bytes), both);
    }

    /// The kernel answers a dump of the loopback device's namespace, and refuses an unknown family.
    #[test]
    fn kernel_answers_and_refuses() {
        let links = dump(protocols::NETLINK_ROUTE, 18, &[0; 16], |body| {
            Some(body.to_owned())
        });
        assert!(!links.is_empty(), "RTM_GETLINK lists at least lo");
        let requests = Requests::open(protocols::NETLINK_ROUTE).unwrap();
        let unknown = Raw {
            kind: 1000,
            body: vec![0; 16],
        };
        let refused = requests.ask(unknown, rtnetlink::packet_core::NLM_F_ACK, |_: Raw| {});
        assert_eq!(refused, Err(Errno::OPNOTSUPP));
    }
}
