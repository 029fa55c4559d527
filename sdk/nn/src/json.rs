//! JSON files.

use std::path::Path;

use advdmd_sdk::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads a JSON file.
///
/// # Errors
/// A file that cannot be read, that is no JSON or does not hold a `T`; the message names the file.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let read = || {
        let text = std::fs::read_to_string(path).map_err(Error::failed)?;
        Ok(serde_json::from_str(&text)?)
    };
    read().map_err(|error: Error| error.context(path.display()))
}

/// Writes a JSON file, indented.
///
/// # Errors
/// The disk's; the message names the file.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    std::fs::write(path, text).map_err(|error| Error::failed(error).context(path.display()))
}
