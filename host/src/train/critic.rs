//! The critic: the fake-score network and the rewards' learners, updated together on one rollout.
//!
//! One forward of the fake network serves both: its velocity gives the denoising loss, its tapped features,
//! detached, the learners' fake side. The real side costs one more pass, without gradients and up to the deepest tap.

use std::time::Instant;

use advdmd_nn::optim::{AdamW, clip_grad_norm};
use advdmd_sdk::{DiscriminatorLoss, Request};
use rand::Rng;
use tch::{Kind, Tensor};

use super::guard::Guard;
use super::metrics::Meter;
use super::networks::Networks;
use super::rewards::{Features, Rewards, Scored};
use super::rollout::{Chunk, Rollout};
use crate::config::{self, RunConfig};
use crate::data::{self, Dataset};
use crate::device::upload;
use crate::objective::denoise;
use crate::passes::Role;
use crate::random::{Random, Stream, column};
use crate::sampling::Trajectory;
use crate::{Error, Result};

/// The optimisers of the critic.
pub struct Critic {
    /// Of the fake-score network.
    pub fake: AdamW,
    /// Of each learner, by the reward's index.
    pub learners: Vec<Option<AdamW>>,
}

/// What a critic sample is: a step of the trajectory, noised to a sigma.
struct Draws {
    /// Step k of each sample, `[b]`: its predicted clean latents are the fake sample.
    steps: Vec<usize>,
    /// Noise level of each sample.
    sigmas: Vec<f64>,
    /// Samples whose noise level is the one at which their step's reward is read.
    on_schedule: Vec<usize>,
    /// Noise `[b, C, h, w]`, shared by the real and the fake side so that they differ in content alone.
    noise: Tensor,
}

/// What every critic update of a run shares.
pub struct CriticContext<'a> {
    /// The networks.
    pub networks: &'a Networks,
    /// The trajectory whose sigmas are drawn.
    pub trajectory: &'a Trajectory,
    /// Real images.
    pub data: &'a dyn Dataset,
    /// The run's configuration.
    pub config: &'a RunConfig,
    /// The run's randomness.
    pub random: Random,
}

impl Critic {
    /// Adds the gradients of one critic update to the parameters of the fake network and the learners; `number` counts
    /// critic updates of the run.
    ///
    /// # Errors
    /// A network's or a learner's.
    pub fn accumulate(
        context: &CriticContext<'_>,
        rewards: &mut Rewards,
        rollout: &Rollout,
        number: u64,
        meter: &mut Meter,
    ) -> Result<()> {
        let total: usize = rollout.chunks.iter().map(Chunk::len).sum();
        let networks = context.networks;
        for (index, chunk) in rollout.chunks.iter().enumerate() {
            meter.place(|| format!("critic update {number}, chunk {index}"));
            let share = chunk.len() as f64 / total as f64;
            let draws = draw(context, chunk, number)?;
            let x0 = gather(&chunk.x0, &draws.steps);
            let sigma = column(&draws.sigmas, networks.device)?;
            let x = noised(&x0, &draws.noise, &sigma);
            let request = Request { velocity: true, taps: &rewards.fake_taps };
            networks.passes.forward(Role::Fake, x.size()[0]);
            let prediction = networks.fake.predict(&x, &sigma, &chunk.conditioning, request)?;
            let velocity = prediction.velocity.ok_or_else(|| Error::contract("no velocity"))?;
            meter.watch("velocity of the fake network", &velocity);
            let loss = denoise::loss(&velocity, &x0, &draws.noise)?.mean(Kind::Float);
            meter.add("critic/denoise_loss", &loss, share);
            (&loss * share).f_backward()?;
            networks.passes.backward(Role::Fake, x.size()[0]);
            if rewards.learns() {
                let fake = Features {
                    fake: prediction.features,
                    teacher: teacher_features(context, rewards, &x, &sigma, chunk)?,
                };
                learn(context, rewards, chunk, &draws, &sigma, (&x, &fake.detach()), number, share, meter)?;
            }
        }
        Ok(())
    }

    /// Clips and steps along the gradients of [`Critic::accumulate`].
    ///
    /// # Errors
    /// libtorch's.
    pub fn step(
        &mut self,
        networks: &Networks,
        settings: &config::Critic,
        rewards: &mut Rewards,
        guard: &mut Guard,
        meter: &mut Meter,
    ) -> Result<()> {
        let begun = Instant::now();
        let norm = clip_grad_norm(&networks.fake.parameters(), settings.optimizer.clip_norm)?;
        meter.add("critic/grad_norm", &norm, 1.0);
        // All norms first: where one is not finite, nothing moves.
        guard.watch(&norm);
        let mut learners = Vec::new();
        for (reward, optimizer) in rewards.all.iter_mut().zip(&mut self.learners) {
            let Some((learner, optimizer)) = reward.learner().zip(optimizer.as_mut()) else { continue };
            let norm = clip_grad_norm(&learner.parameters(), settings.learner_optimizer.clip_norm)?;
            meter.add(&format!("critic/{}/grad_norm", reward.name), &norm, 1.0);
            guard.watch(&norm);
            learners.push(optimizer);
        }
        for optimizer in std::iter::once(&mut self.fake).chain(learners) {
            optimizer.step_unless(guard.tripped())?;
            optimizer.gradients().drop_all()?;
        }
        let seconds = begun.elapsed().as_secs_f64();
        meter.spend("time/optimizer", seconds);
        meter.spend("time/critic", -seconds);
        Ok(())
    }
}

