//! Samplers whose numbers are wrong.

use advdmd_sdk::{LogProb, Result, Sampler, SamplerConfig, Transition};
use schemars::JsonSchema;
use serde::Deserialize;

/// Breaks the contract of samplers.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FaultySampler {
    /// The way to break it.
    how: How,
}

#[derive(Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum How {
    /// Sigmas that end above 0.
    EndsAboveZero,
    /// A coefficient that is not a number, at the second step.
    NanCoefficient,
    /// Noise at a step that claims to have no probability.
    NoiseWithoutProbability,
}

impl SamplerConfig for FaultySampler {
    fn build(self) -> Result<Box<dyn Sampler>> {
        Ok(Box::new(self))
    }
}

impl Sampler for FaultySampler {
    fn sigmas(&self, steps: usize) -> Result<Vec<f64>> {
        let last = if self.how == How::EndsAboveZero { 0.1 } else { 0.0 };
        Ok((0..=steps).map(|step| 1.0 - (1.0 - last) * step as f64 / steps as f64).collect())
    }

    fn transition(&self, sigmas: &[f64], step: usize) -> Result<Transition> {
        let nan = self.how == How::NanCoefficient && step == 1;
        let c = if self.how == How::NoiseWithoutProbability { 0.1 } else { 0.0 };
        let b = if nan { f64::NAN } else { sigmas[step + 1] - sigmas[step] };
        Ok(Transition { a: 1.0, b: vec![b], c, log_prob: LogProb::None })
    }
}
