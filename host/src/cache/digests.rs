//! What is known of the files of a data set, so that those that have not changed need not be read again.

use std::collections::HashMap;
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{Key, unwritable};
use crate::{Result, files};

/// A file that was written to so recently may be written to again without a change of its time.
const SETTLED: Duration = Duration::from_secs(2);

/// What an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// SHA-256 of the file's bytes.
    pub digest: Key,
    /// Width and height in pixels, as it is meant to be seen.
    pub size: [u32; 2],
}

/// Length and time of a file, which change with its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    bytes: u64,
    nanoseconds: u64,
}

impl Stamp {
    /// Of a file as it is now; `None` where its time does not tell whether it has changed.
    pub fn of(file: &Metadata) -> Option<Self> {
        let modified = file.modified().ok()?;
        let settled = SystemTime::now().duration_since(modified).is_ok_and(|age| age > SETTLED);
        let nanoseconds = modified.duration_since(UNIX_EPOCH).ok()?.as_nanos() as u64;
        settled.then_some(Self { bytes: file.len(), nanoseconds })
    }
}

/// Facts by the name of an image, each with the stamp of its file.
#[derive(Debug)]
pub struct Digests {
    path: PathBuf,
    known: HashMap<String, (Stamp, Facts)>,
    changed: bool,
}

impl Digests {
    pub(super) fn open(path: &Path) -> Self {
        let mut known = HashMap::new();
        if path.exists() {
            match files::read_json(path) {
                Ok(read) => known = read,
                // It saves time and nothing else.
                Err(error) => tracing::warn!("made anew: {}", error.in_one_line()),
            }
        }
        Self { path: path.to_owned(), known, changed: false }
    }

    /// What is known of an image whose file has this stamp.
    pub fn get(&self, name: &str, stamp: Option<Stamp>) -> Option<Facts> {
        let (known, facts) = self.known.get(name)?;
        (Some(*known) == stamp).then_some(*facts)
    }

    /// Keeps what was found out.
    pub fn put(&mut self, name: &str, stamp: Option<Stamp>, facts: Facts) {
        if let Some(stamp) = stamp {
            self.known.insert(name.to_owned(), (stamp, facts));
            self.changed = true;
        }
    }

    /// Writes what has changed.
    ///
    /// # Errors
    /// The disk's.
    pub fn save(&mut self) -> Result<()> {
        if !self.changed {
            return Ok(());
        }
        let folder = self.path.parent().unwrap_or(&self.path);
        let write = || {
            files::create_dir(folder)?;
            // Another process may write the same file: each its own, and the last rename stays.
            let own = files::sibling(&self.path, &std::process::id().to_string());
            let text = serde_json::to_vec(&self.known).map_err(crate::Error::failed)?;
            files::write(&own, &text)?;
            std::fs::rename(&own, &self.path).map_err(crate::Error::file("rename", &self.path))
        };
        write().map_err(|error| unwritable(folder, error.in_one_line()))?;
        self.changed = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::key_of;
    use super::*;

    #[test]
    fn facts_hold_as_long_as_the_stamp() {
        let folder = tempfile::tempdir().unwrap();
        let (path, image) = (folder.path().join("sub/digests.json"), folder.path().join("a.png"));
        std::fs::write(&image, "x").unwrap();
        assert_eq!(Stamp::of(&image.metadata().unwrap()), None, "too young to tell");
        let long_ago = SystemTime::now() - Duration::from_mins(1);
        std::fs::File::options().write(true).open(&image).unwrap().set_modified(long_ago).unwrap();
        let stamp = Stamp::of(&image.metadata().unwrap());
        let facts = Facts { digest: key_of(b"x"), size: [2, 3] };
        let mut digests = Digests::open(&path);
        digests.put("a.png", stamp, facts);
        digests.save().unwrap();
        let digests = Digests::open(&path);
        assert_eq!(digests.get("a.png", stamp), Some(facts));
        let other = stamp.map(|stamp| Stamp { bytes: 2, ..stamp });
        assert_eq!((digests.get("a.png", other), digests.get("a.png", None)), (None, None));
        std::fs::write(&path, "{").unwrap();
        assert_eq!(Digests::open(&path).get("a.png", stamp), None, "a damaged one is made anew");
    }
}
