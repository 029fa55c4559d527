//! The student's update: one forward feeds every loss, one backward carries their sum.
//!
//! The forward at a stored state `x_k` gives the velocity `v`. From it come the policy's log-probability of the stored
//! `x_{k+1}` and the clean latents `x0 = x_k - sigma_k v`; those, noised once, pass through teacher and fake network
//! for distribution matching and, through the same pass of the fake network, give the generator loss its
//! features. Each loss is differentiated down to `v` on its own, so that their gradient norms can be compared, and
//! the weighted sum of those gradients goes through the student once.

use advdmd_sdk::{FeatureSource, LogProb, Request};
use rand::Rng;
use rand::seq::index;
use tch::{Kind, Tensor};

use super::advantages::StepAdvantage;
use super::backprop;
use super::critic::noised;
use super::metrics::Meter;
use super::networks::Networks;
use super::rewards::{Features, Rewards, Scored};
use super::rollout::{Chunk, Rollout};
use crate::config::RunConfig;
use crate::objective::{dmd, grpo};
use crate::passes::Role;
use crate::random::{Random, Stream, column};
use crate::sampling::{Guidance, Trajectory, sigma_column, velocity};
use crate::{Error, Result};

/// What the student update reads.
pub struct StudentContext<'a> {
    /// The networks; the fake one with its weights frozen.
    pub networks: &'a Networks,
    /// The student's trajectory.
    pub trajectory: &'a Trajectory,
    /// All prompts.
    pub prompts: &'a [String],
    /// The run's configuration.
    pub config: &'a RunConfig,
    /// The run's randomness.
    pub random: Random,
    /// Number of this update.
    pub update: u64,
    /// Advantages of each step that has some; empty while the policy gradient is off.
    pub advantages: &'a [Option<StepAdvantage>],
}

/// Adds the gradients of all objectives over a rollout to the student's parameters.
///
/// # Errors
/// A network's or a learner's.
pub fn accumulate(
    context: &StudentContext<'_>,
    rewards: &mut Rewards,
    rollout: &Rollout,
    meter: &mut Meter,
) -> Result<()> {
    let steps = steps_to_train(context);
    let is_action = |step: &&usize| context.trajectory.transitions[**step].log_prob != LogProb::None;
    let actions = steps.iter().filter(is_action).count();
    let samples: usize = rollout.chunks.iter().map(Chunk::len).sum();
    for (index, chunk) in rollout.chunks.iter().enumerate() {
        let share = chunk.len() as f64 / samples as f64;
        for &step in &steps {
            meter.place(|| format!("student update {}, chunk {index}, step {step}", context.update));
            let shares =
                Shares { pair: share / steps.len() as f64, action: share / actions.max(1) as f64, chunk: share };
            train_step(context, rewards, chunk, step, &shares, meter)?;
        }
    }
    Ok(())
}

/// Weights that make a sum over chunks and steps the mean over samples.
struct Shares {
    /// Of this chunk and step among all trained (sample, step) pairs.
    pair: f64,
    /// The same among pairs with a stochastic transition.
    action: f64,
    /// Of this chunk among all samples.
    chunk: f64,
}

/// The steps that an update trains on, rising: the same for all chunks, so that the cut into chunks changes nothing.
fn steps_to_train(context: &StudentContext<'_>) -> Vec<usize> {
    let steps = context.trajectory.steps();
    let wanted = context.config.student.trained_steps(steps);
    if wanted == steps {
        return (0..steps).collect();
    }
    let mut rng = context.random.rng(Stream::Student, [context.update, 0, 1]);
    let mut chosen = index::sample(&mut rng, steps, wanted).into_vec();
    chosen.sort_unstable();
    chosen
}

