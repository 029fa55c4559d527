//! Euler-Maruyama on a reverse SDE of the flow: Flow-SDE and Dance-SDE, which differ in the rate of the noise.

use advdmd_sdk::{LogProb, Result, Sampler, SamplerConfig, Transition};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::euler::euler;
use crate::schedule::{Step, check_shift, default_shift, positive, shifted};

/// Flow-GRPO's SDE (arXiv:2505.05470, equation 9): noise of rate `g = a sqrt(s / (1 - s))`.
///
/// Its states have more noise than their sigma says when steps are coarse: after three of four steps, at sigma 0.5, a
/// standard deviation of 0.53 at a = 0.3 and of 0.68 at a = 0.7. Prefer `sde-cps` for few-step students.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SdeFlow {
    /// Noise level, above 0; Flow-GRPO's many-step runs use 0.7.
    #[serde(default = "default_level")]
    pub a: f64,
    /// Static shift k of the schedule: `s = k u / (1 + (k - 1) u)`; 1 for even steps.
    #[serde(default = "default_shift")]
    pub shift: f64,
}

/// `DanceGRPO`'s SDE (arXiv:2505.07818): noise of the constant rate `g = a`.
///
/// Its states have more noise than their sigma says when steps are coarse, most near sigma 0. Prefer `sde-cps` for
/// few-step students.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SdeDance {
    /// Noise level, above 0.
    #[serde(default = "default_level")]
    pub a: f64,
    /// Static shift k of the schedule: `s = k u / (1 + (k - 1) u)`; 1 for even steps.
    #[serde(default = "default_shift")]
    pub shift: f64,
}

fn default_level() -> f64 {
    0.3
}

/// One Euler-Maruyama step of `dx = (v - g^2/2 grad ln p) dt + g dw`, whose marginals are the flow's.
///
/// The score is `grad ln p = -(x + (1 - s) v) / s`, so
/// `x' = x (1 + g^2 dt / 2s) + v (1 + g^2 (1 - s) / 2s) dt + g sqrt(-dt) noise`.
fn euler_maruyama(step: Step, rate: f64) -> Transition {
    let (s, dt) = (step.from, step.dt());
    let half = rate * rate / (2.0 * s);
    Transition {
        a: 1.0 + half * dt,
        b: vec![(1.0 + half * (1.0 - s)) * dt],
        c: rate * (-dt).sqrt(),
        log_prob: LogProb::Gaussian,
    }
}

impl SamplerConfig for SdeFlow {
    fn build(self) -> Result<Box<dyn Sampler>> {
        positive("a", self.a)?;
        check_shift(self.shift)?;
        Ok(Box::new(self))
    }
}

impl Sampler for SdeFlow {
    fn sigmas(&self, steps: usize) -> Result<Vec<f64>> {
        shifted(steps, self.shift)
    }

    fn transition(&self, sigmas: &[f64], step: usize) -> Result<Transition> {
        let step = Step::of(sigmas, step)?;
        if step.is_last() {
            return Ok(euler(step));
        }
        // The rate is infinite at sigma 1; Flow-GRPO reads the next sigma there.
        let regular = if step.from == 1.0 { step.to } else { step.from };
        Ok(euler_maruyama(step, self.a * (step.from / (1.0 - regular)).sqrt()))
    }

    fn preserves_marginals(&self) -> bool {
        false
    }
}

impl SamplerConfig for SdeDance {
    fn build(self) -> Result<Box<dyn Sampler>> {
        positive("a", self.a)?;
        check_shift(self.shift)?;
        Ok(Box::new(self))
    }
}

impl Sampler for SdeDance {
    fn sigmas(&self, steps: usize) -> Result<Vec<f64>> {
        shifted(steps, self.shift)
    }

    fn transition(&self, sigmas: &[f64], step: usize) -> Result<Transition> {
        let step = Step::of(sigmas, step)?;
        Ok(if step.is_last() { euler(step) } else { euler_maruyama(step, self.a) })
    }

    fn preserves_marginals(&self) -> bool {
        false
    }
}
