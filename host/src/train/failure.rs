//! What is kept of an update that was not finite, and its replay.
//!
//! `RUN/failures/update-NNNNNN` holds the trained tensors as they were when it happened, the rollout, the counters and
//! the configuration; `advdmd replay` goes through the update again and reads every tensor on the way.

use std::path::{Path, PathBuf};

use super::checkpoint::{self, Checkpoint};
use super::inspection::Inspection;
use super::rollout::Rollout;
use super::trainer::Trainer;
use crate::config::load_run;
use crate::registry::Registry;
use crate::{Error, Result, files};

const CONFIG: &str = "config.toml";
const ROLLOUT: &str = "rollout";

/// Finds the first tensor at fault and writes all that a replay needs; any other error passes through.
///
/// # Errors
/// The given one, always: with what was found out.
pub fn keep(trainer: &mut Trainer, error: Error, run: &Path) -> Error {
    let Error::NotFinite { update, name, value, .. } = error else { return error };
    let Some((before, rollout)) = trainer.failed() else {
        return Error::NotFinite { update, name, value, finding: None, kept: None };
    };
    trainer.state = before;
    let kept = write(trainer, &rollout, run).map_err(|error| {
        tracing::error!("the batch could not be kept for replay: {error}");
    });
    let finding = trainer.inspect(&rollout).map_err(|error| {
        tracing::error!("the update could not be inspected: {error}");
    });
    let finding = finding.ok().and_then(|inspection| inspection.first_bad().cloned()).map(Box::new);
    Error::NotFinite { update, name, value, finding, kept: kept.ok() }
}

fn write(trainer: &mut Trainer, rollout: &Rollout, run: &Path) -> Result<PathBuf> {
    let folder = run.join("failures");
    files::create_dir(&folder)?;
    let path = folder.join(format!("update-{:06}", trainer.state.update));
    let mut parts = trainer.parameters();
    parts.insert(ROLLOUT.to_owned(), rollout.to_weights());
    let config = toml::to_string(&trainer.config).map_err(Error::failed)?;
    files::replace_dir(&path, |folder| {
        files::write(&folder.join(CONFIG), config.as_bytes())?;
        checkpoint::fill(folder, &trainer.state, &trainer.identity, &parts)
    })?;
    Ok(path)
}

/// Goes through a kept update again, on the device of the run unless `sets` says otherwise.
///
/// # Errors
/// A folder that holds no kept update, or plugins that are not found.
pub fn replay(folder: &Path, sets: &[String]) -> Result<Inspection> {
    let kept = Checkpoint::open(folder)?;
    kept.verify()?;
    let mut resolved = load_run(&folder.join(CONFIG), sets)?;
    let registry = Registry::discover(&resolved.config.plugins.paths)?;
    registry.resolve(&mut resolved)?;
    let mut trainer = Trainer::new(&resolved, &registry)?;
    for line in super::drift::drift(&kept.index.identity, &trainer.identity) {
        tracing::warn!("not as it was: {line}");
    }
    let device = trainer.networks.device;
    trainer.load_parameters(|part| kept.read(part, device))?;
    trainer.state = kept.index.state.clone();
    let rollout = Rollout::from_weights(&kept.read(ROLLOUT, device)?, &trainer.table, trainer.trajectory.steps())?;
    trainer.inspect(&rollout)
}
