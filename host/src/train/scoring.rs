//! Scores of a rollout.
//!
//! A reward of the final state that neither learns nor reads features does not depend on the critic: it is scored right
//! after the rollout, those of the background meanwhile. The others follow with the fresh critic.

use advdmd_sdk::{Needs, Scope};
use tch::{Device, Kind, Tensor};

use super::background::{self, Awaited, Job};
use super::dropped::{Dropped, Part, rescue_job};
use super::networks::Networks;
use super::rewards::{ActiveReward, Features, Rewards, Scored, checked};
use super::rollout::{Chunk, Rollout};
use crate::Result;
use crate::config::{Batch, OnRewardError};
use crate::data::Dataset;
use crate::device::upload;
use crate::sampling::{Trajectory, sigma_column};

/// What rewards score.
pub struct Subject<'a> {
    /// The networks.
    pub networks: &'a Networks,
    /// The student's trajectory.
    pub trajectory: &'a Trajectory,
    /// The samples.
    pub rollout: &'a Rollout,
    /// All prompts.
    pub prompts: &'a [String],
    /// Samples of a prompt, side by side.
    pub group_size: usize,
}

impl<'a> Subject<'a> {
    /// A rollout of a run.
    pub fn new(
        networks: &'a Networks,
        trajectory: &'a Trajectory,
        rollout: &'a Rollout,
        data: &'a dyn Dataset,
        batch: &Batch,
    ) -> Self {
        Self { networks, trajectory, rollout, prompts: data.prompts(), group_size: batch.group_size }
    }
}

/// What rewards say of a rollout.
#[derive(Default)]
pub struct Scores {
    /// For each reward `[B, S]`, S the stochastic steps of the trajectory; 0 in groups that were dropped.
    pub values: Vec<Tensor>,
    /// Groups that some reward could not score.
    pub dropped: Dropped,
}

/// Scores of which some are still to come, for each reward.
pub struct Pending {
    early: Vec<Early>,
    dropped: Dropped,
}

enum Early {
    /// Of each chunk `[b]`; none for a reward whose turn comes later.
    Scored(Vec<Tensor>),
    /// Of the whole update, and what is scored where it may have to be scored again.
    Awaited(Awaited, Option<Job>),
}

/// Which of the rewards that share a state are scored together.
#[derive(Clone, Copy, PartialEq)]
enum Turn {
    /// Of the final state, before the critic.
    Early,
    /// Of every state, after it.
    EveryStep,
    /// Of the final state, after it.
    Final,
}

impl ActiveReward {
    fn turn(&self) -> Turn {
        match self.needs.scope {
            Scope::EveryStep => Turn::EveryStep,
            Scope::Final if self.learns || self.needs.features.is_some() => Turn::Final,
            Scope::Final => Turn::Early,
        }
    }
}

impl Rewards {
    /// Scores what does not depend on the critic, or begins to.
    ///
    /// # Errors
    /// A reward that fails: names reward and step.
    pub fn begin(&mut self, subject: &Subject<'_>) -> Result<Pending> {
        let _no_grad = tch::no_grad_guard();
        let mut scored: Vec<Vec<Tensor>> = self.all.iter().map(|_| Vec::new()).collect();
        // One copy for all rewards of the background, and one call for the whole update.
        let mut copies = Copies::of(self);
        let mut dropped = Dropped::default();
        let state = subject.trajectory.steps();
        for chunk in &subject.rollout.chunks {
            self.score_state(
                subject,
                (chunk, state),
                Turn::Early,
                Some(&mut copies),
                &mut dropped,
                &mut |index, column| {
                    scored[index].push(column);
                },
            )?;
        }
        let prompts: Vec<String> =
            subject.rollout.chunks.iter().flat_map(|chunk| subject.of(chunk)).map(ToOwned::to_owned).collect();
        let early = self.all.iter().zip(scored).map(|(reward, scored)| match reward.background() {
            None => Ok(Early::Scored(scored)),
            Some(background) => {
                let job = copies.job(&reward.needs, &prompts)?;
                let again = (reward.on_error == OnRewardError::SkipGroup).then(|| job.shallow_clone());
                Ok(Early::Awaited(background.score(job), again))
            }
        });
        Ok(Pending { early: early.collect::<Result<_>>()?, dropped })
    }

