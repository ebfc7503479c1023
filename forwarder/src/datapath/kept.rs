// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs that outlive their agent: the verifier takes a second or two for those on devices, so
//! each build pins them, and the next agent of the same build uses them.
//!
//! A program is the same if it was made of the same object with the same constants, and if it uses
//! the maps that are pinned now. Maps that are not pinned are shared by the programs on devices, and
//! hold nothing for longer than a datagram: programs are used again all together or not at all, but
//! for those of devices without Ethernet, which not every agent has loaded. Loaded later, they have
//! such maps of their own: all that these hold is from and for the same program.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hasher as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{MapData, MapInfo};
use aya::programs::SchedClassifier;
use forwarder_state::desired_state::Hook;

use super::pins::{self, Pins};
use super::{OBJECT, messages};
use crate::sys::remove;
use crate::trusted;

/// Ids of maps, by the names that the kernel has of them.
type Ids = BTreeMap<Vec<u8>, u32>;

/// The pinned programs of this build.
pub(super) struct Kept {
    dir: PathBuf,
}

impl Kept {
    /// Creates the directory for this build's programs.
    pub(super) fn make(pins: &Pins) -> Result<Self> {
        let mut hasher = DefaultHasher::new();
        hasher.write(OBJECT);
        hasher.write_u8(messages::level());
        let dir = pins.programs().join(format!("{:016x}", hasher.finish()));
        trusted::make(&dir)?;
        Ok(Self { dir })
    }

    /// Returns the pin of the ring of the programs' messages.
    pub(super) fn ring(&self) -> PathBuf {
        self.dir.join(messages::RING)
    }

    /// Returns the programs that an earlier agent has left, by their names; none unless all are there
    /// that every agent loads.
    pub(super) fn programs(&self, maps: &Path) -> BTreeMap<&'static str, SchedClassifier> {
        let hooks = Hook::ALL.into_iter().filter(|hook| *hook != Hook::Uplink);
        let (optional, required): (Vec<_>, Vec<_>) = hooks.partition(|hook| hook.is_raw());
        let programs = self.ids(maps).and_then(|mut ids| {
            let mut program = |hook: Hook| {
                let program = SchedClassifier::from_pin(self.dir.join(hook.program()))?;
                ensure!(uses(&program, &mut ids)?, "{hook:?} uses other maps");
                Ok((hook.program(), program))
            };
            let mut programs = required
                .into_iter()
                .map(&mut program)
                .collect::<Result<BTreeMap<_, _>>>()?;
            programs.extend(optional.into_iter().filter_map(|hook| program(hook).ok()));
            Ok(programs)
        });
        programs.unwrap_or_else(|error| {
            tracing::debug!("no programs of an earlier agent are used: {error:#}");
            BTreeMap::new()
        })
    }

    /// Returns the ids of the pinned maps.
    fn ids(&self, maps: &Path) -> Result<Ids> {
        let pinned = pins::entries(maps)?;
        let paths = pinned.iter().map(|name| maps.join(name));
        let id = |path| {
            let info = MapData::from_pin(path)?.info()?;
            Ok((info.name().to_vec(), info.id()))
        };
        paths.chain([self.ring()]).map(id).collect()
    }

    /// Pins a program that the kernel has accepted.
    pub(super) fn keep(&self, name: &str, program: &mut SchedClassifier) -> Result<()> {
        let path = self.dir.join(name);
        // One with other maps may be in the way.
        remove::file(&path)?;
        program
            .pin(&path)
            .with_context(|| format!("cannot pin {}", path.display()))
    }

    /// Removes the programs of other builds. Those that are attached stay attached.
    pub(super) fn forget_others(&self) -> Result<()> {
        let Some(parent) = self.dir.parent() else {
            return Ok(());
        };
        let builds = pins::entries(parent)?.into_iter();
        let others = builds.map(|name| parent.join(name));
        others
            .filter(|dir| *dir != self.dir)
            .try_for_each(|dir| fs::remove_dir_all(&dir).context("cannot remove earlier programs"))
    }
}

/// Whether a program uses no other map of a name than those that `ids` has; adds the others.
fn uses(program: &SchedClassifier, ids: &mut Ids) -> Result<bool> {
    let used = program
        .info()?
        .map_ids()?
        .context("the kernel hides maps")?;
    for id in used {
        let name = MapInfo::from_id(id)?.name().to_vec();
        if *ids.entry(name).or_insert(id) != id {
            return Ok(false);
        }
    }
    Ok(true)
}
