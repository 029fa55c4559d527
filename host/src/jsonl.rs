//! Logs of one JSON value a line that survive a crash: a run appends, a resumed run cuts off what it will redo.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// An entry that belongs to a student update.
pub trait Dated {
    /// The number of student updates done when the entry was made.
    fn update(&self) -> u64;
}

/// A log open for appending; its entries never go back in time.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    last: u64,
}

impl Log {
    /// Opens a log at `update`: keeps the entries up to and including it and cuts off the rest, with a torn line at
    /// the end. A missing file is started.
    ///
    /// # Errors
    /// The file cannot be read or written, or a line before the last is damaged.
    pub fn open<T: DeserializeOwned + Dated>(path: &Path, update: u64) -> Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path);
        let mut file = file.map_err(Error::file("write", path))?;
        let bytes = std::fs::read(path).map_err(Error::file("read", path))?;
        let (mut end, mut last) = (0, 0);
        for line in lines::<T>(path, &bytes) {
            let (line_end, entry) = line?;
            if entry.update() > update {
                break;
            }
            (end, last) = (line_end, entry.update());
        }
        file.set_len(end as u64).map_err(Error::file("write", path))?;
        if end > 0 && bytes[end - 1] != b'\n' {
            file.write_all(b"\n").map_err(Error::file("write", path))?;
        }
        Ok(Self { path: path.to_owned(), file, last })
    }

    /// The update of the last entry; 0 for an empty log.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Brings what was written to the disk itself.
    ///
    /// # Errors
    /// Names the file.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::file("write", &self.path))
    }

    /// Writes one entry as one line, at once.
    ///
    /// # Errors
    /// An entry older than the last one, or the file cannot be written.
    pub fn append<T: Serialize + Dated>(&mut self, entry: &T) -> Result<()> {
        let found = entry.update();
        if found < self.last {
            let last = self.last;
            return Err(Error::content(
                &self.path,
                format!("an entry of update {found} cannot follow one of update {last}"),
            ));
        }
        let mut line = serde_json::to_vec(entry).map_err(|error| Error::content(&self.path, error))?;
        line.push(b'\n');
        let end = self.file.metadata().map_err(Error::file("write", &self.path))?.len();
        if let Err(error) = self.file.write_all(&line) {
            // A full disk takes half a line; the next one must not be glued to it.
            let _ = self.file.set_len(end);
            return Err(Error::file("write", &self.path)(error));
        }
        self.last = found;
        Ok(())
    }
}

/// Reads all entries of a log; a last line that was cut off by a crash is left out.
///
/// # Errors
/// The file cannot be read, or another line is damaged; names it.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let bytes = std::fs::read(path).map_err(Error::file("read", path))?;
    lines(path, &bytes).map(|line| line.map(|(_, entry)| entry)).collect()
}

/// The entries with the offset behind each. Torn means: no line feed at the end, and no JSON of this type.
fn lines<'a, T: DeserializeOwned>(path: &'a Path, bytes: &'a [u8]) -> impl Iterator<Item = Result<(usize, T)>> + 'a {
    let mut end = 0;
    bytes.split_inclusive(|byte| *byte == b'\n').enumerate().filter_map(move |(index, line)| {
        end += line.len();
        let whole = line.ends_with(b"\n");
        if line.trim_ascii().is_empty() {
            return None;
        }
        match serde_json::from_slice(line) {
            Ok(entry) => Some(Ok((end, entry))),
            Err(_) if !whole => None,
            Err(error) => Some(Err(Error::content(path, format!("line {}: {error}", index + 1)))),
        }
    })
}
