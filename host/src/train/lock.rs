//! One process at a time in a run's folder.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::{Error, Result, files};

/// The right to write to a run's folder. The operating system takes it back when the process ends, however it ends.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

impl RunLock {
    /// Takes the folder, creating it where needed.
    ///
    /// # Errors
    /// Another process has it: names its process id.
    pub fn take(run: &Path) -> Result<Self> {
        files::create_dir(run)?;
        let path = run.join(".lock");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = file.map_err(Error::file("write", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // The process id is a help for people; the lock holds without it.
                let _ = file.read_to_string(&mut holder);
                let message = format!("{} is in use by another advdmd (process {})", run.display(), holder.trim());
                return Err(Error::usage(message, "wait for it, stop it, or give another `--out`".to_owned()));
            }
            Err(TryLockError::Error(error)) => return Err(Error::file("lock", &path)(error)),
        }
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            writeln!(file, "{}", std::process::id())
        };
        write(&mut file).map_err(Error::file("write", &path))?;
        Ok(Self { _file: file })
    }
}

/// The refusal of a folder that holds a run already, where none was to be resumed.
pub fn occupied(run: &Path) -> Error {
    let hint = "`--resume` goes on with it; another `--out` starts a new one".to_owned();
    Error::usage(format!("{} holds a run already", run.display()), hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_until_the_first_is_gone() {
        let run = tempfile::tempdir().unwrap();
        let first = RunLock::take(run.path()).unwrap();
        let message = RunLock::take(run.path()).unwrap_err().to_string();
        assert!(message.contains(&format!("process {}", std::process::id())), "{message}");
        drop(first);
        RunLock::take(run.path()).unwrap();
    }
}
