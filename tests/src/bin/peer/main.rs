// SPDX-License-Identifier: MIT OR Apache-2.0
//! `peer`: server and client of the tests, static, for containers and namespaces alike.

mod args;
mod client;
mod datagrams;
mod hold;
mod local;
mod occupy;
mod ping;
mod pulse;
mod server;
mod socket;
mod stream;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use harness::PacketSocket;
use nix::sys::signal::{SigSet, Signal};

use crate::args::Args;

const HELP: &str = "\
Servers (ports on all addresses, TCP and UDP; print `serving PORT`, then one line per client):
  serve PORT...                  TCP: HTTP that answers with the client's address; after a first
                                 line ECHO an echo, after SEND BYTES RATE a stream.
                                 UDP: answers `CLIENT PAYLOAD`.
  wait                           does nothing until it is told to end
  occupy FIRST LAST              binds a UDP socket to each port of a range, at all addresses; prints
                                 `bound N refused M` and waits
Clients (addresses are numeric; each prints its result and ends with status 0, or says why not):
  get ADDR:PORT                  one HTTP request; prints the body
  udp ADDR:PORT PAYLOAD          one datagram; prints the answer
  sendto ADDR:PORT PAYLOAD       one datagram from a socket that is not connected; prints whom the
                                 answer is from, and the answer
  name tcp|udp ADDR:PORT         connects; prints the name of the peer that the socket tells
  abide tcp|udp ADDR:PORT        connects, sends once and prints `answered`; then waits and prints
                                 what ends it: `end`, `timeout`, or the error's name
  hold N ADDR:PORT               opens N echo connections, prints `open N`; for each line on its
                                 standard input sends a byte on each and prints `alive K`
  pulse N ADDR:PORT              steady traffic: N echo connections, new ones and datagrams; prints
                                 `pulses`, and at a line on its standard input what was lost
  fetch ADDR:PORT BYTES          receives a stream and checks each byte (--rate BYTES/s); prints
                                 `at BYTES` on the way and `done BYTES` at the end
  datagrams ADDR:PORT            sends datagrams for ever (--rate N/s, 500); prints `at ANSWERS` while
                                 answers come
  ping ADDR                      ICMP echo (--count N); prints `reply from ADDR` or the ICMP error
  raw DEVICE HEX                 sends one frame, link header included
Options of clients: --bind ADDR:PORT  --timeout MS (3000)  --ttl N  --v6only true";

fn main() -> ExitCode {
    match run(Args::new(std::env::args().skip(1))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Result<Args>) -> Result<()> {
    let mut args = args?;
    match args.next("a verb; see `peer help`")?.as_str() {
        "serve" => {
            end_on_sigterm()?;
            server::serve(&args.rest::<u16>()?)
        }
        "wait" => {
            end_on_sigterm()?;
            loop {
                std::thread::park();
            }
        }
        "occupy" => {
            end_on_sigterm()?;
            occupy::occupy(args.parse("FIRST")?, args.parse("LAST")?)
        }
        "get" => client::get(args.parse("ADDR:PORT")?, &args.options()?),
        "udp" => {
            let to = args.parse("ADDR:PORT")?;
            client::udp(to, &args.next("PAYLOAD")?, &args.options()?)
        }
        "sendto" => {
            let to = args.parse("ADDR:PORT")?;
            client::sendto(to, &args.next("PAYLOAD")?, &args.options()?)
        }
        "name" => {
            let transport = args.parse("tcp|udp")?;
            local::name(transport, args.parse("ADDR:PORT")?, &args.options()?)
        }
        "abide" => {
            let transport = args.parse("tcp|udp")?;
            local::abide(transport, args.parse("ADDR:PORT")?, &args.options()?)
        }
        "hold" => {
            let number = args.parse("N")?;
            hold::hold(number, args.parse("ADDR:PORT")?, &args.options()?)
        }
        "pulse" => {
            let number = args.parse("N")?;
            pulse::pulse(number, args.parse("ADDR:PORT")?, &args.options()?)
        }
        "fetch" => {
            let to: SocketAddr = args.parse("ADDR:PORT")?;
            let bytes = args.parse("BYTES")?;
            let rate = args.option("rate")?.unwrap_or(u64::MAX);
            stream::fetch(to, bytes, rate, &args.options()?)
        }
        "datagrams" => {
            let to = args.parse("ADDR:PORT")?;
            let rate = args.option("rate")?.unwrap_or(500);
            datagrams::datagrams(to, rate, &args.options()?)
        }
        "ping" => {
            let to = args.parse("ADDR")?;
            let count = args.option("count")?.unwrap_or(1);
            ping::ping(to, count, &args.options()?)
        }
        "raw" => {
            let device = args.next("DEVICE")?;
            PacketSocket::open(&device)?.send(&unhex(&args.next("HEX")?)?)
        }
        "help" | "--help" => {
            println!("{HELP}");
            Ok(())
        }
        other => bail!("no verb {other}; see `peer help`"),
    }
}

/// Handles SIGTERM: the first process of a container ignores signals without a handler.
fn end_on_sigterm() -> Result<()> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    signals.thread_block()?;
    std::thread::spawn(move || {
        let caught = signals.wait();
        std::process::exit(i32::from(caught.is_err()))
    });
    Ok(())
}

fn unhex(text: &str) -> Result<Vec<u8>> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !b" :".contains(byte)).collect();
    let byte = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).context("not hex")?;
        u8::from_str_radix(pair, 16).with_context(|| format!("{pair:?} is not hex"))
    };
    digits.chunks(2).map(byte).collect()
}

/// The options of all clients.
pub(crate) struct Options {
    pub(crate) bind: Option<SocketAddr>,
    pub(crate) timeout: Duration,
    pub(crate) ttl: Option<u32>,
    pub(crate) v6only: bool,
}
