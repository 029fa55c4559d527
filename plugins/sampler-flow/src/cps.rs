//! Coefficient-preserving sampling.

use std::f64::consts::FRAC_PI_2;

use advdmd_sdk::{Error, LogProb, Result, Sampler, SamplerConfig, Transition};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::euler::euler;
use crate::schedule::{Step, check_shift, default_shift, shifted};

/// Coefficient-preserving sampling: part of the predicted noise is replaced by fresh noise, so that a state always has
/// the noise level of its sigma.
///
/// `x' = (1 - s') x0 + s' cos(eta pi/2) noise_predicted + s' sin(eta pi/2) noise`. Its log-probability is the mean of
/// `-(x' - mean)^2`, as in Flow-GRPO's `sde_step_with_logprob` with `sde_type="cps"`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SdeCps {
    /// Share of fresh noise, 0 (Euler's method) to 1 (all of it).
    #[serde(default = "default_eta")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub eta: f64,
    /// Static shift k of the schedule: `s = k u / (1 + (k - 1) u)`; 1 for even steps.
    #[serde(default = "default_shift")]
    pub shift: f64,
}

/// The noise level of RTDMD's four-step students.
fn default_eta() -> f64 {
    0.9
}

impl SamplerConfig for SdeCps {
    fn build(self) -> Result<Box<dyn Sampler>> {
        if !(0.0..=1.0).contains(&self.eta) {
            return Err(Error::config(format!("eta: expected 0 to 1, found {}", self.eta)));
        }
        check_shift(self.shift)?;
        Ok(Box::new(self))
    }
}

impl Sampler for SdeCps {
    fn sigmas(&self, steps: usize) -> Result<Vec<f64>> {
        shifted(steps, self.shift)
    }

    /// With `x0 = x - s v` and `noise_predicted = x + (1 - s) v`.
    fn transition(&self, sigmas: &[f64], step: usize) -> Result<Transition> {
        let step = Step::of(sigmas, step)?;
        if step.is_last() || self.eta == 0.0 {
            return Ok(euler(step));
        }
        let Step { from, to } = step;
        let (fresh, kept) = (self.eta * FRAC_PI_2).sin_cos();
        Ok(Transition {
            a: (1.0 - to) + to * kept,
            b: vec![to * kept * (1.0 - from) - (1.0 - to) * from],
            c: to * fresh,
            log_prob: LogProb::SquaredError,
        })
    }
}