    /// Scores the rest and waits for what was begun.
    ///
    /// The score of step k reads `x_{k+1}`, the result of its action (`x_k` would not depend on it). A reward of the
    /// final image scores every step alike.
    ///
    /// # Errors
    /// A reward that fails, or gives a wrong number of scores: names reward and step. Whether scores that stayed on the device
    /// are finite is not read here.
    pub fn finish(&mut self, subject: &Subject<'_>, pending: Pending) -> Result<Scores> {
        let _no_grad = tch::no_grad_guard();
        let Pending { early, mut dropped } = pending;
        let actions: Vec<usize> = subject.trajectory.stochastic().collect();
        let last = subject.trajectory.steps();
        let mut scores: Vec<Vec<Tensor>> = self.all.iter().map(|_| Vec::new()).collect();
        for chunk in &subject.rollout.chunks {
            let mut columns: Vec<Vec<Tensor>> = self.all.iter().map(|_| Vec::new()).collect();
            let mut add = |index: usize, column| columns[index].push(column);
            for &step in &actions {
                self.score_state(subject, (chunk, step + 1), Turn::EveryStep, None, &mut dropped, &mut add)?;
            }
            self.score_state(subject, (chunk, last), Turn::Final, None, &mut dropped, &mut add)?;
            for (all, column) in scores.iter_mut().zip(columns) {
                if !column.is_empty() {
                    all.push(if column.len() == actions.len() {
                        Tensor::f_stack(&column, 1)?
                    } else {
                        spread(&column[0], &actions)?
                    });
                }
            }
        }
        for ((reward, all), early) in self.all.iter().zip(&mut scores).zip(early) {
            match early {
                Early::Scored(columns) => {
                    for column in &columns {
                        all.push(spread(column, &actions)?);
                    }
                }
                Early::Awaited(awaited, again) => {
                    let prompts: Vec<&str> =
                        subject.rollout.chunks.iter().flat_map(|chunk| subject.of(chunk)).collect();
                    let scores = background::wait(&awaited)?.and_then(|scores| checked(&scores, 0, &prompts));
                    let scores = match (scores.map_err(|source| reward.error(last - 1, source)), again) {
                        (Err(error), Some(job)) => {
                            rescue_job(reward, &job, subject.group_size, last - 1, error, &mut dropped)?
                        }
                        (scores, _) => scores?,
                    };
                    all.push(spread(&upload(&Tensor::f_from_slice(&scores)?, subject.networks.device)?, &actions)?);
                }
            }
        }
        let values = scores.iter().map(|chunks| Ok(Tensor::f_cat(chunks, 0)?)).collect::<Result<_>>()?;
        Ok(Scores { values, dropped })
    }

    fn score_state(
        &mut self,
        subject: &Subject<'_>,
        (chunk, state): (&Chunk, usize),
        turn: Turn,
        copies: Option<&mut Copies>,
        dropped: &mut Dropped,
        add: &mut dyn FnMut(usize, Tensor),
    ) -> Result<()> {
        let here = |reward: &ActiveReward| reward.turn() == turn;
        if !self.all.iter().any(here) {
            return Ok(());
        }
        let networks = subject.networks;
        let x = &chunk.states[state];
        let sigma = sigma_column(subject.trajectory.sigmas[state], x);
        let wants = |need: fn(&Needs) -> bool| self.all.iter().any(|reward| here(reward) && need(&reward.needs));
        let features = if wants(|needs| needs.features.is_some()) {
            self.features(networks, x, &sigma, chunk)?
        } else {
            Features::default()
        };
        let images = if wants(|needs| needs.images) { Some(networks.backbone.decode_latents(x)?) } else { None };
        let prompts = subject.of(chunk);
        let scored = Scored { prompts, sigma: &sigma, latents: x, images: images.as_ref(), features: &features };
        if let Some(copies) = copies {
            copies.add(&scored)?;
        }
        for index in 0..self.all.len() {
            if !here(&self.all[index]) || self.all[index].background().is_some() {
                continue;
            }
            let part = Part { first: chunk.first, group_size: subject.group_size, step: state - 1 };
            let may_skip = self.all[index].on_error == OnRewardError::SkipGroup;
            if may_skip && part.is_known(chunk.len(), dropped) {
                add(index, self.rescue(index, &scored, part, networks.device, None, dropped)?);
                continue;
            }
            let batch = self.batch(&self.all[index], &scored)?;
            let reward = &mut self.all[index];
            let scores = reward.scores(&batch, chunk.first, networks.device);
            let scores = match scores.map_err(|source| reward.error(state - 1, source)) {
                Err(error) if may_skip => self.rescue(index, &scored, part, networks.device, Some(error), dropped)?,
                scores => scores?,
            };
            add(index, scores);
        }
        Ok(())
    }
}

