// SPDX-License-Identifier: MIT OR Apache-2.0
//! `datagrams`: a long stream of datagrams, each with an answer.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::{Options, socket};

/// The minimum time between two lines of progress.
const PROGRESS: Duration = Duration::from_millis(100);

/// Sends at no more than `rate` datagrams per second, and counts answers.
pub(crate) fn datagrams(to: SocketAddr, rate: u32, options: &Options) -> Result<()> {
    let socket = socket::udp(to, options)?;
    socket.set_nonblocking(true)?;
    let pause = Duration::from_secs(1) / rate;
    let (mut answers, mut told) = (0_u64, 0);
    let mut reported = Instant::now();
    let mut buffer = [0; 64];
    loop {
        // An error that an ICMP message causes is no end: the next datagram may arrive.
        let _ = socket.send(b"x");
        sleep(pause);
        while socket.recv(&mut buffer).is_ok() {
            answers += 1;
        }
        if answers > told && reported.elapsed() >= PROGRESS {
            println!("at {answers}");
            (told, reported) = (answers, Instant::now());
        }
    }
}
