// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask test --tier vm`: other kernels than this machine's, booted in an emulator, verify
//! every program.
//!
//! A machine is Debian's kernel and an initramfs with two files, the BPF object and `verifier` as
//! its only process: no disk, no network, no module, no KVM. The process prints to the serial
//! console. When it ends, the kernel panics, restarts at once (`panic=-1`), and that ends QEMU.
//!
//! `--smoke` boots a Docker host instead, in the same way, and runs `tests/clsact.rs` on it.
use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, ensure};

use crate::{
    apt::{self, Need},
    build,
    kernels::Kernel,
    totals::Totals,
    workspace::Workspace,
};

mod initramfs;
mod qemu;
mod smoke;

use qemu::Qemu;
pub(crate) use smoke::smoke;

/// What the tier needs, in addition to [`Qemu`].
const NEEDS: [Need; 1] = [Need::package("debian-archive-keyring")];

/// The resources of a machine, in addition to its kernel and its root.
struct Machine {
    mebibytes: u32,
    processors: u32,
    /// How long it may run.
    seconds: u32,
}

/// Takes half a minute on an idle machine, and longer if programs are refused.
const VERIFY: Machine = Machine {
    mebibytes: 768,
    processors: 1,
    seconds: 420,
};

/// The kernels that are booted if none is named: the oldest that the product supports, and the
/// newest.
const KERNELS: [&str; 2] = ["6.1", "newest"];

/// Boots the kernels in parallel, and has them verify the programs whose name contains the filter.
pub(crate) fn run(
    workspace: &Workspace,
    kernels: &[String],
    filter: Option<&str>,
) -> Result<Totals> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the vm tier boots x86-64 kernels, and this machine is another"
    );
    apt::ensure(&NEEDS)?;
    let folder = workspace.target.join("vm");
    let wanted: Vec<_> = if kernels.is_empty() {
        KERNELS.map(str::to_owned).to_vec()
    } else {
        kernels.to_vec()
    };
    let qemu = Qemu::find(&folder)?;
    let kernels = Kernel::fetch(&folder, &wanted)?;
    let [object, verifier] = build::verifier(workspace)?;
    let root = folder.join("verifier.cpio");
    let files = [("init".to_owned(), verifier), ("object".to_owned(), object)];
    initramfs::write(&root, &files)?;
    let words = format!("/object {}", filter.unwrap_or_default());
    let reports: Vec<_> = thread::scope(|scope| {
        let machines: Vec<_> = kernels
            .iter()
            .map(|kernel| scope.spawn(|| boot(&qemu, &kernel.image, &root, &VERIFY, &words)))
            .collect();
        machines
            .into_iter()
            .map(|machine| machine.join().expect("a machine's thread does not panic"))
            .collect()
    });
    let mut totals = Totals::default();
    for (kernel, report) in kernels.iter().zip(reports) {
        totals += show(kernel, report);
    }
    Ok(totals)
}

/// The lines that a machine printed, and the seconds that it took.
struct Report {
    lines: Vec<String>,
    seconds: u64,
}

/// Boots a kernel with some words for its first process, and waits until its machine has ended.
fn boot(qemu: &Qemu, kernel: &Path, root: &Path, machine: &Machine, words: &str) -> Result<Report> {
    let Machine {
        mebibytes,
        processors,
        seconds,
    } = machine;
    let start = Instant::now();
    // Without `tsc=unstable` a guest's clock runs several times too fast on a busy machine, and a
    // kernel that checks its timer there may find that it does not tick.
    let line = format!(
        "console=ttyS0 quiet panic=-1 mitigations=off tsc=unstable no_timer_check -- {words}"
    );
    let mut timeout = Command::new("timeout");
    timeout.args(["--kill-after=5", &seconds.to_string()]);
    let mut qemu = qemu
        .run_by(timeout)
        .args(["-accel", "tcg,thread=multi", "-cpu", "max"])
        .args(["-m", &mebibytes.to_string()])
        .args(["-smp", &processors.to_string()])
        .args(["-nodefaults", "-display", "none", "-serial", "stdio"])
        .arg("-no-reboot")
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(root)
        .arg("-append")
        .arg(line)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start qemu-system-x86_64")?;
    let console = qemu.stdout.take().context("QEMU has no output")?;
    let mut lines = Vec::new();
    for line in BufReader::new(console).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
        lines.push(line);
    }
    qemu.wait()?;
    Ok(Report {
        lines,
        seconds: start.elapsed().as_secs(),
    })
}

/// Prints the result of each program; the whole console if the verifier did not finish.
fn show(kernel: &Kernel, report: Result<Report>) -> Totals {
    let name = &kernel.version;
    let report = match report {
        Ok(report) => report,
        Err(error) => {
            println!("kernel {name}: {error:#}");
            return Totals::ONE_FAILED;
        }
    };
    println!("kernel {name}, {} s:", report.seconds);
    let (shown, totals) = results(&report.lines);
    for line in shown {
        println!("{line}");
    }
    counted(totals).unwrap_or_else(|why| {
        println!("{why}");
        Totals::ONE_FAILED
    })
}

/// The sum of a machine that tried anything.
fn counted(totals: Option<Totals>) -> Result<Totals, &'static str> {
    match totals {
        Some(totals) if totals.passed + totals.failed > 0 => Ok(totals),
        Some(_) => Err("no test has such a name"),
        None => Err("the machine ended, or was ended, without a result"),
    }
}

/// The verifier's lines on a console and their sum: everything there is, without a sum.
fn results(console: &[String]) -> (&[String], Option<Totals>) {
    let result = console
        .iter()
        .enumerate()
        .find_map(|(at, line)| Some((at, Totals::parse(line)?)));
    let Some((end, totals)) = result else {
        return (console, None);
    };
    let start = console
        .iter()
        .position(|line| line.contains("test "))
        .unwrap_or(end);
    (&console[start..=end], Some(totals))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn results_end_at_kernel_messages() {
        let console = lines(
            "SeaBIOS\ntest a ... ok\ntest b ... FAILED\n  why\n\
             test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured\nKernel panic",
        );
        let (shown, totals) = results(&console);
        assert_eq!(shown, &console[1..5]);
        let totals = totals.unwrap();
        assert_eq!((totals.passed, totals.failed), (1, 1));
    }

    #[test]
    fn console_without_a_result_is_shown_whole() {
        let console = lines("test a ... ok\nBUG: soft lockup");
        assert_eq!(results(&console), (&console[..], None));
        assert!(counted(None).is_err());
    }

    #[test]
    fn machine_without_a_test_fails() {
        let none = lines("test result: ok. 0 passed; 0 failed; 0 ignored; 2 filtered out");
        assert!(counted(results(&none).1).is_err());
        let one = lines("test result: ok. 1 passed; 0 failed; 0 ignored");
        assert_eq!(counted(results(&one).1).map(|totals| totals.passed), Ok(1));
    }
}