/// What rewards of the background read, on the CPU.
struct Copies {
    images: Option<Vec<Tensor>>,
    latents: Option<Vec<Tensor>>,
}

impl Copies {
    /// Nothing yet, of what `rewards` will need.
    fn of(rewards: &Rewards) -> Self {
        let wants = |need: fn(&Needs) -> bool| {
            rewards.all.iter().any(|reward| reward.background().is_some() && need(&reward.needs)).then(Vec::new)
        };
        Self { images: wants(|needs| needs.images), latents: wants(|needs| needs.latents) }
    }

    fn add(&mut self, state: &Scored<'_>) -> Result<()> {
        if let Some((images, found)) = self.images.as_mut().zip(state.images) {
            images.push(on_cpu(found)?);
        }
        if let Some(latents) = &mut self.latents {
            latents.push(on_cpu(state.latents)?);
        }
        Ok(())
    }

    fn job(&mut self, needs: &Needs, prompts: &[String]) -> Result<Job> {
        let whole = |parts: &mut Option<Vec<Tensor>>| -> Result<Option<Tensor>> {
            let Some(parts) = parts else { return Ok(None) };
            if parts.len() > 1 {
                *parts = vec![Tensor::f_cat(parts, 0)?];
            }
            Ok(parts.first().map(Tensor::shallow_clone))
        };
        Ok(Job {
            prompts: prompts.to_vec(),
            images: if needs.images { whole(&mut self.images)? } else { None },
            latents: if needs.latents { whole(&mut self.latents)? } else { None },
        })
    }
}

fn on_cpu(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?)
}

impl<'a> Subject<'a> {
    /// The prompts of a chunk.
    fn of(&self, chunk: &Chunk) -> Vec<&'a str> {
        chunk.prompts.iter().map(|&id| self.prompts[id].as_str()).collect()
    }
}

/// A column `[b]` as `[b, S]`.
fn spread(column: &Tensor, actions: &[usize]) -> Result<Tensor> {
    Ok(column.f_unsqueeze(1)?.f_expand([-1, actions.len() as i64], false)?)
}

/// Refuses a score that is not finite: names reward, step and sample. `scores` as [`Rewards::finish`] gives them. Waits
/// for the device.
///
/// # Errors
/// The first score that is not finite.
pub fn check_finite(rewards: &Rewards, scores: &[Tensor], subject: &Subject<'_>) -> Result<()> {
    let actions: Vec<usize> = subject.trajectory.stochastic().collect();
    for (reward, scores) in rewards.all.iter().zip(scores) {
        let values: Vec<f32> = Vec::try_from(scores.f_reshape([-1])?)?;
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let sample = at / actions.len();
            let step = match reward.needs.scope {
                Scope::EveryStep => actions[at % actions.len()],
                Scope::Final => subject.trajectory.steps() - 1,
            };
            let mut ids = subject.rollout.chunks.iter().flat_map(|chunk| &chunk.prompts);
            let prompt = ids.nth(sample).and_then(|&id| subject.prompts.get(id)).map_or("", String::as_str);
            return Err(reward.error(step, not_finite(sample, prompt, values[at])));
        }
    }
    Ok(())
}

/// A score that is no number.
pub fn not_finite(sample: usize, prompt: &str, score: f32) -> advdmd_sdk::Error {
    advdmd_sdk::Error::invalid(format!("scored sample {sample} (\"{prompt}\") with {score}"))
}
