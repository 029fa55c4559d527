//! Digests of large files that seldom change: each is read once, and again when it was changed.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::files::{self, FileDigest};
use crate::progress::Progress;
use crate::{Error, Result};

/// Smaller files are read each time: that costs less than remembering them.
const SMALL: u64 = 1 << 20;

/// From this on it takes so long that something is shown meanwhile.
const SHOWN: u64 = 1 << 30;

/// A file that changed so shortly ago may change again without another time stamp.
const SETTLED_NANOSECONDS: i128 = 2_000_000_000;

/// Digests that were computed before, by the canonical path of their files.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    files: BTreeMap<PathBuf, Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    stamp: Stamp,
    sha256: String,
}

/// What changes when a file does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stamp {
    bytes: u64,
    inode: u64,
    /// When the content changed, in nanoseconds.
    modified: i128,
    /// When content or inode changed: `modified` can be set back, as copying tools do, and this cannot.
    changed: i128,
}

impl Stamp {
    /// Of a file as it is now.
    pub(crate) fn of(metadata: &Metadata) -> Self {
        let time = |seconds: i64, nanoseconds: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
        Self {
            bytes: metadata.len(),
            inode: metadata.ino(),
            modified: time(metadata.mtime(), metadata.mtime_nsec()),
            changed: time(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether a later change will have another stamp.
    pub(crate) fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.is_ok_and(|now| now.as_nanos() as i128 - self.changed > SETTLED_NANOSECONDS)
    }
}

/// The user's folder for what this program can compute again: `ADVDMD_CACHE`, else `advdmd` in `XDG_CACHE_HOME` or
/// `~/.cache`.
#[must_use]
pub fn cache_folder() -> Option<PathBuf> {
    let folder = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let caches = || folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")));
    folder("ADVDMD_CACHE").or_else(|| Some(caches()?.join("advdmd")))
}

/// The digests of `paths`, in that order: read, or remembered in `file_digests.json` of [`cache_folder`] if neither size nor
/// times nor inode have changed. Shows how far it has come where there is much to read.
///
/// # Errors
/// A file that cannot be read: names it.
pub fn digests(paths: &[PathBuf]) -> Result<Vec<FileDigest>> {
    let cache = cache_folder().map(|folder| folder.join("file_digests.json"));
    remembered(paths, cache.as_deref(), SMALL)
}

fn remembered(paths: &[PathBuf], cache: Option<&Path>, small: u64) -> Result<Vec<FileDigest>> {
    // A cache that is absent, damaged or of another version is an empty one.
    let mut known: Known = cache.and_then(|cache| files::read_json(cache).ok()).unwrap_or_default();
    let mut digests: Vec<Option<FileDigest>> = Vec::new();
    let mut unknown = Vec::new();
    for (index, path) in paths.iter().enumerate() {
        let real = fs::canonicalize(path).map_err(Error::file("read", path))?;
        let stamp = Stamp::of(&fs::metadata(&real).map_err(Error::file("read", path))?);
        let entry = known.files.get(&real).filter(|entry| entry.stamp == stamp);
        let sha256 = of_blob(&real).or_else(|| entry.map(|entry| entry.sha256.clone()));
        digests.push(sha256.map(|sha256| FileDigest { bytes: stamp.bytes, sha256 }));
        if digests[index].is_none() {
            unknown.push((index, real, stamp));
        }
    }
    let total: u64 = unknown.iter().map(|(.., stamp)| stamp.bytes).sum();
    let mebibytes = |bytes: u64| bytes >> 20;
    let mut progress = (total >= SHOWN).then(|| Progress::new("hashing model files (MiB)", 0, mebibytes(total)));
    let (mut done, mut learned) = (0, false);
    for (index, real, stamp) in unknown {
        let digest = FileDigest::watched(&real, |bytes| {
            let before = mebibytes(done);
            done += bytes;
            // Once in a while is enough for a bar.
            if mebibytes(done) / 64 > before / 64
                && let Some(progress) = &mut progress
            {
                progress.advance(mebibytes(done), "");
            }
        })?;
        let after = fs::metadata(&real).map(|metadata| Stamp::of(&metadata));
        if stamp.bytes >= small && stamp.is_settled() && after.is_ok_and(|after| after == stamp) {
            known.files.insert(real, Entry { stamp, sha256: digest.sha256.clone() });
            learned = true;
        }
        digests[index] = Some(digest);
    }
    if let Some(cache) = cache.filter(|_| learned) {
        known.files.retain(|path, _| path.exists());
        if let Err(error) = keep(cache, &known) {
            tracing::debug!("digests of large files are not kept: {}", error.in_one_line());
        }
    }
    Ok(digests.into_iter().flatten().collect())
}

fn keep(cache: &Path, known: &Known) -> Result<()> {
    files::create_dir(cache.parent().unwrap_or(cache))?;
    files::write_shared(cache, &serde_json::to_vec_pretty(known).map_err(Error::failed)?)
}

/// The SHA-256 that a large file of the Hugging Face cache is called after: `models--*/blobs/<64 hexadecimal digits>`.
///
/// That is the hash which the hub gave for the file; its client need not have compared it with what it received, and
/// nobody does here. It says which model a run was made with, as the commit in the path does; a blob that was damaged
/// or changed by hand goes unnoticed.
fn of_blob(real: &Path) -> Option<String> {
    let name = real.file_name()?.to_str()?;
    let blobs = real.parent()?;
    let repository = blobs.parent()?.file_name()?.to_str()?;
    let hexadecimal = name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (hexadecimal && blobs.ends_with("blobs") && repository.starts_with("models--")).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs::{File, FileTimes};
    use std::time::Duration;

    use super::*;

    /// SHA-256 of "abc".
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn sha256(path: &Path, cache: &Path) -> String {
        remembered(&[path.to_owned()], Some(cache), 1).unwrap()[0].sha256.clone()
    }

    /// Puts another digest into the cache, which then comes back exactly while it is believed.
    fn mark(cache: &Path, path: &Path, stamp: &Stamp) {
        let entry = Entry { stamp: stamp.clone(), sha256: "marked".to_owned() };
        keep(cache, &Known { files: [(path.to_owned(), entry)].into() }).unwrap();
    }

    #[test]
    fn a_file_is_read_again_when_it_has_changed() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        let (path, cache) = (real.join("w.safetensors"), real.join("cache/digests.json"));
        fs::write(&path, "abc").unwrap();
        assert_eq!(sha256(&path, &cache), ABC);
        let stamp = Stamp::of(&fs::metadata(&path).unwrap());
        mark(&cache, &path, &stamp);
        assert_eq!(sha256(&path, &cache), "marked");
        for other in [
            Stamp { bytes: 4, ..stamp.clone() },
            Stamp { inode: 1, ..stamp.clone() },
            Stamp { modified: 1, ..stamp.clone() },
            Stamp { changed: 1, ..stamp.clone() },
        ] {
            mark(&cache, &path, &other);
            assert_eq!(sha256(&path, &cache), ABC, "{other:?}");
        }
        // Another content of the same length, with the old time put back.
        mark(&cache, &path, &stamp);
        fs::write(&path, "abd").unwrap();
        let before = SystemTime::UNIX_EPOCH + Duration::from_nanos(stamp.modified as u64);
        File::options().write(true).open(&path).unwrap().set_times(FileTimes::new().set_modified(before)).unwrap();
        assert_ne!(sha256(&path, &cache), "marked");
    }

    #[test]
    fn only_what_has_settled_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let (path, cache) = (folder.path().join("w"), folder.path().join("digests.json"));
        fs::write(&path, "abc").unwrap();
        assert_eq!(sha256(&path, &cache), ABC);
        assert!(!cache.exists(), "the file is too young");
        std::thread::sleep(Duration::from_millis(2100));
        assert_eq!(remembered(std::slice::from_ref(&path), Some(&cache), 4).unwrap()[0].sha256, ABC);
        assert!(!cache.exists(), "the file is too small");
        assert_eq!(sha256(&path, &cache), ABC);
        let known: Known = files::read_json(&cache).unwrap();
        assert_eq!(known.files[&path.canonicalize().unwrap()].sha256, ABC);
    }