fn train_step(
    context: &StudentContext<'_>,
    rewards: &mut Rewards,
    chunk: &Chunk,
    step: usize,
    shares: &Shares,
    meter: &mut Meter,
) -> Result<()> {
    let networks = context.networks;
    let x = &chunk.states[step];
    let sigma = sigma_column(context.trajectory.sigmas[step], x);
    let student = networks.student.as_ref();
    let output = velocity(student, Role::Student, x, &sigma, &chunk.conditioning, None, &networks.passes)?;
    meter.watch("velocity of the student", &output);
    // A leaf in the place of the student's output: the losses' graphs end here.
    let v = output.detach().set_requires_grad(true);
    let mut gradient: Option<Tensor> = None;
    let mut add = |name: &str, loss: &Tensor, weight: f64, share: f64, meter: &mut Meter| -> Result<()> {
        meter.add(&format!("{name}/loss"), loss, share);
        if weight == 0.0 {
            return Ok(());
        }
        let scaled = Tensor::f_run_backward(&[loss * (weight * share)], &[&v], false, false)?.remove(0);
        meter.watch(&format!("gradient of {name} at the student's velocity"), &scaled);
        // Per-sample scale: independent of how the samples are cut into chunks.
        meter.add(&format!("{name}/grad_norm"), &(scaled.norm() / share), share);
        gradient = Some(match gradient.take() {
            None => scaled,
            Some(sum) => sum + scaled,
        });
        Ok(())
    };
    if let Some(Some(advantage)) = context.advantages.get(step) {
        let loss = policy_loss(context, chunk, step, &v, advantage, shares, meter)?;
        add("grpo", &loss, context.config.objective.grpo.weight, shares.action, meter)?;
    }
    let matching = Matching::new(context, rewards, chunk, step, &v)?;
    if let Some((fake, teacher)) = &matching.velocities {
        meter.watch("velocity of the teacher", teacher);
        meter.watch("velocity of the fake network", fake);
    }
    if let Some(loss) = matching.dmd(meter, shares)? {
        add("dmd", &loss, context.config.objective.dmd.weight, shares.pair, meter)?;
    }
    if let Some(loss) = matching.gan(context, rewards, chunk)? {
        matching.count_backward(networks);
        add("gan", &loss, context.config.objective.gan.weight, shares.pair, meter)?;
    }
    if step + 1 == context.trajectory.steps()
        && let Some(loss) = backprop::loss(context, rewards, chunk, &matching.x0, shares.chunk, meter)?
    {
        add("reward_backprop", &loss, context.config.objective.reward_backprop.weight, shares.chunk, meter)?;
    }
    if let Some(gradient) = gradient {
        // Vector-Jacobian product: the gradient of (output . g) is g pulled back through the network.
        (output * gradient).sum(Kind::Float).f_backward()?;
        networks.passes.backward(Role::Student, x.size()[0]);
    }
    Ok(())
}

/// Clipped policy loss of one step, a scalar.
fn policy_loss(
    context: &StudentContext<'_>,
    chunk: &Chunk,
    step: usize,
    v: &Tensor,
    advantage: &StepAdvantage,
    shares: &Shares,
    meter: &mut Meter,
) -> Result<Tensor> {
    let transition = &context.trajectory.transitions[step];
    let mut mean = &chunk.states[step] * transition.a + v * transition.b[0];
    if let Some(history) = &chunk.history[step] {
        mean += history;
    }
    let log_prob = grpo::log_prob(&chunk.states[step + 1], &mean, transition.c, transition.log_prob)?;
    let old =
        chunk.log_prob[step].as_ref().ok_or_else(|| Error::contract("a deterministic step has no log-probability"))?;
    let samples = advantage.values.narrow(0, chunk.first as i64, chunk.len() as i64);
    meter.watch("advantage", &samples);
    let settings = &context.config.objective.grpo;
    let policy = grpo::policy_loss(&log_prob, old, &samples, settings.clip_range, settings.advantage_clip)?;
    meter.add("grpo/ratio_mean", &policy.ratio.mean(Kind::Float), shares.action);
    meter.add_min("grpo/ratio_min", &policy.ratio.min());
    meter.add_max("grpo/ratio_max", &policy.ratio.max());
    meter.add("grpo/clip_fraction", &policy.clip_fraction, shares.action);
    // The loss of a dead group is 0, and it is no part of the mean.
    Ok(policy.loss.mean(Kind::Float) / advantage.live.clamp_min(f64::from(f32::EPSILON)))
}

/// The student's clean latents of one step, noised, and what teacher and fake network say of them.
struct Matching {
    x0: Tensor,
    x_s: Tensor,
    sigma: Tensor,
    velocities: Option<(Tensor, Tensor)>,
    features: Option<Features>,
}

