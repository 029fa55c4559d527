//! From scores to what the policy gradient reads, and what is said of it.

use tch::{Device, Kind, Tensor};

use super::metrics::Meter;
use super::scoring::Scores;
use super::trainer::Trainer;
use crate::Result;
use crate::config::OnRewardError;
use crate::device::upload;
use crate::objective::advantage::{self, Advantages, Judged};

/// The advantages of one step.
#[derive(Debug)]
pub struct StepAdvantage {
    /// `[B]`; 0 in dead groups.
    pub values: Tensor,
    /// Share of the samples whose group is alive, a scalar: the mean is over those.
    pub live: Tensor,
}

/// The groups that all rewards could score.
struct Kept {
    /// Their numbers; `None` for all.
    index: Option<Tensor>,
    /// Their share of the groups.
    share: f64,
}

impl Kept {
    fn of(scores: &mut Scores, groups: usize, device: Device) -> Result<Self> {
        if scores.dropped.is_empty() {
            return Ok(Self { index: None, share: 1.0 });
        }
        let kept = scores.dropped.kept(groups)?;
        let share = kept.len() as f64 / groups as f64;
        Ok(Self { index: Some(upload(&Tensor::f_from_slice(&kept)?, device)?), share })
    }

    /// The rows of `[groups, ...]` that are kept.
    fn select(&self, tensor: &Tensor) -> Result<Tensor> {
        match &self.index {
            None => Ok(tensor.shallow_clone()),
            Some(index) => Ok(tensor.f_index_select(0, index)?),
        }
    }

    /// The rows in their places of `shape`, 0 elsewhere.
    fn restore(&self, rows: &Tensor, shape: [i64; 3]) -> Result<Tensor> {
        match &self.index {
            None => Ok(rows.shallow_clone()),
            Some(index) => {
                Ok(rows.f_new_zeros(shape, (rows.f_kind()?, rows.device()))?.f_index_copy(0, index, rows)?)
            }
        }
    }
}

impl Trainer {
    /// Advantages of each step of the trajectory at which some reward counts.
    ///
    /// # Errors
    /// No group is left of those that rewards could score: the last reward's error.
    pub(super) fn advantages(&self, scores: &mut Scores, meter: &mut Meter) -> Result<Vec<Option<StepAdvantage>>> {
        let settings = &self.config.objective.grpo;
        if scores.values.is_empty() {
            return Ok(Vec::new());
        }
        let actions: Vec<usize> = self.trajectory.stochastic().collect();
        let batch = &self.config.batch;
        let shape = [batch.groups as i64, batch.group_size as i64, actions.len() as i64];
        let kept = Kept::of(scores, batch.groups, self.networks.device)?;
        let scores: Vec<Tensor> =
            scores.values.iter().map(|scores| kept.select(&scores.f_view(shape)?)).collect::<Result<_>>()?;
        self.record_scores(&scores, &actions, meter);
        let is_open = |step, learns| self.state.gate.is_open(settings, self.state.update, step, learns);
        let rewards = &self.rewards;
        let judged = rewards.all.iter().zip(&rewards.shares).zip(scores).map(|((reward, share), scores)| Judged {
            scores,
            weight: share.weight,
            on: actions.iter().map(|&step| is_open(step, reward.learns)).collect(),
            discount: share.discount,
            std_floor: share.std_floor,
        });
        let judged: Vec<Judged> = judged.collect();
        let advantages = advantage::combine(&judged, settings.normalize)?;
        self.record_advantages(&advantages, meter);
        let flat = kept.restore(&advantages.values, shape)?.f_view([-1, actions.len() as i64])?;
        let live = &advantages.live * kept.share;
        let mut by_step: Vec<Option<StepAdvantage>> = (0..self.trajectory.steps()).map(|_| None).collect();
        for (column, &step) in actions.iter().enumerate() {
            meter.set(&format!("grpo/gate/step{step}"), f64::from(u8::from(is_open(step, rewards.learns()))));
            if judged.iter().any(|reward| reward.on[column] && reward.weight != 0.0) {
                let values = flat.f_select(1, column as i64)?;
                by_step[step] = Some(StepAdvantage { values, live: live.f_select(0, column as i64)? });
            }
        }
        Ok(by_step)
    }

    /// How many groups each reward that may leave some out could not score.
    pub(super) fn record_dropped(&self, scores: &Scores, meter: &mut Meter) {
        for reward in self.rewards.all.iter().filter(|reward| reward.on_error == OnRewardError::SkipGroup) {
            meter.set(&format!("reward/{}/skipped_groups", reward.name), scores.dropped.by(&reward.name) as f64);
        }
    }

    fn record_scores(&self, scores: &[Tensor], actions: &[usize], meter: &mut Meter) {
        for (reward, scores) in self.rewards.all.iter().zip(scores) {
            for (column, step) in actions.iter().enumerate() {
                let scores = scores.select(2, column as i64);
                meter.add(&format!("reward/{}/step{step}/mean", reward.name), &scores.mean(Kind::Float), 1.0);
                meter.add(&format!("reward/{}/step{step}/std", reward.name), &scores.std(false), 1.0);
            }
        }
    }

    fn record_advantages(&self, advantages: &Advantages, meter: &mut Meter) {
        meter.add("advantage/std", &advantages.values.std(false), 1.0);
        meter.add("advantage/dead_groups", &advantages.dead_groups, 1.0);
        let names: Vec<&str> = self.rewards.all.iter().map(|reward| reward.name.as_str()).collect();
        for (index, name) in names.iter().enumerate() {
            meter.add(&format!("reward/{name}/dead_groups"), &advantages.dead.get(index as i64), 1.0);
            // One reward has all of it.
            if names.len() > 1 {
                meter.add(&format!("reward/{name}/advantage_share"), &advantages.share.get(index as i64), 1.0);
            }
            for (other, second) in names.iter().enumerate().skip(index + 1) {
                let correlation = advantages.correlation.get(index as i64).get(other as i64);
                meter.add(&format!("correlation/{name}/{second}"), &correlation, 1.0);
            }
        }
    }
}
