// SPDX-License-Identifier: MIT OR Apache-2.0
//! Budgets that are easily overdrawn without notice: what the verifier walks through, the stack of
//! each BPF function, and the memory of the maps. `budget.toml` holds what was agreed on.

#[expect(dead_code, reason = "only the namespace and the loading are needed")]
mod fixtures;

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapInfo;
use forwarder_common::abi::{Flow, LAYOUT, capacity};
use forwarder_common::family::V4;
use forwarder_state::desired_state::{Hook, SocketHook};
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionIndex, SymbolKind,
};

use fixtures::{Fixtures, Loaded};

/// What may be added unseen.
const GROWTH: f64 = 1.10;
/// Bytes of all maps at the default size.
const MEMORY: u64 = 100 << 20;
/// Bytes that BPF has for a whole chain of calls.
const STACK: u64 = 512;
/// To a multiple of this a kernel before 6.8 rounds each frame of a chain up, one that is empty too.
const FRAME: u64 = 32;

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
    let fixtures = Fixtures::new("budget")?;
    let (bpffs, netns) = (fixtures.bpffs(), fixtures.space().path().to_owned());
    fixtures.space().enter(|| {
        let mut kernel = Loaded::open(&bpffs, &netns, capacity::FLOWS)?;
        let mut walked = Numbers::new();
        let mut sizes = Numbers::new();
        for hook in Hook::ALL {
            let (verified, size) = kernel.datapath.verified(hook)?;
            walked.insert(hook.program().to_owned(), u64::from(verified));
            sizes.insert(hook.program().to_owned(), u64::from(size));
        }
        for hook in SocketHook::ALL {
            let (verified, size) = kernel.datapath.verified_socket(hook)?;
            walked.insert(hook.program().to_owned(), u64::from(verified));
            sizes.insert(hook.program().to_owned(), u64::from(size));
        }
        println!("verified instructions: {walked:?}");
        println!("bytes after translation: {sizes:?}");
        let maps = memory(&bpffs.join(format!("v{LAYOUT}/maps")))?;
        let total: u64 = maps.values().sum();
        println!(
            "a flow: {} bytes; maps: {total} bytes: {maps:?}",
            size_of::<Flow<V4>>()
        );
        ensure!(
            total <= MEMORY,
            "the maps take {total} bytes, more than {MEMORY}: {maps:?}"
        );
        compare("verified", &walked)?;
        compare("translated", &sizes)?;
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
        let size = facts
            .lines()
            .find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
            .context("the kernel does not say what a map takes")?;
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        maps.insert(name, size);
    }
    Ok(maps)
}

/// The verifier refuses a chain of calls over 512 bytes, but does not say how near it came:
/// counted from the object, function by function and chain by chain.
#[test]
fn stacks_stay_small() -> Result<()> {
    let path = env::var_os("FORWARDER_BPF_OBJECT").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/forwarder-ebpf.o"),
        PathBuf::from,
    );
    let bytes = fs::read(&path)
        .with_context(|| format!("no {}: run `cargo xtask build`", path.display()))?;
    let functions = functions(&bytes)?;
    let mut stacks = Numbers::new();
    for function in functions.iter().filter(|function| !function.is_builtin) {
        // Functions that are not exported have names that change with the compiler: the deepest
        // counts for all of them.
        let name = if function.name.starts_with("_R") {
            "inner"
        } else {
            &function.name
        };
        let stack = stacks.entry(name.to_owned()).or_default();
        *stack = function.stack.max(*stack);
    }
    println!("stack bytes: {stacks:?}");
    let mut chains = Numbers::new();
    let mut over = Vec::new();
    for program in functions.iter().filter(|function| function.is_program) {
        let chain = longest_chain(&functions, program, &mut Vec::new())?;
        println!("{}: {}", chain.bytes, chain.frames.join(" → "));
        if chain.bytes > STACK {
            over.push(format!("{} by {}", chain.bytes, chain.frames.join(" → ")));
        }
        chains.insert(program.name.clone(), chain.bytes);
    }
    ensure!(
        over.is_empty(),
        "kernel 6.1 refuses chains of calls of more than {STACK} bytes: {}",
        over.join("; ")
    );
    compare("stack", &stacks)?;
    compare("chain", &chains)
}

