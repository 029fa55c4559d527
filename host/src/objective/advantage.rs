//! Advantages: how much better than its siblings a sample did, at each step, over several rewards.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::check_same_shape;
use crate::device::upload;
use crate::{Error, Result};

/// What a reward's distance from its group's mean is divided by, before the rewards are added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Normalize {
    /// The group's standard deviation: every prompt counts alike, however much its samples differ.
    #[default]
    Group,
    /// The standard deviation over all samples of the update at that step: Flow-GRPO's `global_std`.
    Global,
    /// Nothing: rewards are added in their own units, and the sum alone is normalised.
    None,
}

/// The scores of one reward, and how they count.
#[derive(Debug)]
pub struct Judged {
    /// Scores `[groups, group_size, steps]`.
    pub scores: Tensor,
    /// Weight in the sum; 0 for a reward that is only watched.
    pub weight: f64,
    /// Whether it counts at each step, `[steps]`.
    pub on: Vec<bool>,
    /// What the weight is multiplied by for each step between a step and the last one: 1 spreads a score of the final image
    /// evenly over the steps, 0 gives it to the last alone.
    pub discount: f64,
    /// Least standard deviation that is divided by, in units of the score.
    pub std_floor: f64,
}

/// Advantages of a rollout. All tensors are detached and on the device of the scores.
#[derive(Debug)]
pub struct Advantages {
    /// `[groups, group_size, steps]`, float32; 0 throughout a dead group.
    pub values: Tensor,
    /// Share of the groups that are alive at each step, `[steps]`, float32: some weighted reward tells their samples apart.
    pub live: Tensor,
    /// Share of the (group, step) pairs of which no weighted reward tells the samples apart, whether it counts there or not: a
    /// scalar.
    pub dead_groups: Tensor,
    /// Share of the dead (group, step) pairs of each reward, `[rewards]`.
    pub dead: Tensor,
    /// What each reward gives to the variance of the sum, `[rewards]`; they add up to 1. Below 0: it is outvoted.
    pub share: Tensor,
    /// Correlation of the rewards' own advantages, before weights, `[rewards, rewards]`; 0 where one never varies.
    pub correlation: Tensor,
}

/// Advantages of several rewards; the samples of a group share their prompt. At each step k on its own (AdvDMD, equation
/// 3.9: the levels of early and late states differ), for each reward r:
///
/// ```text
/// A_r = (score_r - mean_group) / max(std, std_floor_r)       std as `normalize` says
/// C   = sum_r w_r discount_r^(last - k) A_r                  over the rewards that are on
/// A   = C / max(std_k C, sqrt(sum_r w_r^2))                  std_k over the living groups at step k
/// ```
///
/// Each reward is normalised before the sum (RTDMD's `grpo_trainer.py`, `weight_advantages`), because scales differ by
/// tens. The last line brings the sum back to unit scale. RTDMD divides by the standard deviation alone; here it is never
/// below that of independent rewards, so that rewards which cancel, discounts, and spreads held down by the floor are
/// not blown up again. Without normalisation the floors `std_floor_r` stand in for the units there.
///
/// The floor keeps a reward that hardly varies from being amplified to unit spread. A group whose scores are all equal is
/// dead: its advantages are 0, not the rounding error of its mean over a tiny standard deviation, and it is left out of
/// `std_k` (the `global` standard deviation of a reward has all samples, as Flow-GRPO's has). Where a discount leaves less
/// than all of a reward, the others keep the share that they have at the last step; where it leaves nothing, the reward is
/// off. A reward that is dead in all groups at a step adds nothing there, to `C` or to the floor of the sum.
/// Standard deviations are those of the population, as in Flow-GRPO.
///
/// # Errors
/// No rewards, different shapes, other than three dimensions, a weight that is not finite, a negative floor, or a discount
/// outside 0..1.
pub fn combine(rewards: &[Judged], normalize: Normalize) -> Result<Advantages> {
    let [groups, group_size, steps] = check(rewards)?;
    let device = rewards[0].scores.device();
    let double = |shape: &[i64]| Tensor::f_zeros(shape, (Kind::Double, device));
    let mut sum = double(&[groups, group_size, steps])?;
    let mut independent = double(&[1, 1, steps])?;
    let mut dead = Tensor::f_ones([groups, 1, steps], (Kind::Bool, device))?;
    let mut equal_to_all = dead.copy();
    let (mut own, mut parts, mut dead_shares) = (Vec::new(), Vec::new(), Vec::new());
    for reward in rewards {
        let (advantages, equal) = normalized(reward, normalize)?;
        let last = steps as i32 - 1;
        let on = |step: usize, weight: f64| if reward.on[step] { weight } else { 0.0 };
        let per_step = |weight: &dyn Fn(usize) -> f64| -> Result<Tensor> {
            let weights: Vec<f64> = (0..steps as usize).map(|step| on(step, weight(step))).collect();
            upload(&Tensor::f_from_slice(&weights)?.f_view([1, 1, -1])?, device)
        };
        let part = &advantages * per_step(&|step| reward.weight * reward.discount.powi(last - step as i32))?;
        let unit = if normalize == Normalize::None { reward.std_floor } else { 1.0 };
        let factor = |step: usize| reward.discount.powi(last - step as i32);
        let squares = per_step(&|step| if factor(step) == 0.0 { 0.0 } else { (reward.weight * unit).powi(2) })?;
        let silent = per_step(&|step| reward.weight * factor(step))?.f_eq(0.0)?;
        if reward.weight != 0.0 {
            equal_to_all = equal_to_all.f_logical_and(&equal)?;
        }
        independent += equal.f_logical_not()?.f_any_dim(0, true)?.f_to_kind(Kind::Double)? * squares;
        dead = dead.f_logical_and(&equal.f_logical_or(&silent)?)?;
        sum += &part;
        dead_shares.push(equal.f_mean(Kind::Float)?);
        own.push(advantages.f_flatten(0, -1)?);
        parts.push(part.f_flatten(0, -1)?);
    }
    let live = dead.f_logical_not()?.f_to_kind(Kind::Double)?.f_sum_dim_intlist([0].as_slice(), true, Kind::Double)?;
    // Every group's mean is 0, and dead groups are 0.
    let squares = sum.f_square()?.f_sum_dim_intlist([0, 1].as_slice(), true, Kind::Double)?;
    let std = (squares / (live.f_clamp_min(1.0)? * group_size as f64)).f_sqrt()?;
    let scale = std.f_maximum(&independent.f_sqrt()?)?.f_clamp_min(f64::MIN_POSITIVE)?;
    let values = (&sum / scale).f_to_kind(Kind::Float)?;
    let (total, parts, own) = (sum.f_flatten(0, -1)?, Tensor::f_stack(&parts, 0)?, Tensor::f_stack(&own, 0)?);
    let variance = total.f_square()?.f_sum(Kind::Double)?.f_clamp_min(f64::MIN_POSITIVE)?;
    let gram = own.f_matmul(&own.f_transpose(0, 1)?)?;
    let norms = gram.f_diagonal(0, 0, 1)?.f_sqrt()?.f_clamp_min(f64::MIN_POSITIVE.sqrt())?;
    Ok(Advantages {
        values,
        live: (live / groups as f64).f_flatten(0, -1)?.f_to_kind(Kind::Float)?,
        dead_groups: equal_to_all.f_mean(Kind::Float)?,
        dead: Tensor::f_stack(&dead_shares, 0)?,
        share: (parts.f_matmul(&total)? / variance).f_to_kind(Kind::Float)?,
        correlation: (gram / norms.f_outer(&norms)?).f_to_kind(Kind::Float)?,
    })
}

