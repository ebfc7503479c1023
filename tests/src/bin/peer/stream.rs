// SPDX-License-Identifier: MIT OR Apache-2.0
//! A long transfer whose every byte the receiver can check, at a rate that leaves time to disturb
//! it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::{Options, socket};

/// The maximum size of one write.
const CHUNK: usize = 16 * 1024;
/// The minimum time between two lines of progress.
const PROGRESS: Duration = Duration::from_millis(100);

/// Returns the byte at a position: a pattern with a prime period, so that every lost or doubled
/// packet is detected.
fn byte_at(position: u64) -> u8 {
    // The remainder is below 251.
    (position % 251) as u8
}

/// Sends a stream at no more than `rate` bytes per second.
pub(crate) fn send(to: &mut TcpStream, bytes: u64, rate: u64) -> Result<()> {
    let start = Instant::now();
    let mut sent = 0;
    while sent < bytes {
        let length = (bytes - sent).min(CHUNK as u64);
        let chunk: Vec<u8> = (sent..sent + length).map(byte_at).collect();
        to.write_all(&chunk)?;
        sent += length;
        let due = Duration::from_secs_f64(sent as f64 / rate as f64);
        sleep(due.saturating_sub(start.elapsed()));
    }
    Ok(())
}

/// Requests a stream from a server and checks it.
pub(crate) fn fetch(to: SocketAddr, bytes: u64, rate: u64, options: &Options) -> Result<()> {
    let mut stream = socket::tcp(to, options)?;
    writeln!(stream, "SEND {bytes} {rate}")?;
    let mut buffer = vec![0; CHUNK];
    let mut received = 0;
    let mut reported = Instant::now();
    loop {
        let length = stream
            .read(&mut buffer)
            .with_context(|| format!("stuck at {received}"))?;
        if length == 0 {
            break;
        }
        for byte in &buffer[..length] {
            if *byte != byte_at(received) {
                bail!("byte {received} is wrong");
            }
            received += 1;
        }
        if reported.elapsed() >= PROGRESS {
            println!("at {received}");
            reported = Instant::now();
        }
    }
    anyhow::ensure!(
        received == bytes,
        "the stream ended at {received} of {bytes}"
    );
    println!("done {received}");
    Ok(())
}
