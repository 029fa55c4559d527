//! Samplers: a kernel is numbers, not tensors.

use serde::{Deserialize, Serialize};

use crate::Result;

/// How the log-probability of a stochastic transition is computed from `x'` and its mean.
///
/// Both are *means* over all dimensions but the batch: a sum would grow with the image's size and make
/// the clip range of the policy ratio depend on it (Flow-GRPO).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogProb {
    /// The step is deterministic: there is no policy gradient through it.
    None,
    /// `-(x' - mean)^2 / (2 std^2) - ln std - ln sqrt(2 pi)`, averaged (Flow-GRPO).
    Gaussian,
    /// `-(x' - mean)^2`, averaged: constants and the `1 / (2 std^2)` dropped (CPS).
    SquaredError,
}

/// One step of a sampler from sigma to the next, as the coefficients of
/// `x' = a x + sum_i b[i] v_i + c noise`.
///
/// `v_0` is the velocity at this step, `v_1` the one before it, and so on; noise is standard normal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Transition {
    /// Coefficient of the current latents.
    pub a: f64,
    /// Coefficients of the velocities, newest first; never empty, and never longer than the history.
    pub b: Vec<f64>,
    /// Standard deviation of the added noise; 0 for a deterministic step.
    pub c: f64,
    /// The log-probability convention; [`LogProb::None`] exactly when `c` is 0.
    pub log_prob: LogProb,
}

/// Integrates the flow from noise (sigma 1) to data (sigma 0).
///
/// Rectified flow: `x_s = (1 - s) x0 + s noise`, velocity `v = noise - x0`.
pub trait Sampler: Send {
    /// The sigmas of `steps` steps: `steps + 1` numbers in `[0, 1]`, strictly falling, the last one 0.
    ///
    /// # Errors
    /// `steps` of 0, or a number of steps that this sampler has no schedule for.
    fn sigmas(&self, steps: usize) -> Result<Vec<f64>>;

    /// The transition from `sigmas[step]` to `sigmas[step + 1]`. The last one (to sigma 0) is deterministic:
    /// noise there would stay in the image.
    ///
    /// # Errors
    /// `step` out of range, or sigmas that the kernel is not defined for.
    fn transition(&self, sigmas: &[f64], step: usize) -> Result<Transition>;

    /// Whether `x'` has the noise level of its sigma when the velocity is exact, i.e. whether trajectory
    /// states may be compared with real latents noised to the same sigma.
    fn preserves_marginals(&self) -> bool {
        true
    }

    /// Order of convergence of the deterministic part (1 for Euler).
    fn order(&self) -> u32 {
        1
    }
}
