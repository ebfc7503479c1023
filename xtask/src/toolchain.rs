// SPDX-License-Identifier: MIT OR Apache-2.0
//! The compilers of the BPF object: the pinned versions, the choice among installed ones, the
//! commands.
use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::workspace::forget_package;

/// The accepted compilers: `[workspace.metadata.ebpf]` of the root manifest.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Pins {
    /// The version of bpf-linker that setup builds; a newer one on `PATH` is accepted too.
    pub(crate) bpf_linker: String,
    /// The LLVM release of the compilers, so that bpf-linker can read their bitcode.
    pub(crate) llvm: String,
    /// The rustup toolchain, with its date.
    pub(crate) nightly: String,
    /// The version of Debian's compiler that the budgets were measured with.
    pub(crate) rustc: String,
    /// The Debian packages that together are a compiler with its sources and LLVM's libraries.
    pub(crate) debian: Vec<String>,
}

impl Pins {
    /// Reads the pins from the manifest in `root`.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let path = root.join("Cargo.toml");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} lacks good pins", path.display()))
    }

    fn parse(manifest: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Manifest {
            workspace: Root,
        }
        #[derive(Deserialize)]
        struct Root {
            metadata: Metadata,
        }
        #[derive(Deserialize)]
        struct Metadata {
            ebpf: Pins,
        }
        let manifest: Manifest = toml::from_str(manifest)?;
        let mut pins = manifest.workspace.metadata.ebpf;
        for package in &mut pins.debian {
            *package = package.replace("{llvm}", &pins.llvm);
        }
        Ok(pins)
    }

    /// Returns what to do on a machine without any accepted compiler.
    pub(crate) fn advice(&self) -> String {
        let Self {
            nightly,
            bpf_linker,
            ..
        } = self;
        format!(
            "no compiler for the BPF object here: rustup toolchain install {nightly} --component rust-src, \
             and cargo install bpf-linker --version {bpf_linker}"
        )
    }
}

/// A toolchain of rustup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Installed {
    pub(crate) name: String,
    pub(crate) sysroot: PathBuf,
    /// Whether it has the sources of `core`, which must be compiled for BPF.
    pub(crate) has_sources: bool,
}

/// A bpf-linker and its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Linker {
    pub(crate) path: PathBuf,
    pub(crate) version: String,
}

/// What is installed on a machine, as far as the choice depends on it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
    pub(crate) rustup: Vec<Installed>,
    /// The first bpf-linker on `PATH`.
    pub(crate) path_linker: Option<Linker>,
    pub(crate) has_apt: bool,
}

/// The toolchain to use on a machine.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// A nightly and a linker that the user has installed.
    Rustup(Installed, Linker),
    /// Debian's compiler, and a matching linker that setup builds.
    Debian,
    /// Neither can be found nor installed.
    Nothing,
}

/// Chooses: what the user has installed takes precedence over what would have to be installed.
pub(crate) fn choose(machine: &Machine, pins: &Pins) -> Choice {
    let of_host = format!("{}-", pins.nightly);
    let nightly = machine
        .rustup
        .iter()
        .filter(|installed| installed.name == pins.nightly || installed.name.starts_with(&of_host))
        .find(|installed| installed.has_sources);
    let linker = machine
        .path_linker
        .as_ref()
        .filter(|linker| number(&linker.version) >= number(&pins.bpf_linker));
    match (nightly, linker) {
        (Some(nightly), Some(linker)) => Choice::Rustup(nightly.clone(), linker.clone()),
        _ if machine.has_apt => Choice::Debian,
        _ => Choice::Nothing,
    }
}

/// Returns the numbers of a version, for comparison.
fn number(version: &str) -> Vec<u64> {
    version
        .split(['.', '-', '+'])
        .map_while(|part| part.parse().ok())
        .collect()
}

/// A compiler that can compile `core` for BPF, and its linker.
#[derive(Debug)]
pub(crate) struct Toolchain {
    pub(crate) name: String,
    pub(crate) cargo: PathBuf,
    pub(crate) rustc: PathBuf,
    pub(crate) linker: PathBuf,
}

impl Toolchain {
    /// The compiler in `sysroot`.
    pub(crate) fn new(name: String, sysroot: &Path, linker: PathBuf) -> Self {
        let program = |name| sysroot.join("bin").join(name);
        Self {
            name,
            cargo: program("cargo"),
            rustc: program("rustc"),
            linker,
        }
    }

