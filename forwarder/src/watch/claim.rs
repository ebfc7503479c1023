// SPDX-License-Identifier: MIT OR Apache-2.0
//! Checks whether a caller may speak as a shim: who it is, and whether it holds the port that it
//! claims.
//!
//! The socket's mode excludes everyone but root. Root without capabilities is no administrator of
//! the network either, and may request nothing. A caller cannot publish a port that it has not
//! bound: the claim comes with the socket that holds the port, and the kernel says what that socket
//! is.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use forwarder_state::host_state::Proto;
use nix::sys::socket::sockopt::BindToDevice;
use nix::sys::socket::{SockaddrIn, getpeername, getsockname, getsockopt};
use rustix::io::Errno;
use rustix::net::sockopt::{
    socket_acceptconn, socket_domain, socket_peercred, socket_protocol, socket_reuseport,
};
use rustix::net::{AddressFamily, ipproto};
use rustix::process::geteuid;

use super::shim::Binding;
use crate::sys::netns::netns_cookie_of;

/// `CAP_NET_ADMIN` in a set of capabilities.
const NET_ADMIN: u64 = 1 << 12;

/// Whether the caller is root. The error says who it is.
pub(crate) fn is_root(stream: impl AsFd) -> Result<(), String> {
    let uid = socket_peercred(stream).map_err(|e| e.to_string())?.uid;
    if uid.is_root() || uid == geteuid() {
        return Ok(());
    }
    Err(format!("user {} is not root", uid.as_raw()))
}

/// Whether the caller administers the network, as dockerd and its shims do. A process that is not
/// visible from here (in another pid namespace) is not checked for this, but it still must hold the
/// port.
pub(crate) fn may_claim(stream: impl AsFd) -> Result<(), String> {
    is_root(&stream)?;
    let pid = socket_peercred(stream)
        .map_err(|e| e.to_string())?
        .pid
        .as_raw_pid();
    let status = match fs::read_to_string(format!("/proc/{pid}/status")) {
        Ok(status) => status,
        Err(_) if pid == 0 => return Ok(()),
        Err(_) => return Err(format!("process {pid} has ended")),
    };
    let name = || field(&status, "Name:").unwrap_or_default().to_owned();
    let set = field(&status, "CapEff:").and_then(|set| u64::from_str_radix(set, 16).ok());
    if set.unwrap_or_default() & NET_ADMIN != 0 {
        return Ok(());
    }
    Err(format!(
        "process {pid} ({}) lacks CAP_NET_ADMIN: only dockerd's shims publish ports",
        name()
    ))
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim())
}

/// Whether `socket` holds the port of `binding`, exclusively and for all devices of our namespace.
pub(crate) fn holds(socket: Option<&OwnedFd>, binding: &Binding) -> Result<(), String> {
    let port = binding.host();
    let Some(socket) = socket else {
        return Err(format!("the claim came without a socket that holds {port}"));
    };
    let wrong = |what: &str| Err(format!("the socket that claims {port} {what}"));
    let broken = |error: &dyn ToString| format!("the claim of {port}: {}", error.to_string());
    if netns_cookie_of(socket).map_err(|e| broken(&e))?
        != netns_cookie_of(&own()?).map_err(|e| broken(&e))?
    {
        return wrong("belongs to another network namespace");
    }
    if socket_domain(socket).map_err(|e| broken(&e))? != AddressFamily::INET {
        return wrong("is not an IPv4 socket");
    }
    let protocol = socket_protocol(socket).map_err(|e| broken(&e))?;
    let wanted = match binding.proto {
        Proto::Tcp => ipproto::TCP,
        Proto::Udp => ipproto::UDP,
        Proto::Sctp => return wrong("has a protocol that no shim publishes"),
    };
    if protocol != Some(wanted) {
        return wrong("has another protocol");
    }
    let raw = socket.as_raw_fd();
    let bound = getsockname::<SockaddrIn>(raw).map_err(|e| broken(&e))?;
    let bound = SocketAddr::new(IpAddr::V4(bound.ip()), bound.port());
    if bound != SocketAddr::new(port.ip, port.port) || bound.port() == 0 {
        return wrong(&format!("is bound to {bound}"));
    }
    if getpeername::<SockaddrIn>(raw).is_ok() {
        return wrong("is connected, so it does not hold the port");
    }
    // An orphan's socket no longer listens, so that the next dockerd can bind the port.
    let listens = socket_acceptconn(socket).map_err(|e| broken(&e))?;
    if binding.proto == Proto::Tcp && !listens && !binding.orphan {
        return wrong("does not listen");
    }
    if socket_reuseport(socket).map_err(|e| broken(&e))? {
        return wrong("shares the port (SO_REUSEPORT)");
    }
    if !getsockopt(socket, BindToDevice)
        .map_err(|e| broken(&e))?
        .is_empty()
    {
        return wrong("is bound to a device");
    }
    Ok(())
}

