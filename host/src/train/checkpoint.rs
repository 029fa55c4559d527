//! What a run needs to go on: every trainable tensor, its optimiser's moments, the averages and the counters.
//!
//! A checkpoint is a folder `checkpoints/update-NNNNNN`, filled beside its place and renamed when it is whole; the frozen
//! base is never in it. Random numbers are functions of the counters, so there is no generator to save.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use advdmd_nn::Weights;
use advdmd_nn::optim::Ema;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use super::schedule::Gate;
use crate::passes::PassCounts;
use crate::{Error, Result, files};

/// Counters of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Student updates done.
    pub update: u64,
    /// Critic updates done.
    pub critic_updates: u64,
    /// Seconds of training, over all resumed parts.
    pub seconds: f64,
    /// Network passes so far.
    pub passes: PassCounts,
    /// The policy gradient's gate.
    pub gate: Gate,
    /// Hash of the resolved configuration.
    pub config_hash: String,
}

/// The tensors of a checkpoint, by file.
pub type Parts = BTreeMap<String, Weights>;

const STATE: &str = "state.json";

/// Detached handles on parameters, as one part.
pub fn part(parameters: &[(String, Tensor)]) -> Weights {
    parameters.iter().map(|(name, tensor)| (name.clone(), tensor.detach())).collect()
}

fn folder(run: &Path) -> PathBuf {
    run.join("checkpoints")
}

/// Writes the checkpoint of `state.update` and removes all but the newest `keep_last`.
///
/// # Errors
/// The disk's; older checkpoints are then untouched.
pub fn save(run: &Path, state: &State, parts: &Parts, keep_last: usize) -> Result<PathBuf> {
    let path = folder(run).join(format!("update-{:06}", state.update));
    files::create_dir(&folder(run))?;
    files::replace_dir(&path, |folder| {
        for (name, weights) in parts {
            weights.save(&folder.join(format!("{name}.safetensors")), &BTreeMap::new())?;
        }
        files::write_json(&folder.join(STATE), state)
    })?;
    let all = list(run)?;
    for (_, old) in &all[..all.len().saturating_sub(keep_last.max(1))] {
        fs::remove_dir_all(old).map_err(Error::file("remove", old))?;
    }
    Ok(path)
}

/// The checkpoints of a run, oldest first, by their update.
///
/// # Errors
/// A folder that cannot be read.
pub fn list(run: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let folder = folder(run);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::file("read", &folder)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::file("read", &folder))?.path();
        let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("update-"));
        // A folder that is still being filled ends in `.part` and does not parse.
        if let Some(update) = number.and_then(|number| number.parse().ok()) {
            found.push((update, path));
        }
    }
    found.sort();
    Ok(found)
}

/// The newest checkpoint of a run.
///
/// # Errors
/// A folder that cannot be read.
pub fn latest(run: &Path) -> Result<Option<PathBuf>> {
    Ok(list(run)?.pop().map(|(_, path)| path))
}

/// Counters of a checkpoint.
///
/// # Errors
/// A missing or damaged file.
pub fn state(checkpoint: &Path) -> Result<State> {
    files::read_json(&checkpoint.join(STATE))
}

/// One part of a checkpoint.
///
/// # Errors
/// A missing or damaged file.
pub fn read(checkpoint: &Path, part: &str, device: Device) -> Result<Weights> {
    Ok(Weights::load(&checkpoint.join(format!("{part}.safetensors")), None, device)?)
}

/// The averaged student of a checkpoint, without the averages' counter.
///
/// # Errors
/// As [`read`].
pub fn averages(checkpoint: &Path, device: Device) -> Result<Weights> {
    let saved = read(checkpoint, "student.ema", device)?;
    Ok(saved.into_iter().filter(|(name, _)| name != Ema::COUNTER).collect())
}
