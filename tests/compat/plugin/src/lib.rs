//! A reward and a sampler that compile against this version of the SDK and, with the feature `next`, use its successor.

use advdmd_sdk::{
    LogProb, Needs, Result, Reward, RewardBatch, RewardConfig, RewardInit, Sampler, SamplerConfig, Transition,
};
use schemars::JsonSchema;
use serde::Deserialize;

/// The same score for every sample.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Constant {
    /// The score.
    value: f32,
}

impl RewardConfig for Constant {
    fn build(self, _init: &RewardInit) -> Result<Box<dyn Reward>> {
        // What a host of the first version does not say.
        #[cfg(feature = "next")]
        tracing_note(&_init.run);
        Ok(Box::new(self))
    }
}

#[cfg(feature = "next")]
fn tracing_note(run: &str) {
    assert!(run.is_empty() || run == "a run", "{run}");
}

impl Reward for Constant {
    fn needs(&self) -> Needs {
        Needs {
            images: true,
            on_cpu: true,
            #[cfg(feature = "next")]
            alpha: true,
            ..Needs::default()
        }
    }

    fn score(&mut self, batch: &RewardBatch<'_>) -> Result<Vec<f32>> {
        Ok(vec![self.value; batch.len()])
    }

    #[cfg(feature = "next")]
    fn describe(&self) -> String {
        format!("always {}", self.value)
    }
}

/// One straight step.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Straight {}

impl SamplerConfig for Straight {
    fn build(self) -> Result<Box<dyn Sampler>> {
        Ok(Box::new(self))
    }
}

impl Sampler for Straight {
    fn sigmas(&self, steps: usize) -> Result<Vec<f64>> {
        Ok((0..=steps).map(|step| 1.0 - step as f64 / steps as f64).collect())
    }

    fn transition(&self, sigmas: &[f64], step: usize) -> Result<Transition> {
        Ok(Transition { a: 1.0, b: vec![sigmas[step + 1] - sigmas[step]], c: 0.0, log_prob: LogProb::None })
    }

    #[cfg(feature = "next")]
    fn title(&self) -> String {
        "straight".to_owned()
    }
}

advdmd_sdk::register_reward!("compat-constant", Constant);
advdmd_sdk::register_sampler!("compat-straight", Straight);
advdmd_sdk::export_plugin!();
