//! PEFT's adapter: a folder with `adapter_model.safetensors` and `adapter_config.json`, for
//! `PeftModel.from_pretrained(transformer, folder)`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value as Json;
use tch::Kind;

use super::diffusers::check_rank;
use super::lora::{Lora, number, tensors};
use crate::{Error, Result, files};

const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";
const PREFIX: &str = "base_model.model.";

/// Writes both files.
///
/// # Errors
/// The disk's.
pub fn write(folder: &Path, lora: &Lora, kind: Kind) -> Result<()> {
    files::write_json(&folder.join(CONFIG), &lora.peft_config())?;
    Ok(lora.to_kind(kind)?.pairs(PREFIX).save(&folder.join(WEIGHTS), &BTreeMap::new())?)
}

/// Reads both files.
///
/// # Errors
/// Content that is not what PEFT expects; names the file.
pub fn read(folder: &Path) -> Result<Lora> {
    let (config_path, path) = (folder.join(CONFIG), folder.join(WEIGHTS));
    let config: Json = files::read_json(&config_path)?;
    let alpha = number(&config_path, &config, "lora_alpha")?;
    let lora =
        Lora::of_pairs(&tensors(&path)?, PREFIX, alpha).map_err(|error| Error::content(&path, error.in_one_line()))?;
    check_rank(&config_path, &lora, number(&config_path, &config, "r")?)?;
    let named = config["target_modules"].as_array().into_iter().flatten().filter_map(Json::as_str);
    let layers: Vec<&String> = lora.layers.keys().collect();
    if named.ne(layers) {
        return Err(Error::content(&config_path, "target_modules are not the layers of the tensors"));
    }
    Ok(lora)
}