/// Refuses what cannot be combined; the shape of the scores.
fn check(rewards: &[Judged]) -> Result<[i64; 3]> {
    let named: Vec<_> = rewards.iter().map(|reward| ("scores", &reward.scores)).collect();
    check_same_shape(&named)?;
    let Some(first) = rewards.first() else { return Err(Error::contract("advantage: there are no rewards")) };
    let size = first.scores.size();
    let Ok(shape) = <[i64; 3]>::try_from(size.as_slice()) else {
        return Err(Error::contract(format!("scores: expected [groups, group_size, steps], found {size:?}")));
    };
    for Judged { weight, on, discount, std_floor, .. } in rewards {
        if on.len() as i64 != shape[2] {
            return Err(Error::contract(format!("on: expected {} steps, found {}", shape[2], on.len())));
        }
        if !(std_floor.is_finite() && *std_floor >= 0.0) {
            return Err(Error::contract(format!(
                "std_floor: expected a finite number of at least 0, found {std_floor}"
            )));
        }
        if !weight.is_finite() {
            return Err(Error::contract(format!("reward weight: expected a finite number, found {weight}")));
        }
        if !(0.0..=1.0).contains(discount) {
            return Err(Error::contract(format!("discount: expected 0 to 1, found {discount}")));
        }
    }
    Ok(shape)
}

/// One reward's advantages `[groups, group_size, steps]`, float64, and where all scores of a group are equal
/// (`[groups, 1, steps]`, boolean).
fn normalized(reward: &Judged, normalize: Normalize) -> Result<(Tensor, Tensor)> {
    let scores = reward.scores.f_detach()?.f_to_kind(Kind::Double)?;
    let equal = scores.f_amax([1].as_slice(), true)?.f_eq_tensor(&scores.f_amin([1].as_slice(), true)?)?;
    let centred = &scores - scores.f_mean_dim([1].as_slice(), true, Kind::Double)?;
    let over = match normalize {
        Normalize::Group => Some([1].as_slice()),
        Normalize::Global => Some([0, 1].as_slice()),
        Normalize::None => None,
    };
    let advantages = match over {
        Some(over) => {
            centred / scores.f_std_dim(over, false, true)?.f_clamp_min(reward.std_floor.max(f64::MIN_POSITIVE))?
        }
        None => centred,
    };
    Ok((advantages.f_masked_fill(&equal, 0.0)?, equal))
}
