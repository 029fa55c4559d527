//! The policy gradient: a sampler's stochastic step is an action, its log-probability has a closed form.

use advdmd_sdk::LogProb;
use tch::{Kind, Tensor};

use super::{check_same_shape, float, mean_per_sample};
use crate::{Error, Result};

/// Log-probability of the step to `next` under a normal of mean `mean` and standard deviation `std`, *averaged* over all
/// dimensions but the first: `next` and `mean` `[B, ...]` -> `[B]`.
///
/// ```text
/// Gaussian       mean [ -(next - mean)^2 / (2 std^2) - ln std - ln sqrt(2 pi) ]
/// SquaredError   mean [ -(next - mean)^2 ]
/// ```
///
/// Flow-GRPO's `sde_step_with_logprob` (arXiv:2505.05470), `sde_type` `sde` and `cps`. An average, because clip ranges
/// are set for it: a sum over 65,536 latents would be as many times larger. Gradients flow to `mean` alone.
///
/// # Errors
/// Different shapes, a deterministic step, or a Gaussian whose `std` is not above 0.
pub fn log_prob(next: &Tensor, mean: &Tensor, std: f64, convention: LogProb) -> Result<Tensor> {
    check_same_shape(&[("next state", next), ("mean", mean)])?;
    let squared_error = || mean_per_sample(&(float(next)?.detach() - float(mean)?).square());
    match convention {
        LogProb::SquaredError => Ok(-squared_error()?),
        LogProb::Gaussian if std > 0.0 => {
            let constant = std.ln() + 0.5 * std::f64::consts::TAU.ln();
            Ok(squared_error()? * (-0.5 / (std * std)) - constant)
        }
        LogProb::Gaussian => {
            Err(Error::contract(format!("log_prob: expected a standard deviation above 0, found {std}")))
        }
        LogProb::None => Err(Error::contract("log_prob: the step is deterministic and has none")),
    }
}

/// The policy loss, and what the ratio did.
#[derive(Debug)]
pub struct PolicyLoss {
    /// `[B]`, with gradients to the new log-probability.
    pub loss: Tensor,
    /// Probability ratio new / old, `[B]`, detached: exactly 1 on policy.
    pub ratio: Tensor,
    /// Share of the ratios outside the clip range, a scalar.
    pub clip_fraction: Tensor,
}

/// The clipped policy loss per sample (PPO, arXiv:1707.06347, equation 7, as Flow-GRPO's `train_sd3.py`; AdvDMD's
/// equation 3.5):
///
/// ```text
/// ratio = exp(log_prob - log_prob_old)
/// A     = clamp(advantage, -advantage_clip, advantage_clip)
/// loss  = max( -A ratio, -A clamp(ratio, 1 - low, 1 + high) )
/// ```
///
/// `log_prob`, `log_prob_old`, `advantage` `[B]` -> `[B]`. Gradients flow to `log_prob` alone; they are zero where the ratio
/// has left `clip_range = [low, high]` in the direction that the advantage rewards.
///
/// # Errors
/// Different shapes, or negative or non-finite ranges.
pub fn policy_loss(
    log_prob: &Tensor,
    log_prob_old: &Tensor,
    advantage: &Tensor,
    clip_range: [f64; 2],
    advantage_clip: f64,
) -> Result<PolicyLoss> {
    check_same_shape(&[("log_prob", log_prob), ("old log_prob", log_prob_old), ("advantage", advantage)])?;
    let [low, high] = clip_range;
    if let Some(range) = [low, high, advantage_clip].into_iter().find(|range| !(range.is_finite() && *range >= 0.0)) {
        return Err(Error::contract(format!("policy clip: expected a finite number of at least 0, found {range}")));
    }
    let advantage = float(advantage)?.detach().clamp(-advantage_clip, advantage_clip);
    let ratio = (float(log_prob)? - float(log_prob_old)?.detach()).exp();
    let clipped = ratio.clamp(1.0 - low, 1.0 + high);
    let loss = (&ratio * &advantage).minimum(&(&clipped * &advantage)).neg();
    let ratio = ratio.detach();
    let clip_fraction = ratio.not_equal_tensor(&clipped.detach()).f_mean(Kind::Float)?;
    Ok(PolicyLoss { loss, ratio, clip_fraction })
}
