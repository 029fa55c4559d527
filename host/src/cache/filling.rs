//! The progress of encoding, which Ctrl-C may end.

use crate::interrupt::{self, Flag};
use crate::progress::Progress;
use crate::{Error, Result};

/// Shows how far encoding has come, and knows whether it is to stop.
pub struct Filling {
    progress: Progress,
    stop: Flag,
    task: String,
    total: u64,
}

impl Filling {
    /// Of `total` things; `task` says what is done to them ("encoding prompts").
    ///
    /// # Errors
    /// Ctrl-C cannot be handled.
    pub fn new(task: &str, total: usize) -> Result<Self> {
        let total = total as u64;
        Ok(Self { progress: Progress::new(task, 0, total), stop: interrupt::flag()?, task: task.to_owned(), total })
    }

    /// Moves to `done` things.
    pub fn advance(&mut self, done: usize, numbers: impl std::fmt::Display) {
        self.progress.advance(done as u64, numbers);
    }

    /// The error that ends it, if Ctrl-C was pressed; `kept` is whether the next run finds what was done.
    pub fn stopped(&self, done: usize, kept: bool) -> Option<Error> {
        let rest = if kept { ": the same command goes on from there" } else { "" };
        let stopped = || Error::failed(format!("stopped while {}: {done} of {} done{rest}", self.task, self.total));
        self.stop.is_raised().then(stopped)
    }
}
