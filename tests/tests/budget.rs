//! Budgets that are easily overdrawn without notice: what the verifier walks through, the stack of
//! each BPF function, and the memory of the maps. `budget.toml` holds what was agreed on.

#[expect(dead_code, reason = "only the namespace and the loading are needed")]
mod ground;

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapInfo;
use forwarder::tables::{Hook, SocketHook};
use forwarder_common::abi::{Flow, LAYOUT, capacity};
use forwarder_common::family::V4;
use ground::{Ground, Loaded, ready};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};

/// What may be added unseen.
const GROWTH: f64 = 1.10;
/// Octets of all maps at the default size.
const MEMORY: u64 = 100 << 20;
/// Octets that BPF has for a whole chain of calls.
const STACK: u64 = 512;

/// Numbers by name.
type Numbers = BTreeMap<String, u64>;

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("budget.toml")
}

/// Compares a section of the file with what is so now. With `BUDGET=accept`, writes it instead.
fn compare(section: &str, now: &Numbers) -> Result<()> {
    let text = fs::read_to_string(file()).unwrap_or_default();
    let mut agreed: BTreeMap<String, Numbers> = toml::from_str(&text)?;
    if env::var("BUDGET").is_ok_and(|word| word == "accept") {
        agreed.insert(section.to_owned(), now.clone());
        let comment = "# Written by BUDGET=accept cargo test -p forwarder-tests --test budget -- --test-threads=1\n";
        fs::write(file(), format!("{comment}{}", toml::to_string(&agreed)?))?;
        return Ok(());
    }
    let agreed = agreed.remove(section).unwrap_or_default();
    let over: Vec<_> = now
        .iter()
        .filter_map(|(name, &number)| {
            let limit = agreed.get(name).copied().unwrap_or_default();
            (number as f64 > limit as f64 * GROWTH).then(|| format!("{name}: {limit} → {number}"))
        })
        .collect();
    ensure!(
        over.is_empty(),
        "over the {section} budget by more than a tenth: {}\nif it is worth it: BUDGET=accept cargo test -p forwarder-tests --test budget -- --test-threads=1, and commit tests/budget.toml",
        over.join(", "),
    );
    Ok(())
}

#[test]
fn programs_stay_easy_to_verify_and_maps_small() -> Result<()> {
    ready()?;
    let ground = Ground::new("budget")?;
    let (bpffs, netns) = (ground.bpffs(), ground.space().path().to_owned());
    ground.space().enter(|| {
        let mut kernel = Loaded::open(&bpffs, &netns, capacity::FLOWS)?;
        let mut walked = Numbers::new();
        let mut octets = Numbers::new();
        for hook in Hook::ALL {
            let (verified, size) = kernel.datapath.verified(hook)?;
            walked.insert(hook.program().to_owned(), u64::from(verified));
            octets.insert(hook.program().to_owned(), u64::from(size));
        }
        for hook in SocketHook::ALL {
            let (verified, size) = kernel.datapath.verified_socket(hook)?;
            walked.insert(hook.program().to_owned(), u64::from(verified));
            octets.insert(hook.program().to_owned(), u64::from(size));
        }
        println!("verified instructions: {walked:?}");
        println!("octets after translation: {octets:?}");
        let maps = memory(&bpffs.join(format!("v{LAYOUT}/maps")))?;
        let total: u64 = maps.values().sum();
        println!(
            "a flow: {} octets; maps: {total} octets: {maps:?}",
            size_of::<Flow<V4>>()
        );
        ensure!(
            total <= MEMORY,
            "the maps take {total} octets, more than {MEMORY}: {maps:?}"
        );
        compare("verified", &walked)?;
        compare("translated", &octets)?;
        compare(
            "flow",
            &Numbers::from([("record".to_owned(), size_of::<Flow<V4>>() as u64)]),
        )
    })?
}

/// The memory of each pinned map, as the kernel accounts for it.
fn memory(dir: &Path) -> Result<Numbers> {
    let mut maps = Numbers::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let map = MapInfo::from_pin(&path).with_context(|| format!("no map {}", path.display()))?;
        let map = map.fd()?;
        let fd = map.as_fd().as_raw_fd();
        let facts = fs::read_to_string(format!("/proc/thread-self/fdinfo/{fd}"))?;
        let octets = facts
            .lines()
            .find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
            .context("the kernel does not say what a map takes")?;
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        maps.insert(name, octets);
    }
    Ok(maps)
}

/// The verifier refuses a chain of calls over 512 octets, but does not say how near it came:
/// counted from the object, function by function.
#[test]
fn stacks_stay_small() -> Result<()> {
    let path = env::var_os("FORWARDER_BPF_OBJECT").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/forwarder-ebpf.o"),
        PathBuf::from,
    );
    let bytes = fs::read(&path)
        .with_context(|| format!("no {}: run `cargo xtask build`", path.display()))?;
    let stacks = stacks(&bytes)?;
    println!("stack octets: {stacks:?}");
    for (function, &octets) in &stacks {
        ensure!(
            octets <= STACK,
            "{function} alone takes {octets} octets of stack"
        );
    }
    compare("stack", &stacks)
}

/// The deepest octet below the frame pointer that each function names.
fn stacks(bytes: &[u8]) -> Result<Numbers> {
    let file = object::File::parse(bytes)?;
    let mut stacks = Numbers::new();
    for symbol in file
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text)
    {
        let Some(index) = symbol.section_index() else {
            continue;
        };
        let (section, size) = (file.section_by_index(index)?, symbol.size());
        let Some(code) = section.data_range(symbol.address(), size)? else {
            continue;
        };
        // Functions that are not exported have names that change with the compiler: the deepest
        // counts for all of them.
        let name = symbol.name()?;
        let name = if name.starts_with("_R") {
            "inner"
        } else {
            name
        };
        if size != 0 && !name.starts_with("mem") && name != "bcmp" {
            let octets = stacks.entry(name.to_owned()).or_default();
            *octets = depth(code).max(*octets);
        }
    }
    ensure!(!stacks.is_empty(), "the object has no functions");
    Ok(stacks)
}

/// The frame pointer.
const R10: u8 = 10;

/// Loads and stores relative to the frame pointer, and addresses that are taken of it: a copy of
/// r10 to which a negative number is added.
fn depth(code: &[u8]) -> u64 {
    let mut copies = [false; 16];
    let mut deepest = 0;
    for instruction in code.chunks_exact(8) {
        let (opcode, registers) = (instruction[0], instruction[1]);
        let (to, from) = (registers & 15, registers >> 4);
        let offset = i16::from_le_bytes([instruction[2], instruction[3]]);
        let number = i32::from_le_bytes([4, 5, 6, 7].map(|at| instruction[at]));
        let below = match opcode & 7 {
            // LDX names its source, ST and STX their destination.
            1 if from == R10 => -i64::from(offset),
            2 | 3 if to == R10 => -i64::from(offset),
            _ if opcode == 0xbf => {
                copies[usize::from(to)] = from == R10;
                0
            }
            _ if opcode == 0x07 && copies[usize::from(to)] => {
                copies[usize::from(to)] = false;
                -i64::from(number)
            }
            _ => 0,
        };
        deepest = deepest.max(below);
    }
    deepest.unsigned_abs()
}