impl Matching {
    fn new(
        context: &StudentContext<'_>,
        rewards: &mut Rewards,
        chunk: &Chunk,
        step: usize,
        v: &Tensor,
    ) -> Result<Self> {
        let networks = context.networks;
        let objective = &context.config.objective;
        let with_dmd = objective.dmd.weight > 0.0;
        let with_gan = objective.gan.weight > 0.0 && rewards.learns();
        let x0 = &chunk.states[step] - v * context.trajectory.sigmas[step];
        let (sigma, noise) = draw(context, chunk, step)?;
        let x_s = noised(&x0, &noise, &sigma);
        let source = |source| {
            with_gan && rewards.all.iter().any(|r| r.needs.features.as_ref().is_some_and(|f| f.source == source))
        };
        let teacher = with_dmd
            .then(|| {
                let guidance = Guidance { scale: objective.dmd.guidance_scale, null: &chunk.null };
                let (teacher, x_s) = (networks.teacher.as_ref(), x_s.detach());
                tch::no_grad(|| {
                    velocity(
                        teacher,
                        Role::Teacher,
                        &x_s,
                        &sigma,
                        &chunk.conditioning,
                        Some(&guidance),
                        &networks.passes,
                    )
                })
            })
            .transpose()?;
        let through = source(FeatureSource::Fake);
        let taps = if through { rewards.fake_taps.as_slice() } else { &[] };
        let fake = (with_dmd || through)
            .then(|| {
                networks.passes.forward(Role::Fake, x_s.size()[0]);
                let input = if through { x_s.shallow_clone() } else { x_s.detach() };
                networks.fake.predict(&input, &sigma, &chunk.conditioning, Request { velocity: with_dmd, taps })
            })
            .transpose()?;
        let mut features = Features::default();
        let mut fake_velocity = None;
        if let Some(prediction) = fake {
            features.fake = prediction.features;
            fake_velocity = prediction.velocity;
        }
        if source(FeatureSource::Teacher) {
            let request = Request { velocity: false, taps: &rewards.teacher_taps };
            networks.passes.forward(Role::Teacher, x_s.size()[0]);
            features.teacher = networks.teacher.predict(&x_s, &sigma, &chunk.conditioning, request)?.features;
        }
        Ok(Self { x0, x_s, sigma, velocities: fake_velocity.zip(teacher), features: with_gan.then_some(features) })
    }

    /// Distribution-matching loss, a scalar.
    fn dmd(&self, meter: &mut Meter, shares: &Shares) -> Result<Option<Tensor>> {
        let Some((fake, teacher)) = &self.velocities else { return Ok(None) };
        let matching = dmd::loss(&self.x0, &self.x_s.detach(), &self.sigma, &fake.detach(), teacher)?;
        for (name, value) in matching.statistics() {
            meter.add(&format!("dmd/{name}"), &value, shares.pair);
        }
        Ok(Some(matching.loss.mean(Kind::Float)))
    }

    /// Counts the generator loss's way back through the networks whose features it reads.
    fn count_backward(&self, networks: &Networks) {
        let Some(features) = &self.features else { return };
        for (role, features) in [(Role::Fake, &features.fake), (Role::Teacher, &features.teacher)] {
            if !features.is_empty() {
                networks.passes.backward(role, self.x_s.size()[0]);
            }
        }
    }

    /// Sum of the learners' generator losses, a scalar.
    fn gan(&self, context: &StudentContext<'_>, rewards: &mut Rewards, chunk: &Chunk) -> Result<Option<Tensor>> {
        let Some(features) = &self.features else { return Ok(None) };
        let scored = Scored {
            prompts: chunk.prompts.iter().map(|&id| context.prompts[id].as_str()).collect(),
            sigma: &self.sigma,
            latents: &self.x_s,
            images: None,
            features,
        };
        let mut sum: Option<Tensor> = None;
        for index in 0..rewards.all.len() {
            if !rewards.all[index].learns {
                continue;
            }
            let batch = rewards.batch(&rewards.all[index], &scored)?;
            let reward = &mut rewards.all[index];
            let Some(loss) = reward.generator_loss(&batch)? else { continue };
            let loss = loss.mean(Kind::Float);
            sum = Some(match sum {
                None => loss,
                Some(sum) => sum + loss,
            });
        }
        Ok(sum)
    }
}

/// Sigma `[b]` and noise `[b, C, h, w]` at which the student's clean latents are judged.
fn draw(context: &StudentContext<'_>, chunk: &Chunk, step: usize) -> Result<(Tensor, Tensor)> {
    let [low, high] = context.config.objective.dmd.sigma_range;
    let key = |sample: usize| [context.update, sample as u64, step as u64];
    let samples = chunk.first..chunk.first + chunk.len();
    let uniform = |sample| context.random.rng(Stream::StudentSigma, key(sample)).random::<f64>();
    let sigmas: Vec<f64> = samples.clone().map(|sample| low + (high - low) * uniform(sample)).collect();
    let networks = context.networks;
    let noise =
        context.random.normal(Stream::StudentNoise, samples.map(key), &networks.spec.latent_shape, networks.device)?;
    Ok((column(&sigmas, networks.device)?, noise))
}
