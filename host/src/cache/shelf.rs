//! A folder of shards: entries by key, to which any number of processes may add.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value as Json;
use tch::Tensor;

use super::shard::{self, Draft, Part};
use super::{Key, hex, unwritable};
use crate::{Error, Result, files};

/// The named tensors of an entry.
pub type Tensors = Vec<(String, Tensor)>;

/// A shard is written when it has so many bytes, or after so long a time: that much a killed process loses.
const SHARD_BYTES: u64 = 128 << 20;
const SHARD_TIME: Duration = Duration::from_secs(30);

/// A file beside its place that is older than this was left behind by a process that was killed.
const LEFT_BEHIND: Duration = Duration::from_hours(24);

/// What the shelf is of, in words for people.
const IDENTITY: &str = "identity.json";

/// Where an entry lies; in memory before its shard is written.
#[derive(Debug)]
enum Place {
    Drafted,
    Shard(usize, Box<[Part]>),
}

/// The entries of one encoder.
#[derive(Debug)]
pub struct Shelf {
    folder: PathBuf,
    identity: Json,
    shards: Vec<PathBuf>,
    places: HashMap<Key, Place>,
    draft: Draft,
    drafted: Vec<Key>,
    since: Instant,
}

impl Shelf {
    /// Reads the headers of all shards. One that is damaged is named and set aside: what it held is encoded again.
    pub(super) fn open(folder: &Path, identity: Json) -> Result<Self> {
        let mut shelf = Self {
            folder: folder.to_owned(),
            identity,
            shards: Vec::new(),
            places: HashMap::new(),
            draft: Draft::default(),
            drafted: Vec::new(),
            since: Instant::now(),
        };
        if !folder.exists() {
            return Ok(shelf);
        }
        let mut paths = Vec::new();
        for entry in fs::read_dir(folder).map_err(Error::file("read", folder))? {
            let path = entry.map_err(Error::file("read", folder))?.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("safetensors") => paths.push(path),
                Some("partial" | "part") => remove_if_left_behind(&path),
                _ => {}
            }
        }
        paths.sort();
        for path in paths {
            match shard::entries(&path) {
                Ok(entries) => shelf.add_shard(path, entries),
                Err(why) => set_aside(&path, &why),
            }
        }
        Ok(shelf)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether it has an entry.
    pub fn has(&self, key: &Key) -> bool {
        self.places.contains_key(key)
    }

    /// Bytes of an entry's numbers; 0 where there is none.
    pub fn bytes(&self, key: &Key) -> u64 {
        match self.places.get(key) {
            Some(Place::Shard(_, parts)) => parts.iter().map(|part| part.bytes).sum(),
            _ => 0,
        }
    }

    /// Adds an entry, by copy. It is on disk after the next [`Shelf::flush`], or earlier.
    ///
    /// # Errors
    /// The disk's: names the folder and the key that moves it.
    pub fn put(&mut self, key: Key, parts: &[(&str, &Tensor)]) -> Result<()> {
        if self.draft.is_empty() {
            self.since = Instant::now();
        }
        let entry = hex(&key);
        for (part, tensor) in parts {
            self.draft.add(&entry, part, tensor)?;
        }
        self.places.insert(key, Place::Drafted);
        self.drafted.push(key);
        if self.draft.bytes >= SHARD_BYTES || self.since.elapsed() >= SHARD_TIME {
            self.flush()?;
        }
        Ok(())
    }

    /// Brings to disk what was added.
    ///
    /// # Errors
    /// As [`Shelf::put`].
    pub fn flush(&mut self) -> Result<()> {
        if self.draft.is_empty() {
            return Ok(());
        }
        let (draft, drafted) = (std::mem::take(&mut self.draft), std::mem::take(&mut self.drafted));
        let written = self.write(&draft);
        let written = written.and_then(|path| Ok((shard::entries(&path).map_err(Error::failed)?, path)));
        match written {
            Ok((entries, path)) => {
                self.add_shard(path, entries);
                Ok(())
            }
            Err(error) => {
                for key in &drafted {
                    self.places.remove(key);
                }
                Err(unwritable(&self.folder, error.in_one_line()))
            }
        }
    }

    fn write(&self, draft: &Draft) -> Result<PathBuf> {
        files::create_dir(&self.folder)?;
        let about = self.folder.join(IDENTITY);
        if !about.exists() {
            let own = files::sibling(&about, &std::process::id().to_string());
            files::write_json(&own, &self.identity)?;
            fs::rename(&own, &about).map_err(Error::file("rename", &about))?;
        }
        let path = self.folder.join(draft.name());
        draft.write(&path)?;
        Ok(path)
    }

    fn add_shard(&mut self, path: PathBuf, entries: impl IntoIterator<Item = (Key, Vec<Part>)>) {
        let shard = self.shards.len();
        self.shards.push(path);
        let places = entries.into_iter().map(|(key, parts)| (key, Place::Shard(shard, parts.into())));
        self.places.extend(places);
    }

