// SPDX-License-Identifier: MIT OR Apache-2.0
//! `pulse`: steady traffic of all kinds, and what became of it: what broke, and the longest silence.

use std::io::{Read as _, Write as _, stdin};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::{Options, socket};

/// The pause between two bytes of a connection, two new connections, and two datagrams.
const PAUSE: Duration = Duration::from_millis(20);
/// How long the last answers may take.
const TAIL: Duration = Duration::from_secs(1);

/// What became of traffic of one kind.
#[derive(Default)]
struct Fate {
    /// Connections that broke, connects that failed, datagrams without an answer.
    lost: usize,
    /// All of them.
    all: usize,
    /// The longest time between two answers.
    silence: Duration,
}

impl Fate {
    fn add(&mut self, other: &Self) {
        self.lost += other.lost;
        self.all += other.all;
        self.silence = self.silence.max(other.silence);
    }
}

pub(crate) fn pulse(number: usize, to: SocketAddr, options: &Options) -> Result<()> {
    let over = Arc::new(AtomicBool::new(false));
    let open = || {
        let mut stream = socket::tcp(to, options)?;
        stream.set_nodelay(true)?;
        stream.write_all(b"ECHO\n")?;
        beat(&mut stream).context("no echo")?;
        Ok(stream)
    };
    let held = (0..number).map(|_| open()).collect::<Result<Vec<_>>>()?;
    let mut threads: Vec<(&str, JoinHandle<Fate>)> = Vec::new();
    for stream in held {
        let over = over.clone();
        threads.push(("held", thread::spawn(move || hold(stream, &over))));
    }
    let (of_new, of_udp) = (over.clone(), over.clone());
    let timeout = options.timeout;
    threads.push(("new", thread::spawn(move || renew(to, timeout, &of_new))));
    let datagrams = socket::udp(to, options)?;
    threads.push(("udp", thread::spawn(move || stream(&datagrams, &of_udp))));
    println!("pulses");
    stdin().lines().next();
    over.store(true, Ordering::Relaxed);
    let mut fates = [
        ("held", Fate::default()),
        ("new", Fate::default()),
        ("udp", Fate::default()),
    ];
    for (kind, thread) in threads {
        let fate = thread.join().unwrap_or_default();
        for (name, sum) in &mut fates {
            if *name == kind {
                sum.add(&fate);
            }
        }
    }
    let words = fates.map(|(kind, fate)| {
        let silence = fate.silence.as_millis();
        format!(
            "{kind} {} of {} lost, silent {silence} ms",
            fate.lost, fate.all
        )
    });
    println!("fate: {}", words.join("; "));
    Ok(())
}

/// Sends one byte and expects it back.
fn beat(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut byte = [0];
    stream.write_all(b"x")?;
    stream.read_exact(&mut byte)
}

/// A connection that stays.
fn hold(mut stream: TcpStream, over: &AtomicBool) -> Fate {
    let mut fate = Fate {
        all: 1,
        ..Fate::default()
    };
    while !over.load(Ordering::Relaxed) {
        let asked = Instant::now();
        if beat(&mut stream).is_err() {
            fate.lost = 1;
            break;
        }
        fate.silence = fate.silence.max(asked.elapsed());
        sleep(PAUSE);
    }
    fate
}

/// One connection after the other.
fn renew(to: SocketAddr, timeout: Duration, over: &AtomicBool) -> Fate {
    let mut fate = Fate::default();
    while !over.load(Ordering::Relaxed) {
        let asked = Instant::now();
        let answered = TcpStream::connect_timeout(&to, timeout).and_then(|mut stream| {
            stream.set_read_timeout(Some(timeout))?;
            stream.write_all(b"ECHO\n")?;
            beat(&mut stream)
        });
        fate.all += 1;
        fate.lost += usize::from(answered.is_err());
        fate.silence = fate.silence.max(asked.elapsed());
        sleep(PAUSE);
    }
    fate
}

/// Datagrams, each with an answer. A server that was stopped for a while answers them all at once.
fn stream(socket: &std::net::UdpSocket, over: &AtomicBool) -> Fate {
    let mut fate = Fate::default();
    let mut answers = 0;
    let mut last = Instant::now();
    let mut buffer = [0; 64];
    // An error that an ICMP message causes is no end: the next datagram may arrive.
    let _ = socket.set_nonblocking(true);
    let mut until = None;
    loop {
        if over.load(Ordering::Relaxed) {
            let end = *until.get_or_insert_with(|| Instant::now() + TAIL);
            if Instant::now() > end {
                break;
            }
        } else {
            fate.all += usize::from(socket.send(b"x").is_ok());
        }
        sleep(PAUSE);
        while socket.recv(&mut buffer).is_ok() {
            answers += 1;
            fate.silence = fate.silence.max(last.elapsed());
            last = Instant::now();
        }
    }
    fate.lost = fate.all.saturating_sub(answers);
    fate
}
