//! Euler's method.

use advdmd_sdk::{LogProb, Result, Sampler, SamplerConfig, Transition};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::schedule::{Step, check_shift, default_shift, shifted};

/// Euler's method on the probability-flow ODE: `x' = x + (s' - s) v`.
///
/// diffusers' `FlowMatchEulerDiscreteScheduler`. For rectified flow it is DDIM.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OdeEuler {
    /// Static shift k of the schedule: `s = k u / (1 + (k - 1) u)`; 1 for even steps.
    #[serde(default = "default_shift")]
    pub shift: f64,
}

/// Euler's step; also the deterministic last step of the other kernels.
pub(crate) fn euler(step: Step) -> Transition {
    Transition { a: 1.0, b: vec![step.dt()], c: 0.0, log_prob: LogProb::None }
}

impl SamplerConfig for OdeEuler {
    fn build(self) -> Result<Box<dyn Sampler>> {
        check_shift(self.shift)?;
        Ok(Box::new(self))
    }
}

impl Sampler for OdeEuler {
    fn sigmas(&self, steps: usize) -> Result<Vec<f64>> {
        shifted(steps, self.shift)
    }

    fn transition(&self, sigmas: &[f64], step: usize) -> Result<Transition> {
        Step::of(sigmas, step).map(euler)
    }
}
