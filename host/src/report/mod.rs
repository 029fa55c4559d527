//! The report of a run: one HTML file that needs neither a network nor a server.
//!
//! [`write`] reads a run's folder (`metrics.jsonl`, `eval.jsonl`, `samples/`, `config.toml`, `run.json`) and writes
//! `report.html` into it. Parts that are missing are named in the report; none of them is needed.

mod catalogue;
mod cost;
mod gallery;
mod notes;
mod page;
mod panels;
mod run;
mod samples;
mod svg;
mod verdict;

use std::path::{Path, PathBuf};

pub use samples::{SampleRow, write_samples};

use crate::{Result, files};

/// Writes `run/report.html` anew and returns its path.
///
/// # Errors
/// The folder cannot be read, or the file not be written.
pub fn write(run: &Path) -> Result<PathBuf> {
    let path = run.join("report.html");
    files::write(&path, page::render(&run::Run::read(run)?)?.as_bytes())?;
    Ok(path)
}
