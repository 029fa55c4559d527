//! The sampler `ode-ab2` for AdvDMD: Adams-Bashforth of second order.
//!
//! Rectified flow: `x_s = (1 - s) x0 + s noise`, velocity `v = noise - x0`. Sigma `s` runs from 1 (noise) to 0 (data).

use advdmd_sdk::{Error, LogProb, Result, Sampler, SamplerConfig, Transition};
use schemars::JsonSchema;
use serde::Deserialize;

/// Adams-Bashforth of second order on the probability-flow ODE: each step reads the last two velocities, so that it costs one
/// pass of the network, as Euler's does.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OdeAb2 {
    /// Static shift k of the schedule: `s = k u / (1 + (k - 1) u)` over even u; 1 for even steps, above 1 for shorter steps
    /// near the noise.
    #[serde(default = "default_shift")]
    pub shift: f64,
}

fn default_shift() -> f64 {
    1.0
}

impl SamplerConfig for OdeAb2 {
    fn build(self) -> Result<Box<dyn Sampler>> {
        if !(0.01..=100.0).contains(&self.shift) {
            return Err(Error::config(format!("shift: expected 0.01 to 100, found {}", self.shift)));
        }
        Ok(Box::new(self))
    }
}

impl Sampler for OdeAb2 {
    fn sigmas(&self, steps: usize) -> Result<Vec<f64>> {
        if !(1..=10_000).contains(&steps) {
            return Err(Error::invalid(format!("steps: expected 1 to 10000, found {steps}")));
        }
        let sigma = |step: usize| {
            let u = (steps - step) as f64 / steps as f64;
            // Exact at both ends, whatever the rounding of the shift.
            if step == 0 { 1.0 } else { self.shift * u / (1.0 + (self.shift - 1.0) * u) }
        };
        Ok((0..=steps).map(sigma).collect())
    }

    /// With `h = s' - s`, and `h_1` of the step before, `x' = x + h ((1 + r) v_0 - r v_1)` with `r = h / (2 h_1)`: the integral
    /// of the line through both velocities. The first step has no history and is Euler's.
    fn transition(&self, sigmas: &[f64], step: usize) -> Result<Transition> {
        let steps = sigmas.len().saturating_sub(1);
        if step >= steps {
            return Err(Error::invalid(format!("step: expected one below {steps}, found {step}")));
        }
        if !sigmas.is_sorted_by(|a, b| a > b) {
            return Err(Error::invalid(format!("sigmas: expected numbers that fall strictly, found {sigmas:?}")));
        }
        let h = sigmas[step + 1] - sigmas[step];
        let b = match step {
            0 => vec![h],
            _ => {
                let r = h / (2.0 * (sigmas[step] - sigmas[step - 1]));
                vec![h * (1.0 + r), -h * r]
            }
        };
        Ok(Transition { a: 1.0, b, c: 0.0, log_prob: LogProb::None })
    }

    fn order(&self) -> u32 {
        2
    }
}

advdmd_sdk::register_sampler!("ode-ab2", OdeAb2);
advdmd_sdk::export_plugin!();