    /// Returns this toolchain's cargo, without the environment of the cargo that runs us: rustup
    /// tells every child which toolchain to use (and would download what it lacks), cargo adds its
    /// libraries and flags.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(&self.cargo);
        for inherited in [
            "CARGO",
            "CARGO_BUILD_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_TARGET_DIR",
            "LD_LIBRARY_PATH",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTDOC",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
        ] {
            command.env_remove(inherited);
        }
        forget_package(&mut command);
        // Debian's compiler is a stable one, and `-Z build-std` is not stable: hence the bootstrap
        // key.
        command
            .env("RUSTC", &self.rustc)
            .env("RUSTC_BOOTSTRAP", "1");
        command
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} with {}", self.name, self.linker.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pins() -> Pins {
        Pins {
            bpf_linker: "0.13.0".into(),
            llvm: "9".into(),
            nightly: "nightly-2026-01-02".into(),
            rustc: "1.2.3".into(),
            debian: vec![],
        }
    }

    fn installed(name: &str, has_sources: bool) -> Installed {
        Installed {
            name: name.into(),
            sysroot: Path::new("/rustup").join(name),
            has_sources,
        }
    }

    fn linker(version: &str) -> Linker {
        Linker {
            path: "/usr/local/bin/bpf-linker".into(),
            version: version.into(),
        }
    }

    #[test]
    fn complete_nightly_precedes_debian() {
        let nightly = installed("nightly-2026-01-02-x86_64-unknown-linux-gnu", true);
        let machine = Machine {
            rustup: vec![
                installed("stable-x86_64-unknown-linux-gnu", true),
                nightly.clone(),
            ],
            path_linker: Some(linker("0.13.0")),
            has_apt: true,
        };
        let Choice::Rustup(chosen, _) = choose(&machine, &pins()) else {
            panic!("not rustup's")
        };
        assert_eq!(chosen, nightly);
    }

    #[test]
    fn incomplete_nightly_does_not_precede_debian() {
        let complete = Machine {
            rustup: vec![installed(
                "nightly-2026-01-02-x86_64-unknown-linux-gnu",
                true,
            )],
            path_linker: Some(linker("0.13.0")),
            has_apt: true,
        };
        let no_sources = vec![installed(
            "nightly-2026-01-02-x86_64-unknown-linux-gnu",
            false,
        )];
        for lacking in [
            Machine {
                rustup: no_sources,
                ..complete.clone()
            },
            Machine {
                rustup: vec![installed("stable", true)],
                ..complete.clone()
            },
            Machine {
                path_linker: None,
                ..complete.clone()
            },
            Machine {
                path_linker: Some(linker("0.9.15")),
                ..complete.clone()
            },
        ] {
            assert_eq!(choose(&lacking, &pins()), Choice::Debian, "{lacking:?}");
            assert_eq!(
                choose(
                    &Machine {
                        has_apt: false,
                        ..lacking
                    },
                    &pins()
                ),
                Choice::Nothing
            );
        }
    }

    /// Only the pinned date serves, and a newer linker.
    #[test]
    fn nightly_is_dated_and_newer_linker_serves() {
        let others = ["nightly-2026-01-01-x86_64", "nightly-x86_64"];
        let mut machine = Machine {
            rustup: others.map(|name| installed(name, true)).into(),
            path_linker: Some(linker("0.14.1")),
            has_apt: false,
        };
        assert_eq!(choose(&machine, &pins()), Choice::Nothing);
        machine
            .rustup
            .push(installed("nightly-2026-01-02-x86_64", true));
        let Choice::Rustup(chosen, _) = choose(&machine, &pins()) else {
            panic!("not rustup's")
        };
        assert_eq!(chosen.name, "nightly-2026-01-02-x86_64");
    }

    /// No document and no source names a compiler's version: they would differ some day.
    #[test]
    fn versions_are_named_in_one_place() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let pins = Pins::read(&root).unwrap();
        let (llvm, nightly) = (&pins.llvm, &pins.nightly);
        let versions = [
            format!("llvm-{llvm}"),
            format!("LLVM {llvm}"),
            nightly.clone(),
        ];
        let mut files = crate::lint::sources(&root).unwrap();
        for folder in [&root, &root.join("docs")] {
            let entries = fs::read_dir(folder).unwrap().flatten();
            let texts = entries.map(|entry| entry.path());
            files.extend(texts.filter(|path| path.extension().is_some_and(|end| end == "md")));
        }
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            let named = versions.iter().find(|version| text.contains(*version));
            assert_eq!(named, None, "{}", file.display());
        }
    }

    #[test]
    fn versions_compare_by_number() {
        assert!(number("0.13.0") > number("0.9.15"));
        assert!(number("1.0.0-beta") > number("0.99.0"));
        assert_eq!(number("nonsense"), Vec::<u64>::new());
    }

    #[test]
    fn manifest_of_this_tree_has_pins() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let pins = Pins::read(&root).unwrap();
        assert_eq!(number(&pins.bpf_linker).len(), 3);
        assert!(
            pins.debian
                .iter()
                .any(|package| package.contains(&format!("llvm-{}", pins.llvm)))
        );
    }
}
