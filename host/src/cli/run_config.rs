//! Reading the configuration that a command names, with its plugins' tables checked.

use std::path::PathBuf;

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

/// Whether the plugins must be those that were pinned.
#[derive(Debug, Args)]
pub struct LockArgs {
    /// Load only the plugins that `advdmd plugins pin` wrote down, and stop before any is loaded where one differs
    #[arg(long)]
    locked: bool,
    /// With `--locked`, the file that they are written down in [default: advdmd.lock beside the configuration]
    #[arg(long, value_name = "FILE", requires = "locked")]
    lock: Option<PathBuf>,
}

impl LockArgs {
    /// Binds this process to the lock, if there should be one. Loads no plugin.
    pub fn enforce(&self, config: &ConfigArgs) -> Result<()> {
        if !self.locked {
            return Ok(());
        }
        let resolved = config::load_run(&config.config, &config.sets())?;
        let mut renew = format!("advdmd plugins pin {}", config.config.display());
        for set in &config.sets {
            renew += &format!(" --set '{set}'");
        }
        if let Some(lock) = &self.lock {
            renew += &format!(" --lock {}", lock.display());
        }
        let lock = self.lock.clone().unwrap_or_else(|| Lock::beside(&config.config));
        Lock::enforce(&resolved.config, &lock, &renew)
    }
}
