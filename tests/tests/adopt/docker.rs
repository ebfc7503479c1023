// SPDX-License-Identifier: MIT OR Apache-2.0
//! Docker's semantics on top of its own rules: whoever asks whom gets the same answer with the
//! forwarder as without it.

use std::collections::BTreeMap;
use std::thread;

use anyhow::{Result, ensure};
use harness::{Container, Docker, Host, Lab, Peer, Space, eventually};

use crate::SOON;

/// Who is reached by whom: a name, the place that asks, and the peer's arguments.
type Question = (String, Space, Vec<String>);
/// The answers, by the questions' names.
type Answers = BTreeMap<String, String>;

/// A stock host with networks of every kind.
struct Kinds {
    lab: Lab,
    host: Host,
    containers: BTreeMap<&'static str, Container>,
}

impl Kinds {
    fn new(label: &str) -> Result<Self> {
        let lab = Lab::new(label)?;
        let host = lab.host(Docker::stock())?;
        let icc = "com.docker.network.bridge.enable_icc=false";
        let networks: [&[&str]; 5] = [
            &["app"],
            &["db"],
            &["alone", "--internal"],
            &["apart", "-o", icc],
            &["six", "--ipv6", "--subnet=fd00:6::/64"],
        ];
        for words in networks {
            host.docker(&[&["network", "create"], words].concat())?;
        }
        let mut containers = BTreeMap::new();
        let mut run = |name, options: &[&str], program: &Peer| -> Result<()> {
            containers.insert(name, host.run(name, options, program)?);
            Ok(())
        };
        let ports = [
            "--network=app",
            "-p=8080:80",
            "-p=8080:80/udp",
            "-p=198.18.1.1:8081:80",
            "-p=127.0.0.1:8082:80",
        ];
        run("web", &ports, &Peer::serve(80))?;
        run("friend", &["--network=app"], &Peer::serve(80))?;
        let ports = ["--network=db", "-p=9090:80", "-p=9090:80/udp"];
        run("store", &ports, &Peer::serve(80))?;
        run("inside", &[], &Peer::serve(80))?;
        run("shared", &["--network=container:inside"], &Peer::serve(81))?;
        run("hosts", &["--network=host"], &Peer::serve(7100))?;
        run("alone1", &["--network=alone"], &Peer::serve(80))?;
        run("alone2", &["--network=alone"], &Peer::serve(80))?;
        let ports = ["--network=apart", "-p=9091:80"];
        run("apart1", &ports, &Peer::serve(80))?;
        run("apart2", &["--network=apart"], &Peer::serve(80))?;
        run("six1", &["--network=six", "-p=9092:80"], &Peer::serve(80))?;
        run("both", &["--network=app"], &Peer::serve(80))?;
        host.docker(&["network", "connect", "db", "both"])?;
        Ok(Self {
            lab,
            host,
            containers,
        })
    }

    fn questions(&self) -> Result<Vec<Question>> {
        let place =
            |name: &'static str| Ok::<_, anyhow::Error>((name, self.containers[name].space()?));
        let mut places = vec![
            ("lan", Space::clone(self.lab.lan())),
            ("host", Space::clone(&self.host)),
        ];
        for name in [
            "friend", "web", "store", "inside", "alone1", "apart2", "six1", "both",
        ] {
            places.push(place(name)?);
        }
        let mut targets = vec![
            ("get", "198.18.1.1:8080".to_owned()),
            ("udp", "198.18.1.1:8080".to_owned()),
            ("get", "198.18.1.1:8081".to_owned()),
            ("get", "127.0.0.1:8082".to_owned()),
            ("get", "198.18.1.1:8082".to_owned()),
            ("get", "198.18.1.1:9090".to_owned()),
            ("get", "198.18.1.1:9091".to_owned()),
            ("get", "198.18.1.1:9092".to_owned()),
            ("get", "[::1]:9092".to_owned()),
            ("get", "198.18.1.1:7100".to_owned()),
            ("get", "198.18.1.2:7000".to_owned()),
            ("ping", "198.18.1.2".to_owned()),
            ("ping", "198.18.1.1".to_owned()),
        ];
        let ip = |name: &str| self.containers[name].ip();
        for name in ["friend", "store", "alone2", "apart1"] {
            targets.push(("get", format!("{}:80", ip(name)?)));
            targets.push(("ping", ip(name)?.to_string()));
        }
        targets.push(("get", format!("{}:81", ip("inside")?)));
        let mut all = Vec::new();
        for (place, space) in &places {
            for (verb, to) in &targets {
                // docker-proxy answers a container's datagram from another address than it asked.
                if *verb == "udp" && !["lan", "host"].contains(place) {
                    continue;
                }
                let mut words = vec![(*verb).to_owned(), to.clone()];
                words.extend((*verb == "udp").then(|| "x".to_owned()));
                all.push((format!("{place} {verb} {to}"), space.clone(), words));
            }
        }
        Ok(all)
    }

