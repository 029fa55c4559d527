//! Which model a command samples with.

use std::path::PathBuf;

use advdmd::config::{Component, Compute};
use advdmd::model::{First, Model};
use advdmd::registry::Registry;
use advdmd::sampling::Trajectory;
use advdmd::{Error, Result, device};
use advdmd_sdk::{Backbone, BackboneInit, Kind};
use clap::Args;
use serde_json::{Map, Value};
use tch::Device;

use super::compute_args::ComputeArgs;

/// A backbone with a model.
#[derive(Debug, Args)]
pub struct BackboneArgs {
    /// A backbone, such as `digits` or `sd3`
    #[arg(long, value_name = "TYPE")]
    pub backbone: Option<String>,
    /// The backbone's model: a folder, or a repository `org/name` in the Hugging Face cache [default: the backbone's
    /// own, if it has one]
    #[arg(long, value_name = "DIR", requires = "backbone")]
    model: Option<String>,
    /// A key of the backbone, such as `height=512`; may be repeated
    #[arg(long = "backbone-set", value_name = "KEY=VALUE", requires = "backbone")]
    backbone_sets: Vec<String>,
}

impl BackboneArgs {
    /// The component that the options name, its paths and models found.
    pub fn component(&self, registry: &Registry) -> Result<Component> {
        let Some(backbone) = &self.backbone else {
            return Err(Error::usage(
                "no backbone is named",
                "`advdmd plugins list` shows them: `--backbone TYPE`".to_owned(),
            ));
        };
        let mut component = component(backbone, "--backbone-set", &self.backbone_sets)?;
        if let Some(model) = &self.model {
            component.options.insert("model".to_owned(), model.as_str().into());
        }
        registry.resolve_component(Kind::Backbone, &mut component)?;
        Ok(component)
    }

    /// The backbone alone, and where it computes.
    pub fn load(&self, registry: &Registry, compute: &Compute) -> Result<(Box<dyn Backbone>, Device)> {
        let device = device::select(compute)?;
        let init = BackboneInit { device: device::sdk(device), dtype: compute.dtype, seed: 0 };
        Ok((registry.backbone(&self.component(registry)?, &init)?, device))
    }
}

/// A run's student, or a backbone with a model; and how to sample with it.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// The student of a run
    #[arg(long, value_name = "DIR", conflicts_with = "backbone", required_unless_present = "backbone")]
    pub run: Option<PathBuf>,
    #[command(flatten)]
    backbone: BackboneArgs,
    /// Sampler steps [default: those of the run, or 40]
    #[arg(long, value_name = "N", conflicts_with = "sigmas", value_parser = super::at_least_one)]
    steps: Option<usize>,
    /// The sampler's sigmas, falling from at most 1 to 0
    #[arg(long, value_name = "S,S,..", value_delimiter = ',')]
    sigmas: Option<Vec<f64>>,
    /// The sampler [default: that of the run, or ode-euler]
    #[arg(long, value_name = "TYPE")]
    sampler: Option<String>,
    /// A key of the sampler, such as `shift=1.0`; may be repeated
    #[arg(long = "sampler-set", value_name = "KEY=VALUE", requires = "sampler")]
    sampler_sets: Vec<String>,
    /// Classifier-free guidance; 1 is none
    #[arg(long, value_name = "W", default_value_t = 1.0)]
    pub guidance_scale: f64,
    /// Seed of the initial noise
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// Steps of a model that is no student.
const MANY_STEPS: usize = 40;

impl ModelArgs {
    /// The model and its trajectory, and what `first` makes of the backbone before there is a network.
    pub fn load<T>(&self, first: impl First<T>) -> Result<(Model, Trajectory, T)> {
        if !self.guidance_scale.is_finite() || self.guidance_scale < 0.0 {
            return Err(Error::usage(
                format!("--guidance-scale {}: expected a number of at least 0", self.guidance_scale),
                None,
            ));
        }
        let registry = Registry::discover(&[])?;
        let (mut model, made) = if let Some(run) = &self.run {
            Model::from_run(run, &self.compute.sets(), first)?
        } else {
            let component = self.backbone.component(&registry)?;
            Model::from_backbone(&registry, &self.compute.compute()?, &component, first)?
        };
        if let Some(sampler) = &self.sampler {
            model.with_sampler(&registry, &component(sampler, "--sampler-set", &self.sampler_sets)?)?;
        }
        let steps = match (&self.sigmas, self.steps) {
            (Some(sigmas), _) => sigmas.len().saturating_sub(1).max(1),
            (None, Some(steps)) => steps,
            (None, None) => model.steps.unwrap_or(MANY_STEPS),
        };
        let trajectory = model.trajectory(steps, self.sigmas.as_deref())?;
        Ok((model, trajectory, made))
    }
}

/// A component from the command line: its values are TOML.
fn component(name: &str, option: &str, sets: &[String]) -> Result<Component> {
    let mut options = Map::new();
    for set in sets {
        let parsed = set.parse::<toml::Table>().map_err(|error| {
            Error::usage(
                format!("{option} {set}: {}", error.message()),
                Some("a string is quoted: 'KEY=\"text\"'".to_owned()),
            )
        })?;
        for (key, value) in parsed {
            let value: Value = serde_json::to_value(value).map_err(Error::failed)?;
            options.insert(key, value);
        }
    }
    Ok(Component { r#type: name.to_owned(), options })
}
