// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a socket reports: `name` prints its peer's address, and `abide` prints what ends it.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::str::FromStr;

use anyhow::{Context as _, Result, anyhow};
use rustix::io::Errno;

use crate::{Options, socket};

/// How a socket is connected.
#[derive(Clone, Copy)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

impl FromStr for Transport {
    type Err = std::io::Error;

    fn from_str(text: &str) -> std::io::Result<Self> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(ErrorKind::InvalidInput.into()),
        }
    }
}

pub(crate) fn name(transport: Transport, to: SocketAddr, options: &Options) -> Result<()> {
    let peer = match transport {
        Transport::Tcp => socket::tcp(to, options)?.peer_addr()?,
        Transport::Udp => socket::udp(to, options)?.peer_addr()?,
    };
    println!("{peer}");
    Ok(())
}

pub(crate) fn abide(transport: Transport, to: SocketAddr, options: &Options) -> Result<()> {
    let mut buffer = [0; 512];
    let ended = match transport {
        Transport::Tcp => {
            let mut stream = socket::tcp(to, options)?;
            stream.write_all(b"ECHO\nx")?;
            stream.read_exact(&mut buffer[..1]).context("no answer")?;
            println!("answered");
            stream.read(&mut buffer)
        }
        Transport::Udp => {
            let socket = socket::udp(to, options)?;
            socket.send(b"x")?;
            socket.recv(&mut buffer).context("no answer")?;
            println!("answered");
            socket.recv(&mut buffer)
        }
    };
    match ended {
        Ok(0) => println!("end"),
        Ok(length) => return Err(anyhow!("{length} bytes that nobody asked for")),
        Err(error) if error.kind() == ErrorKind::WouldBlock => println!("timeout"),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::CONNABORTED) => println!("ECONNABORTED"),
            Some(Errno::CONNRESET) => println!("ECONNRESET"),
            Some(Errno::CONNREFUSED) => println!("ECONNREFUSED"),
            _ => return Err(error.into()),
        },
    }
    Ok(())
}
