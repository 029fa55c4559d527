//! The cache folder, held by one xtask at a time.

use anyhow::{Context, Result};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

/// The cache folder; nobody else writes to it while this value lives.
pub struct Cache {
    pub folder: PathBuf,
    /// The lock ends with the file, also when the program is killed.
    _lock: File,
}

/// Makes the folder and waits for its lock.
pub fn open(folder: &Path) -> Result<Cache> {
    let unusable = || format!("cannot use the cache folder {} (ADVDMD_CACHE names another)", folder.display());
    fs::create_dir_all(folder).with_context(unusable)?;
    let lock = File::create(folder.join(".lock")).with_context(unusable)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            eprintln!("another xtask is using {}; waiting for it", folder.display());
            lock.lock().with_context(unusable)?;
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(unusable),
    }
    Ok(Cache { folder: folder.to_path_buf(), _lock: lock })
}

impl Cache {
    /// Fills an entry of the cache: `fill` works in a folder beside it, which takes the entry's place when it is whole.
    pub fn fill(&self, entry: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let name = entry.file_name().context("an entry of the cache has a name")?;
        let partial = self.folder.join(format!("{}.partial", name.display()));
        remove(&partial)?;
        fs::create_dir(&partial).with_context(|| format!("cannot make {}", partial.display()))?;
        let filled = fill(&partial).and_then(|()| {
            remove(entry)?;
            fs::rename(&partial, entry).with_context(|| format!("cannot make {}", entry.display()))
        });
        if filled.is_err() {
            remove(&partial).ok();
        }
        filled
    }
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    #[test]
    fn an_entry_is_whole_or_absent() {
        let base = tempfile::tempdir().unwrap();
        let cache = open(&base.path().join("cache")).unwrap();
        let entry = cache.folder.join("entry-1.0");
        cache.fill(&entry, |folder| Ok(fs::write(folder.join("half"), "")?).and_then(|()| bail!("stop"))).unwrap_err();
        let left: Vec<_> = fs::read_dir(&cache.folder).unwrap().map(|file| file.unwrap().file_name()).collect();
        assert_eq!(left, [".lock"]);
        for text in ["first", "second"] {
            cache.fill(&entry, |folder| Ok(fs::write(folder.join("file"), text)?)).unwrap();
            assert_eq!(fs::read_to_string(entry.join("file")).unwrap(), text);
        }
    }

    #[test]
    fn the_lock_is_exclusive() {
        let base = tempfile::tempdir().unwrap();
        let cache = open(base.path()).unwrap();
        let second = File::create(base.path().join(".lock")).unwrap();
        assert!(matches!(second.try_lock(), Err(TryLockError::WouldBlock)));
        drop(cache);
        second.try_lock().unwrap();
    }
}
