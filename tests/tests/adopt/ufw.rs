// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host with ufw, the real one: the host changes hands under traffic while ufw goes on with its
//! work, ufw's rules hold, and afterwards all rules are as before.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use harness::{Host, eventually, soaked};

use crate::follow::is_fast;
use crate::life::{UNBROKEN, ends, release};
use crate::{SOON, Stock};

/// Runs ufw with files of its own, as the package installs them: its configuration and its lock are
/// those of the machine otherwise.
fn ufw(host: &Host, words: &str) -> Result<String> {
    let files = host.state_dir().with_file_name("ufw");
    let script = format!(
        "set -e; mount -t tmpfs none /run
        if ! [ -d {files} ]; then
            mkdir {files}
            cp -a /etc/ufw {files}/etc && cp /etc/default/ufw {files}/default
            fresh=1
        fi
        mount --bind {files}/etc /etc/ufw && mount --bind {files}/default /etc/default/ufw
        [ -z \"$fresh\" ] || ufw --force reset >&2
        exec ufw {words}",
        files = files.display()
    );
    host.cmd(&["unshare", "--mount", "sh", "-c", &script])
}

/// On a host with ufw nothing is lost either, while ufw opens and closes a port, and reloads.
#[test]
fn ufw_host_changes_hands() -> Result<()> {
    let stock = Stock::new("ufw")?;
    let host = &stock.host;
    ufw(host, "--force enable")?;
    ufw(host, "allow 22/tcp")?;
    // With the first rule that it deletes, ufw completes its IPv6 chains.
    ufw(host, "allow 23/tcp")?;
    ufw(host, "delete allow 23/tcp")?;
    let mut server = host.spawn_peer(&["serve", "7100"])?;
    server.line("serving", SOON)?;
    let serves = || {
        let answer = stock
            .lab
            .lan()
            .peer(&["get", "198.18.1.1:7100", "--timeout=300"]);
        answer.map(drop)
    };
    let before = stock.rules()?;
    ensure!(before.contains("ufw-before-forward"), "{before}");
    let traffic = stock.traffic()?;
    let times = soaked(2, 20);
    for _ in 0..times {
        let mut agent = host.agent().quiet().start()?;
        sleep(Duration::from_millis(200));
        ensure!(
            serves().is_err(),
            "a port of the host that ufw closes answers"
        );
        ufw(host, "allow 7100/tcp")?;
        serves()?;
        ufw(host, "delete allow 7100/tcp")?;
        eventually(SOON, || is_fast(host))?;
        release(host)?;
        ends(&mut agent)?;
    }
    traffic.check_after(2 * times, UNBROKEN)?;
    let after = stock.rules()?;
    ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    // A reload lets the host itself receive nothing for a moment, with and without the forwarder.
    let traffic = stock.forwarded_traffic()?;
    let mut agent = host.agent().quiet().start()?;
    ufw(host, "reload")?;
    eventually(SOON, || is_fast(host))?;
    release(host)?;
    ends(&mut agent)?;
    traffic.check_after(3, UNBROKEN)?;
    let after = stock.rules()?;
    ensure!(
        before == after,
        "before:\n{before}\nafter the reload:\n{after}"
    );
    Ok(())
}