/// Returns any socket of our namespace.
fn own() -> Result<OwnedFd, String> {
    let kind = rustix::net::SocketType::DGRAM;
    rustix::net::socket(AddressFamily::UNIX, kind, None).map_err(|error: Errno| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};

    const LOCAL: Ipv4Addr = Ipv4Addr::LOCALHOST;

    fn binding(proto: Proto, at: SocketAddr) -> Binding {
        Binding {
            proto,
            host_ip: at.ip(),
            host_port: at.port(),
            container_ip: [172, 17, 0, 2].into(),
            container_port: 80,
            orphan: false,
        }
    }

    fn refused(socket: impl Into<OwnedFd>, binding: &Binding) -> String {
        holds(Some(&socket.into()), binding).unwrap_err()
    }

    #[test]
    fn listening_socket_proves_its_port_only() {
        let socket = TcpListener::bind((LOCAL, 0)).unwrap();
        let at = socket.local_addr().unwrap();
        let claim = binding(Proto::Tcp, at);
        assert_eq!(
            holds(Some(&socket.try_clone().unwrap().into()), &claim),
            Ok(())
        );
        let clone = || socket.try_clone().unwrap();
        let other = binding(Proto::Tcp, SocketAddr::new(at.ip(), at.port() ^ 1));
        assert!(refused(clone(), &other).contains("is bound to 127.0.0.1:"));
        let any = binding(
            Proto::Tcp,
            SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), at.port()),
        );
        assert!(refused(clone(), &any).contains("is bound to 127.0.0.1:"));
        assert!(refused(clone(), &binding(Proto::Udp, at)).ends_with("has another protocol"));
        assert!(
            holds(None, &claim)
                .unwrap_err()
                .starts_with("the claim came without a socket")
        );

        let client = TcpStream::connect(at).unwrap();
        let own = binding(Proto::Tcp, client.local_addr().unwrap());
        assert!(refused(client, &own).contains("is connected"));
        let v6 = UdpSocket::bind("[::]:0").unwrap();
        let claim = binding(Proto::Udp, v6.local_addr().unwrap());
        assert!(refused(v6, &claim).ends_with("is not an IPv4 socket"));
    }

    #[test]
    fn datagram_socket_proves_its_port_unless_shared() {
        let socket = UdpSocket::bind((LOCAL, 0)).unwrap();
        let claim = binding(Proto::Udp, socket.local_addr().unwrap());
        assert_eq!(
            holds(Some(&socket.try_clone().unwrap().into()), &claim),
            Ok(())
        );
        rustix::net::sockopt::set_socket_reuseport(&socket, true).unwrap();
        let why = refused(socket.try_clone().unwrap(), &claim);
        assert!(why.ends_with("(SO_REUSEPORT)"), "{why}");
        rustix::net::sockopt::set_socket_reuseport(&socket, false).unwrap();
        socket.connect((LOCAL, 9)).unwrap();
        assert!(refused(socket, &claim).contains("is connected"));
    }

    /// A socket that is bound but does not listen proves an orphan's claim only.
    #[test]
    fn bound_socket_proves_an_orphans_claim_only() {
        let socket =
            rustix::net::socket(AddressFamily::INET, rustix::net::SocketType::STREAM, None);
        let socket = socket.unwrap();
        rustix::net::bind(&socket, &SocketAddr::new(LOCAL.into(), 0)).unwrap();
        let at = getsockname::<SockaddrIn>(socket.as_raw_fd()).unwrap();
        let mut claim = binding(Proto::Tcp, SocketAddr::new(LOCAL.into(), at.port()));
        assert!(
            holds(Some(&socket), &claim)
                .unwrap_err()
                .ends_with("does not listen")
        );
        claim.orphan = true;
        assert_eq!(holds(Some(&socket), &claim), Ok(()));
    }
}
