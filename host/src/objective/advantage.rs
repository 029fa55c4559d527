//! Advantages: how much better than its siblings a sample did, at each step, over several rewards.

use tch::{Kind, Tensor};

use super::check_same_shape;
use crate::{Error, Result};

/// Advantages of a rollout.
#[derive(Debug)]
pub struct Advantages {
    /// `[groups, group_size, steps]`, float32; 0 throughout a dead group.
    pub values: Tensor,
    /// Share of the (group, step) pairs that are dead, a scalar: no reward tells their samples apart.
    pub dead_share: Tensor,
}

/// Advantages of several rewards.
///
/// `rewards` are pairs of scores `[groups, group_size, steps]` and a weight; the samples of a group share their prompt. At
/// each step k on its own (AdvDMD, equation 3.9: the levels of early and late states differ):
///
/// ```text
/// A_r = (score_r - mean_group) / max(std_group, std_floor)         for each reward r and group
/// C   = sum_r w_r A_r
/// A   = C / max(std_k C, sqrt(sum_r w_r^2))                        std_k over all groups at step k
/// ```
///
/// Each reward is normalised before the sum (RTDMD's `grpo_trainer.py`, `weight_advantages`), because scales differ by
/// tens. The last line brings the sum back to unit scale. RTDMD divides by the standard deviation alone; here it is never
/// below that of independent rewards, so that rewards which cancel, dead groups, and spreads held down by the floor are
/// not blown up again.
///
/// `std_floor`, in units of the score, keeps a reward that hardly varies from being amplified to unit spread. A group whose
/// scores are all equal is dead: its advantages are 0, not the rounding error of its mean over a tiny standard deviation.
/// Standard deviations are those of the population, as in Flow-GRPO.
///
/// # Errors
/// No rewards, different shapes, fewer than three dimensions, a weight that is not finite, or a negative floor.
pub fn combine(rewards: &[(Tensor, f64)], std_floor: f64) -> Result<Advantages> {
    let named: Vec<_> = rewards.iter().map(|(scores, _)| ("scores", scores)).collect();
    check_same_shape(&named)?;
    let Some((scores, _)) = rewards.first() else { return Err(Error::contract("advantage: there are no rewards")) };
    if scores.dim() != 3 {
        let found = scores.size();
        return Err(Error::contract(format!("scores: expected [groups, group_size, steps], found {found:?}")));
    }
    if !(std_floor.is_finite() && std_floor >= 0.0) {
        return Err(Error::contract(format!("std_floor: expected a finite number of at least 0, found {std_floor}")));
    }
    if let Some((_, weight)) = rewards.iter().find(|(_, weight)| !weight.is_finite()) {
        return Err(Error::contract(format!("reward weight: expected a finite number, found {weight}")));
    }

    let size = scores.size();
    let options = |kind| (kind, scores.device());
    let mut sum = Tensor::f_zeros(&size, options(Kind::Double))?;
    let mut dead = Tensor::f_ones([size[0], 1, size[2]], options(Kind::Bool))?;
    for (scores, weight) in rewards {
        let (normalized, equal) = normalize(scores, std_floor)?;
        sum += normalized * *weight;
        dead = dead.f_logical_and(&equal)?;
    }
    let independent = rewards.iter().map(|(_, weight)| weight * weight).sum::<f64>().sqrt();
    let scale = sum.f_std_dim([0, 1].as_slice(), false, true)?.clamp_min(independent.max(f64::MIN_POSITIVE));
    Ok(Advantages { values: (sum / scale).f_to_kind(Kind::Float)?, dead_share: dead.f_mean(Kind::Float)? })
}

/// One reward's advantages `[groups, group_size, steps]`, float64, and where all scores of a group are equal
/// (`[groups, 1, steps]`, boolean).
fn normalize(scores: &Tensor, std_floor: f64) -> Result<(Tensor, Tensor)> {
    let scores = scores.f_detach()?.f_to_kind(Kind::Double)?;
    let equal = scores.f_amax([1].as_slice(), true)?.f_eq_tensor(&scores.f_amin([1].as_slice(), true)?)?;
    let centred = &scores - scores.f_mean_dim([1].as_slice(), true, Kind::Double)?;
    let std = scores.f_std_dim([1].as_slice(), false, true)?.clamp_min(std_floor.max(f64::MIN_POSITIVE));
    Ok(((centred / std).f_masked_fill(&equal, 0.0)?, equal))
}
