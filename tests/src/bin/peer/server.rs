// SPDX-License-Identifier: MIT OR Apache-2.0
//! `serve`: the services of a container, with a log of its clients.

use std::io::{BufRead as _, BufReader, Write as _, copy};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use anyhow::{Context as _, Result};

use crate::stream;

/// The largest UDP payload.
const DATAGRAM: usize = 65_507;

pub(crate) fn serve(ports: &[u16]) -> Result<()> {
    let mut workers = Vec::new();
    for port in ports {
        let listener = on_any(*port, TcpListener::bind)?;
        let socket = on_any(*port, UdpSocket::bind)?;
        workers.push(thread::spawn(move || accept(&listener)));
        workers.push(thread::spawn(move || answer(&socket)));
        println!("serving {port}");
    }
    for worker in workers {
        worker
            .join()
            .map_err(|_| anyhow::anyhow!("a server broke"))??;
    }
    Ok(())
}

/// Binds both families at once where there is IPv6, otherwise IPv4.
fn on_any<T>(port: u16, bind: impl Fn(SocketAddr) -> std::io::Result<T>) -> Result<T> {
    let any = |address: IpAddr| bind(SocketAddr::new(address, port));
    any(Ipv6Addr::UNSPECIFIED.into())
        .or_else(|_| any(Ipv4Addr::UNSPECIFIED.into()))
        .with_context(|| format!("cannot listen on port {port}"))
}

/// Returns the address as the client knows it: without `::ffff:` before an IPv4 address.
fn plain(client: SocketAddr) -> SocketAddr {
    SocketAddr::new(client.ip().to_canonical(), client.port())
}

fn accept(listener: &TcpListener) -> Result<()> {
    loop {
        let (stream, client) = listener.accept()?;
        let client = plain(client);
        println!("tcp {client}");
        thread::spawn(move || {
            if let Err(error) = converse(stream, client) {
                println!("tcp {client}: {error:#}");
            }
        });
    }
}

fn converse(mut stream: TcpStream, client: SocketAddr) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    while reader.read_line(&mut first)? > 0 {
        match first.split_whitespace().collect::<Vec<_>>()[..] {
            ["ECHO"] => {
                copy(&mut reader, &mut stream)?;
            }
            ["SEND", bytes, rate] => {
                return stream::send(&mut stream, bytes.parse()?, rate.parse()?);
            }
            _ => {
                if http(&mut reader, &mut stream, client)? == After::Close {
                    return Ok(());
                }
            }
        }
        first.clear();
    }
    Ok(())
}

#[derive(PartialEq)]
enum After {
    Close,
    KeepAlive,
}

/// Answers the request whose first line was read.
fn http(
    reader: &mut BufReader<TcpStream>,
    stream: &mut TcpStream,
    client: SocketAddr,
) -> Result<After> {
    let mut after = After::KeepAlive;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        if line.trim().eq_ignore_ascii_case("connection: close") {
            after = After::Close;
        }
    }
    let body = format!("{client}\n");
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes())?;
    Ok(after)
}

fn answer(socket: &UdpSocket) -> Result<()> {
    let mut buffer = vec![0; DATAGRAM];
    loop {
        // An ICMP error for an earlier answer is reported here and does not affect other clients.
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let client = plain(from);
        println!("udp {client}");
        let mut answer = format!("{client} ").into_bytes();
        answer.extend(&buffer[..length]);
        answer.truncate(DATAGRAM);
        if let Err(error) = socket.send_to(&answer, from) {
            println!("udp {client}: {error}");
        }
    }
}
