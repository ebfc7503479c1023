// SPDX-License-Identifier: MIT OR Apache-2.0
//! `hold`: many idle connections, which are checked now and then.

use std::io::{Read as _, Write as _, stdin};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context as _, Result};

use crate::{Options, socket};

pub(crate) fn hold(number: usize, to: SocketAddr, options: &Options) -> Result<()> {
    let open = |n| {
        let mut stream = socket::tcp(to, options)?;
        stream.set_nodelay(true)?;
        stream.write_all(b"ECHO\n")?;
        anyhow::ensure!(lives(&mut stream), "connection {n} has no echo");
        Ok(stream)
    };
    let mut streams = (1..=number).map(open).collect::<Result<Vec<_>>>()?;
    println!("open {}", streams.len());
    for line in stdin().lines() {
        line.context("cannot read standard input")?;
        let alive = streams.iter_mut().map(lives).filter(|alive| *alive).count();
        println!("alive {alive}");
    }
    Ok(())
}

/// Sends one byte and expects it back.
fn lives(stream: &mut TcpStream) -> bool {
    let mut byte = [0];
    let echo = stream
        .write_all(b"x")
        .and_then(|()| stream.read_exact(&mut byte));
    echo.is_ok() && byte == *b"x"
}