fn teacher_features(
    context: &CriticContext<'_>,
    rewards: &Rewards,
    x: &Tensor,
    sigma: &Tensor,
    chunk: &Chunk,
) -> Result<Vec<Tensor>> {
    if rewards.teacher_taps.is_empty() {
        return Ok(Vec::new());
    }
    let request = Request { velocity: false, taps: &rewards.teacher_taps };
    context.networks.passes.forward(Role::Teacher, x.size()[0]);
    Ok(tch::no_grad(|| context.networks.teacher.predict(x, sigma, &chunk.conditioning, request))?.features)
}

/// The learners' losses on `fake` (latents and features) against real images of the same prompts, noise and sigmas.
#[expect(clippy::too_many_arguments, reason = "one call site; a struct for it would only rename the arguments")]
fn learn(
    context: &CriticContext<'_>,
    rewards: &mut Rewards,
    chunk: &Chunk,
    draws: &Draws,
    sigma: &Tensor,
    fake: (&Tensor, &Features),
    number: u64,
    share: f64,
    meter: &mut Meter,
) -> Result<()> {
    let networks = context.networks;
    let (x_real, real) = {
        let _no_grad = tch::no_grad_guard();
        let real = |(index, &prompt)| {
            let mut rng = context.random.rng(Stream::Real, [number, (chunk.first + index) as u64, 0]);
            context.data.real(prompt, &mut rng)
        };
        let reals = chunk.prompts.iter().enumerate().map(real).collect::<Result<Vec<_>>>()?;
        let latents = data::latents(&reals, networks.backbone.as_ref(), networks.device)?;
        let x_real = noised(&latents, &draws.noise, sigma);
        meter.watch("real latents", &x_real);
        let features = rewards.features(networks, &x_real, sigma, chunk)?;
        (x_real, features)
    };
    let prompts: Vec<&str> = chunk.prompts.iter().map(|&id| context.data.prompts()[id].as_str()).collect();
    let state = |latents, features| Scored { prompts: prompts.clone(), sigma, latents, images: None, features };
    let (real, fake) = (state(&x_real, &real), state(fake.0, fake.1));
    for index in 0..rewards.all.len() {
        let (real, fake) = (rewards.batch(&rewards.all[index], &real)?, rewards.batch(&rewards.all[index], &fake)?);
        let reward = &mut rewards.all[index];
        let Some(loss) = reward.discriminator_loss(&real, &fake)? else { continue };
        let name = &reward.name;
        meter.add(&format!("critic/{name}/loss"), &loss.loss, share);
        accuracy(name, &loss, draws, share, meter)?;
        (loss.loss * (context.config.critic.learner_weight * share)).f_backward()?;
    }
    Ok(())
}

/// Shares of real and fake samples told right: of all, and for each step of those judged where its reward is read.
fn accuracy(name: &str, loss: &DiscriminatorLoss, draws: &Draws, share: f64, meter: &mut Meter) -> Result<()> {
    let right = (loss.real.gt(0.5).to_kind(Kind::Float) + loss.fake.lt(0.5).to_kind(Kind::Float)) * 0.5;
    if !draws.on_schedule.is_empty() {
        let index: Vec<i64> = draws.on_schedule.iter().map(|&sample| sample as i64).collect();
        let judged = right.index_select(0, &upload(&Tensor::from_slice(&index), right.device())?);
        let steps: Vec<usize> = draws.on_schedule.iter().map(|&sample| draws.steps[sample]).collect();
        meter.add_by(&format!("critic/{name}/accuracy/step"), &judged, &steps)?;
    }
    meter.add(&format!("critic/{name}/accuracy"), &right.mean(Kind::Float), share);
    meter.add(&format!("critic/{name}/score_real"), &loss.real.mean(Kind::Float), share);
    meter.add(&format!("critic/{name}/score_fake"), &loss.fake.mean(Kind::Float), share);
    Ok(())
}

/// Draws step, sigma and noise of each sample of a chunk.
///
/// A share `on_schedule` of the sigmas is the next one of the sample's own step, the level at which its reward is
/// read; the rest is uniform over the range that the distribution-matching loss visits.
fn draw(context: &CriticContext<'_>, chunk: &Chunk, number: u64) -> Result<Draws> {
    let [low, high] = context.config.objective.dmd.sigma_range;
    let (mut steps, mut sigmas, mut scheduled) = (Vec::new(), Vec::new(), Vec::new());
    let samples = (chunk.first..chunk.first + chunk.len()).map(|sample| sample as u64);
    for sample in samples.clone() {
        let mut rng = context.random.rng(Stream::Critic, [number, sample, 0]);
        let step = rng.random_range(0..context.trajectory.steps());
        let next = context.trajectory.sigmas[step + 1];
        let on_schedule = rng.random::<f64>() < context.config.critic.on_schedule && next > 0.0;
        let uniform = low + (high - low) * rng.random::<f64>();
        if on_schedule {
            scheduled.push(steps.len());
        }
        steps.push(step);
        sigmas.push(if on_schedule { next } else { uniform });
    }
    let keys = samples.map(|sample| [number, sample, 0]);
    let noise = context.random.normal(
        Stream::CriticNoise,
        keys,
        &context.networks.spec.latent_shape,
        context.networks.device,
    )?;
    Ok(Draws { steps, sigmas, on_schedule: scheduled, noise })
}

/// `per_step[steps[i]][i]` for each sample i.
fn gather(per_step: &[Tensor], steps: &[usize]) -> Tensor {
    let rows: Vec<Tensor> = steps.iter().enumerate().map(|(sample, &step)| per_step[step].get(sample as i64)).collect();
    Tensor::stack(&rows, 0)
}

/// `(1 - sigma) x0 + sigma noise`, with `sigma` `[b]`.
pub fn noised(x0: &Tensor, noise: &Tensor, sigma: &Tensor) -> Tensor {
    let sigma = sigma.view([-1, 1, 1, 1]);
    x0.lerp_tensor(noise, &sigma)
}
