// SPDX-License-Identifier: MIT OR Apache-2.0
//! The clients that send one request: `get`, `udp` and `sendto`.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};

use crate::{Options, socket};

/// The largest UDP payload.
const DATAGRAM: usize = 65_507;

pub(crate) fn get(to: SocketAddr, options: &Options) -> Result<()> {
    let mut stream = socket::tcp(to, options)?;
    write!(
        stream,
        "GET / HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .context("no whole answer")?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("not an HTTP answer")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "refused: {head}");
    println!("{}", body.trim_end());
    Ok(())
}

pub(crate) fn udp(to: SocketAddr, payload: &str, options: &Options) -> Result<()> {
    let socket = socket::udp(to, options)?;
    socket.send(payload.as_bytes())?;
    let mut buffer = vec![0; DATAGRAM];
    let length = socket.recv(&mut buffer).context("no answer")?;
    println!("{}", String::from_utf8_lossy(&buffer[..length]));
    Ok(())
}

pub(crate) fn sendto(to: SocketAddr, payload: &str, options: &Options) -> Result<()> {
    let socket = socket::unconnected(to, options)?;
    socket.send_to(payload.as_bytes(), to)?;
    let mut buffer = vec![0; DATAGRAM];
    let (length, from) = socket.recv_from(&mut buffer).context("no answer")?;
    println!("{from} {}", String::from_utf8_lossy(&buffer[..length]));
    Ok(())
}
