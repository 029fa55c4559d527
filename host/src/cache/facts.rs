//! What is known of the files of a data set, so that those that have not changed need not be read again.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Key;
use crate::digests::Stamp;
use crate::{Error, files};

/// What an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// SHA-256 of the file's bytes.
    pub digest: Key,
    /// Width and height in pixels, as it is meant to be seen.
    pub size: [u32; 2],
}

/// Facts by the name of an image, each with the stamp of its file.
#[derive(Debug)]
pub struct KnownImages {
    path: PathBuf,
    known: HashMap<String, (Stamp, Facts)>,
    changed: bool,
}

impl KnownImages {
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
    pub fn get(&self, name: &str, stamp: &Stamp) -> Option<Facts> {
        self.known.get(name).filter(|(known, _)| known == stamp).map(|(_, facts)| *facts)
    }

    /// Keeps what was found out of an image, unless its file may have changed since without another stamp.
    pub fn put(&mut self, name: &str, stamp: &Stamp, facts: Facts) {
        let entry = (stamp.clone(), facts);
        if stamp.is_settled() && self.known.get(name) != Some(&entry) {
            self.known.insert(name.to_owned(), entry);
            self.changed = true;
        }
    }

    /// Writes what has changed. It saves time and nothing else: where it cannot be written, that is said.
    pub fn save(&mut self) {
        if !self.changed {
            return;
        }
        let write = || {
            files::create_dir(self.path.parent().unwrap_or(&self.path))?;
            files::write_shared(&self.path, &serde_json::to_vec(&self.known).map_err(Error::failed)?)
        };
        if let Err(error) = write() {
            tracing::warn!("the next run reads all images again: {}", error.in_one_line());
        }
        self.changed = false;
    }
}

#[cfg(test)]
mod tests {
    use super::super::key_of;
    use super::*;

    #[test]
    fn facts_hold_as_long_as_the_stamp() {
        let folder = tempfile::tempdir().unwrap();
        let (path, image) = (folder.path().join("sub/known.json"), folder.path().join("a.png"));
        let stamp = || Stamp::of(&image.metadata().unwrap());
        std::fs::write(&image, "x").unwrap();
        let facts = Facts { digest: key_of(b"x"), size: [2, 3] };
        let mut known = KnownImages::open(&path);
        known.put("a.png", &stamp(), facts);
        assert_eq!(known.get("a.png", &stamp()), None, "too young to tell");
        std::thread::sleep(std::time::Duration::from_millis(2100));
        known.put("a.png", &stamp(), facts);
        known.save();
        let known = KnownImages::open(&path);
        assert_eq!((known.get("a.png", &stamp()), known.get("b.png", &stamp())), (Some(facts), None));
        let before = image.metadata().unwrap().modified().unwrap();
        std::fs::write(&image, "y").unwrap();
        std::fs::File::options().write(true).open(&image).unwrap().set_modified(before).unwrap();
        assert_eq!(known.get("a.png", &stamp()), None, "changed, and its time put back");
        std::fs::write(&path, "{").unwrap();
        assert_eq!(KnownImages::open(&path).get("a.png", &stamp()), None, "a damaged list is made anew");
    }
}
