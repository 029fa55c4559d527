//! DPM-Solver++(2M) for rectified flow.

use advdmd_sdk::{LogProb, Result, Sampler, SamplerConfig, Transition};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::schedule::{Step, check_shift, default_shift, shifted};

/// DPM-Solver++(2M), a second-order multistep solver on the probability-flow ODE (Lu et al. 2022, arXiv:2211.01095,
/// algorithm 2).
///
/// diffusers' `DPMSolverMultistepScheduler` with `use_flow_sigmas`, `prediction_type="flow_prediction"`, order 2,
/// midpoint, final sigma zero. As there, the first step has no history and the last has no second-order form
/// (its half log-SNR is infinite); both are Euler's.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OdeDpm2m {
    /// Static shift k of the schedule: `s = k u / (1 + (k - 1) u)`; 1 for even steps.
    #[serde(default = "default_shift")]
    pub shift: f64,
}

impl SamplerConfig for OdeDpm2m {
    fn build(self) -> Result<Box<dyn Sampler>> {
        check_shift(self.shift)?;
        Ok(Box::new(self))
    }
}

impl Sampler for OdeDpm2m {
    fn sigmas(&self, steps: usize) -> Result<Vec<f64>> {
        shifted(steps, self.shift)
    }

    /// In terms of the predictions `m = x - s v` of x0 and the half log-SNR `l = ln((1 - s) / s)`, the step is
    ///
    /// ```text
    /// x' = (s'/s) x - K (m_0 + (h / 2 h_1) (m_0 - m_1)),   K = (1 - s) s'/s - (1 - s'),   h = l' - l,  h_1 = l - l_1
    /// ```
    ///
    /// where `m_1`, `l_1` belong to the step before. The first-order part is Euler's step. The rest is
    /// `w (m_0 - m_1)` with `w = -K h / (2 h_1)`, and
    ///
    /// ```text
    /// m_0 - m_1 = (x - x_1) - s v_0 + s_1 v_1,     x - x_1 = sum_i p_i v_{i+1}
    /// ```
    ///
    /// with the coefficients p of the step before. So `a` stays 1 and b follows from p; b reaches back as far as the
    /// second-order steps go.
    fn transition(&self, sigmas: &[f64], step: usize) -> Result<Transition> {
        Step::of(sigmas, step)?;
        let mut b = vec![sigmas[1] - sigmas[0]];
        for k in 1..=step {
            let w = correction(sigmas[k - 1], Step { from: sigmas[k], to: sigmas[k + 1] });
            let mut next = vec![sigmas[k + 1] - sigmas[k] - w * sigmas[k]];
            if w != 0.0 {
                next.extend(b.iter().map(|p| w * p));
                next[1] += w * sigmas[k - 1];
            }
            b = next;
        }
        Ok(Transition { a: 1.0, b, c: 0.0, log_prob: LogProb::None })
    }

    fn order(&self) -> u32 {
        2
    }
}

/// The weight w of the difference of the last two predictions of x0.
fn correction(before: f64, step: Step) -> f64 {
    if step.is_last() {
        return 0.0;
    }
    let half_log_snr = |sigma: f64| ((1.0 - sigma) / sigma).ln();
    let Step { from, to } = step;
    let h = half_log_snr(to) - half_log_snr(from);
    // From sigma 1 the step before was infinitely long, and its prediction says nothing about the slope: w = 0.
    let h_before = half_log_snr(from) - half_log_snr(before);
    let k = (1.0 - from) * to / from - (1.0 - to);
    -0.5 * k * h / h_before
}
