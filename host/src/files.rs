//! Writing files and folders so that a reader finds the old one or the new one, never a half.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// Creates a folder and its parents.
///
/// # Errors
/// Names the folder.
pub fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(Error::file("create", path))
}

/// Removes a file, if it is there.
///
/// # Errors
/// Names the file.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::file("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Writes a file beside its place, flushes it to disk and renames it.
///
/// # Errors
/// Names the file.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = sibling(path, "part");
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&temporary, path)).map_err(|source| {
        let _ = fs::remove_file(&temporary);
        Error::file("write", path)(source)
    })
}

/// Writes `value` as indented JSON.
///
/// # Errors
/// As [`write()`].
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|source| Error::content(path, source))?;
    text.push(b'\n');
    write(path, &text)
}

/// Reads a JSON file.
///
/// # Errors
/// Names the file, and the place where it is not what was expected.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read(path).map_err(Error::file("read", path))?;
    serde_json::from_slice(&text).map_err(|source| Error::content(path, source))
}

/// Fills a new folder beside `path` and renames it into place; an older one is removed after that.
///
/// # Errors
/// What `fill` gives; the older folder then still stands.
pub fn replace_dir(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let (new, old) = (sibling(path, "part"), sibling(path, "old"));
    for leftover in [&new, &old] {
        if leftover.exists() {
            fs::remove_dir_all(leftover).map_err(Error::file("remove", leftover))?;
        }
    }
    create_dir(&new)?;
    if let Err(error) = fill(&new) {
        let _ = fs::remove_dir_all(&new);
        return Err(error);
    }
    let rename = |from: &Path, to: &Path| fs::rename(from, to).map_err(Error::file("rename a new folder to", to));
    if path.exists() {
        rename(path, &old)?;
    }
    rename(&new, path)?;
    if old.exists() {
        fs::remove_dir_all(&old).map_err(Error::file("remove", &old))?;
    }
    Ok(())
}

/// `path` with `.suffix` behind its name.
fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{suffix}"));
    path.with_file_name(name)
}
