// SPDX-License-Identifier: MIT OR Apache-2.0
//! Removes files and directories that may have gone already.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use anyhow::{Context as _, Result};

/// Removes a file, if it is there.
pub(crate) fn file(path: &Path) -> Result<()> {
    unless_missing(fs::remove_file(path), path)
}

/// Removes an empty directory, if it is there.
pub(crate) fn dir(path: &Path) -> Result<()> {
    unless_missing(fs::remove_dir(path), path)
}

/// Removes a directory and its content, if it is there.
pub(crate) fn tree(path: &Path) -> Result<()> {
    unless_missing(fs::remove_dir_all(path), path)
}

fn unless_missing(removed: io::Result<()>, path: &Path) -> Result<()> {
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_path_counts_as_removed() {
        let folder = std::env::temp_dir().join(format!("forwarder-remove-{}", std::process::id()));
        let path = folder.join("file");
        for remove in [file, dir, tree] {
            remove(&path).unwrap();
        }
        fs::create_dir(&folder).unwrap();
        fs::write(&path, "").unwrap();
        let error = format!("{:#}", dir(&folder).unwrap_err());
        assert!(
            error.starts_with(&format!("cannot remove {}: ", folder.display())),
            "{error}"
        );
        file(&path).unwrap();
        assert!(!path.exists());
        dir(&folder).unwrap();
        assert!(!folder.exists());
    }
}
