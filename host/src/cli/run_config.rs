//! Reading the configuration that a command names, with its plugins' tables checked.

use std::path::{Path, PathBuf};

use advdmd::Result;
use advdmd::config::{self, PretrainConfig, Resolved, RunConfig};
use advdmd::registry::{Lock, Registry};
use clap::Args;

use super::compute_args::ComputeArgs;

/// A configuration file and changes to it.
#[derive(Debug, Clone, Args)]
pub struct ConfigArgs {
    /// The configuration, a TOML file
    #[arg(value_name = "CONFIG.toml")]
    pub config: PathBuf,
    /// Change a key, such as `--set batch.groups=4` or `--set reward.0.weight=0.5`; values are TOML
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    #[command(flatten)]
    compute: ComputeArgs,
}

impl ConfigArgs {
    /// The folder of a run whose folder was not named: `runs/`, and the configuration's name.
    pub fn default_out(&self) -> PathBuf {
        PathBuf::from("runs").join(self.config.file_stem().unwrap_or_else(|| "run".as_ref()))
    }

    /// The same with more changes, which win over all others.
    pub fn with<'a>(&self, sets: impl IntoIterator<Item = &'a str>) -> Self {
        let mut all = self.sets();
        all.extend(sets.into_iter().map(str::to_owned));
        Self { config: self.config.clone(), sets: all, compute: ComputeArgs::default() }
    }

    /// All changes to the file: `--set`, then the options that stand for keys.
    pub fn sets(&self) -> Vec<String> {
        [self.sets.clone(), self.compute.sets()].concat()
    }

    /// Binds this process to the lock in `lock`, or beside the configuration. Loads no plugin.
    pub fn enforce_lock(&self, lock: Option<&Path>) -> Result<()> {
        let resolved = config::load_run(&self.config, &self.sets())?;
        let mut renew = format!("advdmd plugins pin {}", self.config.display());
        for set in &self.sets {
            renew += &format!(" --set '{set}'");
        }
        if let Some(lock) = lock {
            renew += &format!(" --lock {}", lock.display());
        }
        Lock::enforce(&resolved.config, &lock.map_or_else(|| Lock::beside(&self.config), Path::to_owned), &renew)
    }

    /// The configuration of a training run, checked against its plugins.
    pub fn load_run(&self) -> Result<Resolved<RunConfig>> {
        let mut resolved = config::load_run(&self.config, &self.sets())?;
        Registry::discover(&resolved.config.plugins.paths)?.resolve(&mut resolved)?;
        Ok(resolved)
    }

    /// The configuration of a pretraining run, checked against its plugins.
    pub fn load_pretrain(&self) -> Result<Resolved<PretrainConfig>> {
        let mut resolved = config::load_pretrain(&self.config, &self.sets())?;
        Registry::discover(&resolved.config.plugins.paths)?.resolve(&mut resolved)?;
        Ok(resolved)
    }
}
