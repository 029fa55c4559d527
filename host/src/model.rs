//! A trained or given model, loaded for sampling.

use std::path::Path;

use advdmd_nn::load_parameters;
use advdmd_sdk::{Backbone, BackboneInit, Denoiser, Sampler, Tuning};
use tch::Device;

use crate::config::{Component, Compute, RunConfig, load_run};
use crate::pipeline::Pipeline;
use crate::random::Random;
use crate::registry::Registry;
use crate::sampling::Trajectory;
use crate::train::checkpoint::{self, Checkpoint};
use crate::train::config_drift;
use crate::{Error, Result, device};

/// A backbone, one denoiser on it, and the sampler that suits it.
pub struct Model {
    /// Encoders.
    pub backbone: Box<dyn Backbone>,
    /// The network.
    pub denoiser: Box<dyn Denoiser>,
    /// Its sampler.
    pub sampler: Box<dyn Sampler>,
    /// The sampler's `type`.
    pub sampler_type: String,
    /// Steps that it was trained for; `None` for a model of many steps.
    pub steps: Option<usize>,
    /// Sigmas of those steps, where the run named them.
    pub sigmas: Option<Vec<f64>>,
    /// Student updates done; 0 for a model that is no student.
    pub updates: u64,
    device: Device,
}

/// What is done with a backbone before its first network is made.
pub trait First<T>: FnOnce(&dyn Backbone) -> Result<T> {}

impl<T, F: FnOnce(&dyn Backbone) -> Result<T>> First<T> for F {}

impl Model {
    /// The averaged student of a run's newest checkpoint. `sets` change the run's configuration, such as
    /// `compute.device=cuda`. What `first` makes of the backbone, such as encoded prompts, is made before there is a
    /// network: a card need not hold the text encoders beside it.
    ///
    /// # Errors
    /// A folder that holds no run or no checkpoint, plugins that are not found, or those of `first`.
    pub fn from_run<T>(run: &Path, sets: &[String], first: impl First<T>) -> Result<(Self, T)> {
        let config = run_config(run, sets)?;
        let registry = Registry::discover(&config.plugins.paths)?;
        Self::student(&registry, run, &config, first)
    }

    /// The same for a run whose configuration was read already.
    ///
    /// # Errors
    /// As [`Model::from_run`].
    pub fn student<T>(registry: &Registry, run: &Path, config: &RunConfig, first: impl First<T>) -> Result<(Self, T)> {
        let Some(newest) = checkpoint::latest(run)? else {
            let hint = "train it first, or let it reach its first checkpoint".to_owned();
            return Err(Error::usage(format!("{} holds no checkpoint", run.display()), Some(hint)));
        };
        let newest = Checkpoint::open(&newest)?;
        let now = serde_json::to_value(config).map_err(Error::failed)?;
        for line in config_drift(&newest.index.identity.config, &now) {
            tracing::warn!("{}/config.toml was changed after the checkpoint was made: {line}", run.display());
        }
        let (tuning, seed) = (&config.student.tuning, config.seed);
        let (mut model, made) = Self::load(registry, &config.compute, &config.backbone, tuning, seed, first)?;
        let averages = newest.averages(model.device)?;
        load_parameters(&model.denoiser.parameters(), &averages)?;
        model.with_sampler(registry, &config.sampler.component)?;
        model.steps = Some(config.sampler.steps);
        model.sigmas.clone_from(&config.sampler.sigmas);
        model.updates = newest.index.state.update;
        Ok((model, made))
    }

    /// The frozen base of a backbone; `first` as for a run.
    ///
    /// # Errors
    /// The registry's, the backbone's and those of `first`.
    pub fn from_backbone<T>(
        registry: &Registry,
        compute: &Compute,
        backbone: &Component,
        first: impl First<T>,
    ) -> Result<(Self, T)> {
        Self::load(registry, compute, backbone, &Tuning::Frozen, 0, first)
    }

    fn load<T>(
        registry: &Registry,
        compute: &Compute,
        backbone: &Component,
        tuning: &Tuning,
        seed: u64,
        first: impl First<T>,
    ) -> Result<(Self, T)> {
        let device = device::select(compute)?;
        let init = BackboneInit { device: device::sdk(device), dtype: compute.dtype, seed };
        let backbone = registry.backbone(backbone, &init)?;
        let made = first(backbone.as_ref())?;
        let denoiser = backbone.denoiser(tuning, seed)?;
        let euler = Component { r#type: "ode-euler".to_owned(), options: serde_json::Map::new() };
        let sampler = registry.sampler(&euler)?;
        let model = Self {
            backbone,
            denoiser,
            sampler,
            sampler_type: euler.r#type,
            steps: None,
            sigmas: None,
            updates: 0,
            device,
        };
        Ok((model, made))
    }

    /// Takes another sampler; sigmas that were named for the old one are dropped.
    ///
    /// # Errors
    /// The registry's.
    pub fn with_sampler(&mut self, registry: &Registry, sampler: &Component) -> Result<()> {
        self.sampler = registry.sampler(sampler)?;
        self.sampler_type.clone_from(&sampler.r#type);
        self.sigmas = None;
        Ok(())
    }

    /// The trajectory of `steps` steps: over `sigmas` if given, else over the run's own at its own number of steps.
    ///
    /// # Errors
    /// Sigmas that do not fall to 0, or a number of steps that the sampler refuses.
    pub fn trajectory(&self, steps: usize, sigmas: Option<&[f64]>) -> Result<Trajectory> {
        let own = self.sigmas.as_deref().filter(|_| self.steps == Some(steps));
        Trajectory::new(self.sampler.as_ref(), steps, sigmas.or(own))
    }

    /// A pipeline over `trajectory`.
    pub fn pipeline<'a>(&'a self, trajectory: &'a Trajectory, guidance_scale: f64, seed: u64) -> Pipeline<'a> {
        Pipeline {
            backbone: self.backbone.as_ref(),
            denoiser: self.denoiser.as_ref(),
            trajectory,
            guidance_scale,
            random: Random::new(seed),
            device: self.device,
        }
    }

    /// Where it computes.
    pub fn device(&self) -> Device {
        self.device
    }
}

/// The configuration of a run, as its folder keeps it, with `sets` applied.
///
/// # Errors
/// A folder that holds no run.
pub fn run_config(run: &Path, sets: &[String]) -> Result<RunConfig> {
    let path = run.join("config.toml");
    if !path.exists() {
        let hint = "give the folder that `advdmd train` wrote, such as `runs/NAME`".to_owned();
        return Err(Error::usage(format!("{} holds no run: it has no config.toml", run.display()), hint));
    }
    Ok(load_run(&path, sets)?.config)
}