    /// The tensors of an entry on disk, on the CPU.
    ///
    /// # Errors
    /// No such entry; a shard that cannot be read, or is damaged: it is set aside, and what it held is encoded again by the
    /// next run.
    pub fn get(&self, key: &Key) -> Result<Tensors> {
        let Some(Place::Shard(shard, parts)) = self.places.get(key) else {
            return Err(Error::failed(format!("{} has no entry {}", self.folder.display(), hex(key))));
        };
        let path = &self.shards[*shard];
        let read = |part: &Part| Ok((part.name.clone(), part.read(path)?));
        let tensors: Result<Tensors> = parts.iter().map(read).collect();
        tensors.map_err(|error| match error {
            Error::Content { message, .. } => {
                set_aside(path, &message);
                let again = "the same command (with `--resume` for a run that has begun) encodes its entries again";
                Error::content(path, format!("{message}; {again}"))
            }
            other => other,
        })
    }
}

fn set_aside(path: &Path, why: &str) {
    let aside = files::sibling(path, "damaged");
    match fs::rename(path, &aside) {
        Ok(()) => tracing::warn!("{} is damaged ({why}): set aside as {}", path.display(), aside.display()),
        Err(error) => tracing::warn!("{} is damaged ({why}), and left there: {error}", path.display()),
    }
}

fn remove_if_left_behind(path: &Path) {
    let age = path.metadata().and_then(|file| file.modified()).ok().and_then(|time| time.elapsed().ok());
    if age.is_some_and(|age| age > LEFT_BEHIND) {
        // Whoever can, will; it is in nobody's way.
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tch::{Device, Kind};

    use super::super::key_of;
    use super::*;

    fn open(folder: &Path) -> Shelf {
        Shelf::open(&folder.join("text-1"), json!({ "kind": "text" })).unwrap()
    }

    fn row(value: f64) -> Tensor {
        Tensor::full([2, 3], value, (Kind::BFloat16, Device::Cpu))
    }

    fn put(shelf: &mut Shelf, texts: &[&str]) {
        for text in texts {
            let mask = Tensor::from_slice(&[true, false]);
            shelf.put(key_of(text), &[("context", &row(text.len() as f64)), ("mask", &mask)]).unwrap();
        }
    }

    fn files_of(shelf: &Shelf, extension: &str) -> Vec<PathBuf> {
        let all = fs::read_dir(shelf.folder()).unwrap().map(|entry| entry.unwrap().path());
        all.filter(|path| path.extension().is_some_and(|found| found == extension)).collect()
    }

    #[test]
    fn entries_come_back_bit_for_bit_from_any_number_of_writers() {
        let folder = tempfile::tempdir().unwrap();
        let (mut one, mut other) = (open(folder.path()), open(folder.path()));
        put(&mut one, &["a", "bb"]);
        put(&mut other, &["bb", "ccc"]);
        one.flush().unwrap();
        other.flush().unwrap();
        let both = open(folder.path());
        for text in ["a", "bb", "ccc"] {
            let tensors: HashMap<String, Tensor> = both.get(&key_of(text)).unwrap().into_iter().collect();
            assert_eq!(tensors["context"], row(text.len() as f64));
            assert_eq!(tensors["context"].kind(), Kind::BFloat16);
            assert_eq!(Vec::<bool>::try_from(&tensors["mask"]).unwrap(), [true, false]);
            assert_eq!(both.bytes(&key_of(text)), 14);
        }
        assert!(!both.has(&key_of("d")) && both.get(&key_of("d")).is_err());
    }

    #[test]
    fn a_cut_shard_is_set_aside_and_the_rest_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut shelf = open(folder.path());
        put(&mut shelf, &["a"]);
        shelf.flush().unwrap();
        let first = files_of(&shelf, "safetensors").remove(0);
        put(&mut shelf, &["bb"]);
        shelf.flush().unwrap();
        let bytes = fs::read(&first).unwrap();
        for damage in [&bytes[..bytes.len() - 1], &bytes[..20], b"", b"<!DOCTYPE html>"] {
            fs::write(&first, damage).unwrap();
            let reopened = open(folder.path());
            assert!(!reopened.has(&key_of("a")) && reopened.has(&key_of("bb")));
            assert_eq!(files_of(&reopened, "damaged").len(), 1);
        }
    }

    #[test]
    fn a_flipped_bit_is_found_when_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut shelf = open(folder.path());
        put(&mut shelf, &["a"]);
        shelf.flush().unwrap();
        let path = files_of(&shelf, "safetensors").remove(0);
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 3;
        bytes[last] ^= 1;
        fs::write(&path, bytes).unwrap();
        let message = open(folder.path()).get(&key_of("a")).unwrap_err().to_string();
        assert!(message.contains(path.to_str().unwrap()) && message.contains("checksum"), "{message}");
        assert!(!open(folder.path()).has(&key_of("a")), "the next run encodes it again");
    }

    #[test]
    fn what_cannot_be_written_names_the_folder_and_the_key() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let mut shelf = Shelf::open(&folder.path().join("file/text-1"), json!({})).unwrap();
        put(&mut shelf, &["a"]);
        let message = shelf.flush().unwrap_err().to_string();
        assert!(message.contains("file/text-1") && message.contains("`data.cache`"), "{message}");
        assert!(!shelf.has(&key_of("a")));
    }
}
