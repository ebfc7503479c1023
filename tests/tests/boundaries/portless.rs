// SPDX-License-Identifier: MIT OR Apache-2.0
//! Protocols without ports: a stream that the host only listens to, and a container that wants it.

use std::net::{Ipv4Addr, UdpSocket};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::attack::{Attacker, Watch};
use harness::{Docker, Host, Lab, Packet, Peer, Scene, Space};
use rustix::net::{AddressFamily, Protocol, RawProtocol, SocketType, socket};

use crate::{Numbered, SOON, attacker, counted};

const GRE: u8 = 47;
const ESP: u8 = 50;
const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 2);
const HOST: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 1);

/// A header of GRE, or a beginning of ESP, and some data.
fn packet(protocol: u8, from: Ipv4Addr, to: Ipv4Addr) -> Packet {
    Packet::new(protocol, from, to, &[&[0, 0, 8, 0][..], &[7; 40]].concat())
}

/// What a remote sends, and the host hears by a socket that never sends.
struct Mirror {
    remote: Attacker,
    listens: UdpSocket,
}

impl Mirror {
    fn new(host: &Host, lan: &Space) -> Result<Self> {
        let protocol = RawProtocol::new(GRE.into()).context("no protocol")?;
        let protocol = Protocol::from_raw(protocol);
        let fd = host.enter(|| socket(AddressFamily::INET, SocketType::RAW, Some(protocol)))??;
        let listens = UdpSocket::from(fd);
        listens.set_read_timeout(Some(SOON))?;
        let remote = Attacker::new(lan, "h1", host.mac("up0")?)?;
        Ok(Self { remote, listens })
    }

    fn send(&self, packet: &Packet) -> Result<()> {
        self.remote.send(&self.remote.dress().ipv4(packet))
    }

    /// Sends some packets; the host hears each of them.
    fn is_heard(&self, numbers: &mut Numbered) -> Result<()> {
        for nth in 0..5 {
            let sent = numbers.packet(format!("mirror's {nth}"), packet(GRE, REMOTE, HOST));
            self.send(&sent)?;
            let mut buffer = [0; 128];
            let length = self.listens.recv(&mut buffer).context("not heard")?;
            let came = Packet::read(&buffer[..length]);
            ensure!(came.as_ref() == Some(&sent), "{came:?} instead of {sent:?}");
        }
        Ok(())
    }
}

/// A container asks for a stream that the host listens to, again and again; the host goes on to
/// hear all of it.
fn thief_gets_nothing(host: &Host, lan: &Space, settle: bool) -> Result<()> {
    let mirror = Mirror::new(host, lan)?;
    let mut mirrored = Numbered::new(1000);
    mirror.is_heard(&mut mirrored)?;
    let thief = host.run("thief", &[], &Peer::idle())?;
    if settle {
        host.settle("thief")?;
    }
    let watch = Watch::new(&[("the thief", &thief.space()?, "eth0")])?;
    let leaves = Watch::new(&[("the LAN", lan, "h1")])?;
    let raw = attacker(host, &thief, "docker0")?;
    let own = Ipv4Addr::new(172, 17, 0, 2);
    let asks = |numbers: &mut Numbered, protocol| {
        let asks = numbers.packet(format!("{protocol}"), packet(protocol, own, REMOTE));
        raw.send(&raw.dress().ipv4(&asks))
    };
    let mut asked = Numbered::new(3000);
    for _ in 0..5 {
        asks(&mut asked, GRE)?;
        mirror.is_heard(&mut mirrored)?;
    }
    mirrored.nowhere(&watch)?;
    asked.nowhere(&leaves)?;
    // Another protocol is nobody's.
    let mut other = Numbered::new(5000);
    asks(&mut other, ESP)?;
    other.everywhere(&leaves)
}

#[test]
fn container_takes_no_stream_the_host_hears() -> Result<()> {
    let scene = Scene::new("portless")?;
    thief_gets_nothing(&scene.host, scene.lan(), true)?;
    counted(&scene, "ports-exhausted", 0, 5)
}

/// The control: conntrack knows of the stream, so nf_nat does not give it away.
#[test]
fn stock_keeps_the_stream_the_host_hears() -> Result<()> {
    let lab = Lab::new("portless-stock")?;
    let host = lab.host(Docker::stock())?;
    thief_gets_nothing(&host, lab.lan(), false)
}

/// A container whose tunnel goes on while it starts anew; its first packet afterwards gets the
/// tunnel back.
fn restarted(host: &Host, lan: &Space, settle: bool) -> Result<()> {
    let mirror = Mirror::new(host, lan)?;
    let tunnel = host.run("tunnel", &[], &Peer::idle())?;
    let mut number = 1000;
    for settled in [false, true] {
        if settled {
            tunnel.docker("restart")?;
        }
        if settle {
            host.settle("tunnel")?;
        }
        let there = Watch::new(&[("the LAN", lan, "h1")])?;
        let back = Watch::new(&[("the tunnel", &tunnel.space()?, "eth0")])?;
        let raw = attacker(host, &tunnel, "docker0")?;
        let own = Ipv4Addr::new(172, 17, 0, 2);
        let mut numbers = Numbered::new(number);
        number += 1000;
        let asks = numbers.packet("a packet", packet(GRE, own, REMOTE));
        raw.send(&raw.dress().ipv4(&asks))?;
        numbers.everywhere(&there)?;
        let mut numbers = Numbered::new(number);
        number += 1000;
        mirror.send(&numbers.packet("an answer", packet(GRE, REMOTE, HOST)))?;
        numbers.everywhere(&back)?;
        if !settled {
            // The remote does not notice that the container is away.
            tunnel.docker("stop")?;
            for _ in 0..10 {
                mirror.send(&packet(GRE, REMOTE, HOST))?;
                sleep(Duration::from_millis(100));
            }
        }
    }
    Ok(())
}

#[test]
fn restarted_container_keeps_its_tunnel() -> Result<()> {
    let scene = Scene::new("portless-restart")?;
    restarted(&scene.host, scene.lan(), true)
}

/// The control: conntrack's entry outlives the container.
#[test]
fn stock_restarted_container_keeps_its_tunnel() -> Result<()> {
    let lab = Lab::new("portless-again")?;
    let host = lab.host(Docker::stock())?;
    restarted(&host, lab.lan(), false)
}