/// A function of the object.
struct Function {
    name: String,
    section: SectionIndex,
    start: u64,
    end: u64,
    /// Whether it is on a hook: all others are called.
    is_program: bool,
    /// Whether the compiler brought it along.
    is_builtin: bool,
    /// The deepest byte below the frame pointer that it names.
    stack: u64,
    /// The functions that it calls or gives to a helper as a callback.
    callees: Vec<usize>,
}

/// Calls of functions, from a program down.
#[derive(Default)]
struct Chain {
    bytes: u64,
    /// Each function with its own stack.
    frames: Vec<String>,
}

/// The chain of calls below a function that takes most stack, as `check_max_stack_depth` of kernel
/// 6.1 counts it. `callers` are the functions that the chain came by.
fn longest_chain(
    functions: &[Function],
    function: &Function,
    callers: &mut Vec<String>,
) -> Result<Chain> {
    let name = &function.name;
    ensure!(!callers.contains(name), "{name} calls itself: {callers:?}");
    callers.push(name.clone());
    let mut longest = Chain::default();
    for &callee in &function.callees {
        let chain = longest_chain(functions, &functions[callee], callers)?;
        if chain.bytes > longest.bytes {
            longest = chain;
        }
    }
    callers.pop();
    longest.bytes += function.stack.max(1).next_multiple_of(FRAME);
    longest
        .frames
        .insert(0, format!("{name} {}", function.stack));
    Ok(longest)
}

/// The object's functions, `memset` and its like among them: they are called as any other.
fn functions(bytes: &[u8]) -> Result<Vec<Function>> {
    let file = object::File::parse(bytes)?;
    let mut functions = Vec::new();
    for symbol in file
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() != 0)
    {
        let Some(index) = symbol.section_index() else {
            continue;
        };
        let (section, start) = (file.section_by_index(index)?, symbol.address());
        let Some(code) = section.data_range(start, symbol.size())? else {
            continue;
        };
        let name = symbol.name()?.to_owned();
        functions.push(Function {
            is_builtin: name.starts_with("mem") || name == "bcmp",
            name,
            section: index,
            start,
            end: start + symbol.size(),
            is_program: section.name()? != ".text",
            stack: depth(code),
            callees: Vec::new(),
        });
    }
    ensure!(!functions.is_empty(), "the object has no functions");
    for caller in 0..functions.len() {
        let callees = callees(&file, &functions, &functions[caller])?;
        functions[caller].callees = callees;
    }
    Ok(functions)
}

/// `call` of a function of the object, and the load of an address, which may be a function's.
const CALL: u8 = 0x85;
const LOAD_ADDRESS: u8 = 0x18;
/// In such an instruction's source register: another function is meant, relative to this one's place.
const OF_OBJECT: u8 = 1;

/// The functions that one names: by a relocation, or by the distance in the call itself.
fn callees(
    file: &object::File<'_>,
    functions: &[Function],
    caller: &Function,
) -> Result<Vec<usize>> {
    let section = file.section_by_index(caller.section)?;
    let code = section.data()?;
    let relocations: BTreeMap<u64, RelocationTarget> = section
        .relocations()
        .map(|(place, relocation)| (place, relocation.target()))
        .collect();
    let mut callees = Vec::new();
    for place in (caller.start..caller.end).step_by(8) {
        let instruction = &code[place as usize..][..8];
        let opcode = instruction[0];
        let is_call = opcode == CALL && instruction[1] >> 4 == OF_OBJECT;
        if !is_call && opcode != LOAD_ADDRESS {
            continue;
        }
        let number = i64::from(i32::from_le_bytes([4, 5, 6, 7].map(|at| instruction[at])));
        // A call counts instructions from the next one on; an address counts bytes from its symbol.
        let distance = if is_call { (number + 1) * 8 } else { number };
        let target = match relocations.get(&place) {
            Some(&RelocationTarget::Symbol(index)) => {
                let symbol = file.symbol_by_index(index)?;
                symbol
                    .section_index()
                    .map(|section| (section, symbol.address().wrapping_add_signed(distance)))
            }
            _ if is_call => Some((caller.section, place.wrapping_add_signed(distance))),
            _ => None,
        };
        let callee = functions
            .iter()
            .position(|function| target == Some((function.section, function.start)));
        ensure!(
            callee.is_some() || !is_call,
            "{} calls what is no function at {place:#x}",
            caller.name
        );
        callees.extend(callee);
    }
    Ok(callees)
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
