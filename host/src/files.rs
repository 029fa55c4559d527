//! Writing files and folders so that a reader finds the old one or the new one, never a half.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

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
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes a folder and all in it, if it is there.
///
/// # Errors
/// Names the folder.
pub fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Gives a file the ending `.old`, if it is there; one that has that name already is lost.
///
/// # Errors
/// Names the file.
pub fn set_aside(path: &Path) -> Result<()> {
    match fs::rename(path, sibling(path, "old")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::file("rename", path)(error)),
        _ => Ok(()),
    }
}

/// Writes a file beside its place, flushes it to disk and renames it. A link keeps leading where it leads; what is there and no
/// file, such as a pipe or `/dev/stdout`, is written to as it stands.
///
/// # Errors
/// Names the file.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let Ok(found) = fs::metadata(path) else { return write_by_way_of(&sibling(path, "part"), path, bytes) };
    if !found.is_file() && !found.is_dir() {
        let written = OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(bytes));
        return written.map_err(Error::file("write", path));
    }
    let real =
        if path.is_symlink() { fs::canonicalize(path).map_err(Error::file("write", path))? } else { path.into() };
    write_by_way_of(&sibling(&real, "part"), &real, bytes)
}

/// As [`write()`], for a file that other processes write as well: each beside it on its own, and the last one stays.
///
/// # Errors
/// As [`write()`].
pub fn write_shared(path: &Path, bytes: &[u8]) -> Result<()> {
    write_by_way_of(&sibling(path, &format!("{}.part", std::process::id())), path, bytes)
}

fn write_by_way_of(temporary: &Path, path: &Path, bytes: &[u8]) -> Result<()> {
    let written = File::create(temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(temporary, path)).map_err(|source| {
        let _ = fs::remove_file(temporary);
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

/// Fills a new folder beside `path` and puts it in place in one step; an older one is removed after that.
///
/// # Errors
/// What `fill` gives; the older folder then still stands.
pub fn replace_dir(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let new = sibling(path, "part");
    remove_dir(&new)?;
    create_dir(&new)?;
    let parent = path.parent().unwrap_or(path);
    let placed =
        fill(&new).and_then(|()| sync_dir(&new)).and_then(|()| place(&new, path)).and_then(|()| sync_dir(parent));
    // After an exchange this is the older folder, after a failure the unfinished one.
    let leftover = remove_dir(&new);
    placed.and(leftover)
}

/// Puts the folder `new` at `path`; an older one is then at `new`, or gone.
fn place(new: &Path, path: &Path) -> Result<()> {
    let fail = |error| Error::file("rename a new folder to", path)(error);
    if !path.exists() {
        return fs::rename(new, path).map_err(fail);
    }
    match renameat_with(CWD, new, CWD, path, RenameFlags::EXCHANGE).map_err(io::Error::from) {
        Ok(()) => Ok(()),
        // Network file systems cannot exchange: there is a moment without either.
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
            let old = sibling(path, "old");
            remove_dir(&old)?;
            fs::rename(path, &old).and_then(|()| fs::rename(new, path)).map_err(fail)?;
            remove_dir(&old)
        }
        Err(error) => Err(fail(error)),
    }
}

/// Brings a folder's list of names to disk: a rename outlives a power cut only after that.
fn sync_dir(path: &Path) -> Result<()> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(path).and_then(|folder| folder.sync_all()).map_err(Error::file("write", path))
}

/// `path` with `.suffix` behind its name.
#[must_use]
pub fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{suffix}"));
    path.with_file_name(name)
}

/// Size and content of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileDigest {
    /// Length.
    pub bytes: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

impl FileDigest {
    /// Of the file as it is now.
    ///
    /// # Errors
    /// Names the file.
    pub fn of(path: &Path) -> Result<Self> {
        Self::watched(path, |_| {})
    }

    /// The same; `watch` is told how many bytes were read since the last time.
    ///
    /// # Errors
    /// Names the file.
    pub fn watched(path: &Path, mut watch: impl FnMut(u64)) -> Result<Self> {
        let mut read = || {
            let mut file = File::open(path)?;
            let mut hasher = Sha256::new();
            let mut buffer = vec![0; 1 << 20];
            let mut bytes = 0;
            loop {
                let count = match file.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) => count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error),
                };
                hasher.update(&buffer[..count]);
                bytes += count as u64;
                watch(count as u64);
            }
            Ok(Self { bytes, sha256: format!("{:x}", hasher.finalize()) })
        };
        read().map_err(Error::file("read", path))
    }

    /// Compares the length alone.
    ///
    /// # Errors
    /// A missing file or another length: names the file.
    pub fn verify_size(&self, path: &Path) -> Result<()> {
        let found = fs::metadata(path).map_err(Error::file("read", path))?.len();
        if found == self.bytes {
            return Ok(());
        }
        Err(Error::content(path, format!("damaged: expected {} bytes, found {found}", self.bytes)))
    }

    /// Compares length and content.
    ///
    /// # Errors
    /// A missing file or another content: names the file.
    pub fn verify(&self, path: &Path) -> Result<()> {
        self.verify_size(path)?;
        let found = Self::of(path)?.sha256;
        if found == self.sha256 {
            return Ok(());
        }
        Err(Error::content(path, format!("damaged: SHA-256 {found}, expected {}", self.sha256)))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt as _, symlink};

    use super::*;

    #[test]
    fn only_files_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link, pipe) = (folder.path().join("file"), folder.path().join("link"), folder.path().join("pipe"));
        symlink("file", &link).unwrap();
        write(&file, b"old").unwrap();
        write(&link, b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert!(link.is_symlink());
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || fs::read(pipe).unwrap()
        });
        write(&pipe, b"through").unwrap();
        assert_eq!(reader.join().unwrap(), b"through");
        assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
    }
}