    #[test]
    fn a_cache_that_cannot_be_used_costs_time_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w");
        fs::write(&path, "abc").unwrap();
        assert_eq!(sha256(&path, &path.join("no folder")), ABC);
        let cache = folder.path().join("digests.json");
        fs::write(&cache, "{\"version\": 9}").unwrap();
        assert_eq!(sha256(&path, &cache), ABC);
        assert_eq!(remembered(&[path], None, 1).unwrap()[0], FileDigest { bytes: 3, sha256: ABC.to_owned() });
    }

    #[test]
    fn blobs_of_the_hub_are_called_after_their_digest() {
        let folder = tempfile::tempdir().unwrap();
        let name = "0f".repeat(32);
        let cached = |parts: &str, name: &str| {
            let blobs = folder.path().join(parts);
            fs::create_dir_all(&blobs).unwrap();
            fs::write(blobs.join(name), "abc").unwrap();
            let link = blobs.join("link");
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(blobs.join(name), &link).unwrap();
            sha256(&link, &folder.path().join("digests.json"))
        };
        assert_eq!(cached("models--org--name/blobs", &name), name);
        assert_eq!(cached("models--org--name/blobs", &"0f".repeat(20)), ABC, "a small file's git hash");
        assert_eq!(cached("models--org--name/blobs", &"0G".repeat(32)), ABC);
        assert_eq!(cached("mine/blobs", &name), ABC);
        assert_eq!(cached("models--org--name/other", &name), ABC);
    }
}
