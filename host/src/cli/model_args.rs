//! Which model a command samples with.

use std::path::PathBuf;

use advdmd::config::Component;
use advdmd::model::Model;
use advdmd::registry::Registry;
use advdmd::sampling::Trajectory;
use advdmd::{Error, Result};
use clap::Args;
use serde_json::{Map, Value};

use super::compute_args::ComputeArgs;

/// A run's student, or a backbone with a model; and how to sample with it.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// The student of a run
    #[arg(long, value_name = "DIR", conflicts_with = "backbone")]
    pub run: Option<PathBuf>,
    /// A backbone without a student, such as `digits`
    #[arg(long, value_name = "TYPE", required_unless_present = "run")]
    backbone: Option<String>,
    /// The backbone's model [default: the backbone's own, if it has one]
    #[arg(long, value_name = "DIR", requires = "backbone")]
    model: Option<PathBuf>,
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
    /// The model and its trajectory.
    pub fn load(&self) -> Result<(Model, Trajectory)> {
        if !self.guidance_scale.is_finite() || self.guidance_scale < 0.0 {
            return Err(Error::usage(
                format!("--guidance-scale {}: expected a number of at least 0", self.guidance_scale),
                None,
            ));
        }
        let registry = Registry::discover(&[])?;
        let mut model = match (&self.run, &self.backbone) {
            (Some(run), _) => Model::from_run(run, &self.compute.sets())?,
            (None, Some(backbone)) => self.bare(&registry, backbone)?,
            (None, None) => return Err(Error::usage("name a model: `--run DIR`, or `--backbone TYPE`", None)),
        };
        if let Some(sampler) = &self.sampler {
            model.with_sampler(&registry, &component(sampler, &self.sampler_sets)?)?;
        }
        let steps = match (&self.sigmas, self.steps) {
            (Some(sigmas), _) => sigmas.len().saturating_sub(1).max(1),
            (None, Some(steps)) => steps,
            (None, None) => model.steps.unwrap_or(MANY_STEPS),
        };
        let trajectory = model.trajectory(steps, self.sigmas.as_deref())?;
        Ok((model, trajectory))
    }

    fn bare(&self, registry: &Registry, backbone: &str) -> Result<Model> {
        let mut options = Map::new();
        if let Some(model) = &self.model {
            if !model.exists() {
                return Err(Error::usage(format!("--model: {} does not exist", model.display()), None));
            }
            options.insert("model".to_owned(), model.to_string_lossy().into_owned().into());
        }
        Model::from_backbone(registry, &self.compute.compute()?, &Component { r#type: backbone.to_owned(), options })
    }
}

/// A component from the command line: its values are TOML.
fn component(name: &str, sets: &[String]) -> Result<Component> {
    let mut options = Map::new();
    for set in sets {
        let parsed = set
            .parse::<toml::Table>()
            .map_err(|error| Error::usage(format!("--sampler-set {set}: {}", error.message()), None))?;
        for (key, value) in parsed {
            let value: Value = serde_json::to_value(value).map_err(Error::failed)?;
            options.insert(key, value);
        }
    }
    Ok(Component { r#type: name.to_owned(), options })
}
