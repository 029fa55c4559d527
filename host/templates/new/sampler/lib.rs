//! The sampler `{{name}}` for AdvDMD.
//!
//! Rectified flow: `x_s = (1 - s) x0 + s noise`, velocity `v = noise - x0`. Sigma `s` runs from 1 (noise) to 0 (data).

use advdmd_sdk::{Error, LogProb, Result, Sampler, SamplerConfig, Transition};
use schemars::JsonSchema;
use serde::Deserialize;

/// Euler's method over sigmas that follow a power.
// These comments are what `advdmd plugins inspect sampler {{name}}` and editors show.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PowerEuler {
    /// Step i of n begins at sigma `1 - (i / n)^power`: 1 for even steps, above 1 for shorter steps near the noise.
    #[serde(default = "default_power")]
    pub power: f64,
}

fn default_power() -> f64 {
    1.5
}

impl SamplerConfig for PowerEuler {
    /// Called once for a table `type = "{{name}}"` of a configuration: the place to refuse values.
    fn build(self) -> Result<Box<dyn Sampler>> {
        if !(0.2..=5.0).contains(&self.power) {
            return Err(Error::config(format!("power: expected 0.2 to 5, found {}", self.power)));
        }
        Ok(Box::new(self))
    }
}

impl Sampler for PowerEuler {
    fn sigmas(&self, steps: usize) -> Result<Vec<f64>> {
        if !(1..=1000).contains(&steps) {
            return Err(Error::invalid(format!("steps: expected 1 to 1000, found {steps}")));
        }
        // 1 and 0 are exact at both ends.
        Ok((0..=steps).map(|step| 1.0 - (step as f64 / steps as f64).powf(self.power)).collect())
    }

    /// A step is the coefficients of `x' = a x + sum_i b[i] v_i + c noise`, with the newest velocity first. The host owns
    /// the tensors; a sampler is numbers.
    fn transition(&self, sigmas: &[f64], step: usize) -> Result<Transition> {
        let &[from, to] = sigmas.get(step..).and_then(|rest| rest.first_chunk()).ok_or_else(|| {
            Error::invalid(format!("step: expected one below {}, found {step}", sigmas.len().saturating_sub(1)))
        })?;
        if !sigmas.is_sorted_by(|a, b| a > b) {
            return Err(Error::invalid(format!("sigmas: expected numbers that fall strictly, found {sigmas:?}")));
        }
        Ok(Transition { a: 1.0, b: vec![to - from], c: 0.0, log_prob: LogProb::None })
    }
}

advdmd_sdk::register_sampler!("{{name}}", PowerEuler);
advdmd_sdk::export_plugin!();
