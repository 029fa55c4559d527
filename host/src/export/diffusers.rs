//! diffusers' `LoRA`: `pytorch_lora_weights.safetensors`, as its `save_lora_weights` writes it and `load_lora_weights`
//! reads it (`loaders/lora_base.py`). The keys have no place for alpha; it is in the file's metadata.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};
use tch::Kind;

use super::lora::{Lora, PREFIX, metadata, number, tensors};
use crate::{Error, Result};

/// The name that diffusers looks for in a folder.
pub const FILE: &str = "pytorch_lora_weights.safetensors";

/// The metadata's key of PEFT's configuration, a JSON object whose keys have [`PREFIX`] in front.
const CONFIG: &str = "lora_adapter_metadata";

pub fn path(folder: &Path) -> PathBuf {
    folder.join(FILE)
}

/// Writes the file.
///
/// # Errors
/// The disk's.
pub fn write(folder: &Path, lora: &Lora, kind: Kind) -> Result<()> {
    let config = lora.peft_config().into_iter();
    let config: Map<String, Json> = config.map(|(key, value)| (format!("{PREFIX}{key}"), value)).collect();
    let text = serde_json::to_string_pretty(&config).map_err(Error::failed)?;
    let metadata = [(CONFIG.to_owned(), text)].into();
    Ok(lora.to_kind(kind)?.pairs(PREFIX).save(&path(folder), &metadata)?)
}

/// Reads the file.
///
/// # Errors
/// Content that is not what diffusers expects; names the file.
pub fn read(folder: &Path) -> Result<Lora> {
    let path = path(folder);
    let metadata = metadata(&path)?;
    let text = metadata.get(CONFIG).ok_or_else(|| Error::content(&path, format!("no metadata {CONFIG:?}")))?;
    let config: Json = serde_json::from_str(text).map_err(|error| Error::content(&path, error))?;
    let alpha = number(&path, &config, &format!("{PREFIX}lora_alpha"))?;
    let lora =
        Lora::of_pairs(&tensors(&path)?, PREFIX, alpha).map_err(|error| Error::content(&path, error.in_one_line()))?;
    check_rank(&path, &lora, number(&path, &config, &format!("{PREFIX}r"))?)?;
    Ok(lora)
}

/// Whether the rank that the configuration names is the factors' own.
///
/// # Errors
/// It is not: names the file.
pub fn check_rank(path: &Path, lora: &Lora, named: f64) -> Result<()> {
    if named == lora.rank as f64 {
        return Ok(());
    }
    Err(Error::content(path, format!("expected rank {}, found {named} in the configuration", lora.rank)))
}