    /// Asks all questions, several at once. A question that is answered in another way than earlier
    /// is asked twice.
    fn answers(&self, earlier: Option<&Answers>) -> Result<Answers> {
        let questions = self.questions()?;
        let ask = |(name, space, words): &Question| {
            let mut words: Vec<_> = words.iter().map(String::as_str).collect();
            words.push("--timeout=400");
            let mut told = answer(space, &words);
            if earlier.is_some_and(|earlier| earlier.get(name) != Some(&told)) {
                // A busy machine may be late.
                words.push("--timeout=2000");
                told = answer(space, &words);
            }
            (name.clone(), told)
        };
        Ok(thread::scope(|scope| {
            let parts = questions.chunks(questions.len().div_ceil(24));
            let asking: Vec<_> = parts
                .map(|part| scope.spawn(move || part.iter().map(ask).collect::<Vec<_>>()))
                .collect();
            let told = asking
                .into_iter()
                .flat_map(|part| part.join().unwrap_or_default());
            told.collect()
        }))
    }
}

/// Returns the answer without the client's port, or in which way there is none.
fn answer(space: &Space, words: &[&str]) -> String {
    match space.peer(words) {
        Ok(text) if words[0] == "ping" => text.trim().to_owned(),
        Ok(text) => {
            let first = text.split_whitespace().next().unwrap_or_default();
            let address = first.rsplit_once(':').map_or(first, |(address, _)| address);
            // Whoever asks at the host itself comes from one of its addresses: with docker-proxy or
            // the forwarder from the gateway's, with Docker's rules from the one that was asked.
            let is_hosts = address.ends_with(".0.1") || address == "198.18.1.1";
            let host = if is_hosts || address == "[fd00:6::1]" {
                "host"
            } else {
                address
            };
            host.to_owned()
        }
        Err(error) => {
            let text = format!("{error:#}").to_lowercase();
            let ways = ["refused", "unreachable", "reset", "prohibited"];
            let way = ways.into_iter().find(|way| text.contains(way));
            way.unwrap_or("none").to_owned()
        }
    }
}

/// Returns what is answered in another way than on the stock host.
fn differences(stock: &Answers, now: &Answers) -> Vec<String> {
    let differ = stock
        .iter()
        .filter(|(name, answer)| now.get(*name) != Some(*answer));
    let told = differ.map(|(name, answer)| format!("{name}: {answer}, now {:?}", now.get(name)));
    told.collect()
}

/// All networks on the fast path, and then one of them left to the kernel beside the others.
#[test]
fn adopted_host_answers_as_stock() -> Result<()> {
    let kinds = Kinds::new("kinds")?;
    let host = &kinds.host;
    let mut outside = kinds.lab.lan().spawn_peer(&["serve", "7000"])?;
    outside.line("serving", SOON)?;
    // An IPv6 address serves nobody before it is known to be unique.
    eventually(SOON, || host.peer(&["get", "[::1]:9092", "--timeout=400"]))?;
    let stock = kinds.answers(None)?;
    let _agent = host.agent().config("")?.start()?;
    let adopted = kinds.answers(Some(&stock))?;
    let differ = differences(&stock, &adopted);
    ensure!(differ.is_empty(), "{}", differ.join("\n"));
    let networks = || Ok::<_, anyhow::Error>(host.json("networks")?.to_string());
    ensure!(!networks()?.contains("\"left\":\""), "{}", networks()?);
    host.configure("[network.db]\nmode = \"off\"\n")?;
    eventually(SOON, || {
        ensure!(networks()?.contains("its mode is off"), "{}", networks()?);
        Ok(())
    })?;
    let differ = differences(&stock, &kinds.answers(Some(&stock))?);
    ensure!(
        differ.is_empty(),
        "beside one that is off: {}",
        differ.join("\n")
    );
    Ok(())
}
