//! The rewards of a run: what they need, their scores, and their learners.

use advdmd_sdk::{FeatureSource, Kind, Needs, Request, Reward, RewardBatch, RewardInit, Scope, TensorView};
use tch::Tensor;

use super::networks::Networks;
use super::rollout::{Chunk, Rollout};
use crate::config::RunConfig;
use crate::device;
use crate::passes::Role;
use crate::random::{Random, Stream};
use crate::registry::Registry;
use crate::sampling::{Trajectory, sigma_column};
use crate::{Error, Result};

/// A reward of the run.
pub struct ActiveReward {
    /// Label in logs and checkpoints.
    pub name: String,
    /// Weight in the advantage.
    pub weight: f64,
    /// What it needs.
    pub needs: Needs,
    /// Who provides it: the plugin's file, or the program.
    pub provider: String,
    /// The plugin's object.
    pub reward: Box<dyn Reward>,
}

/// All rewards, and the union of what they need.
pub struct Rewards {
    /// In the order of the configuration.
    pub all: Vec<ActiveReward>,
    /// Blocks that any reward taps in the fake-score network, rising.
    pub fake_taps: Vec<usize>,
    /// Blocks that any reward taps in the teacher, rising.
    pub teacher_taps: Vec<usize>,
}

/// Features of both networks at one state, for the taps of [`Rewards`].
#[derive(Debug, Default)]
pub struct Features {
    /// Of the fake-score network.
    pub fake: Vec<Tensor>,
    /// Of the teacher.
    pub teacher: Vec<Tensor>,
}

impl Features {
    /// The same features cut off from the graph.
    #[must_use]
    pub fn detach(&self) -> Self {
        let all = |features: &[Tensor]| features.iter().map(Tensor::detach).collect();
        Self { fake: all(&self.fake), teacher: all(&self.teacher) }
    }
}

/// One batch of states, and what was made of them for the rewards.
#[derive(Debug)]
pub struct Scored<'a> {
    /// Prompt of each sample.
    pub prompts: Vec<&'a str>,
    /// Noise levels `[b]`.
    pub sigma: &'a Tensor,
    /// Latents `[b, C, h, w]`.
    pub latents: &'a Tensor,
    /// Images `[b, 3, H, W]`, if any reward needs them here.
    pub images: Option<&'a Tensor>,
    /// Tapped features.
    pub features: &'a Features,
}

impl Rewards {
    /// Makes the rewards of a configuration.
    ///
    /// # Errors
    /// The registry's, and taps beyond the backbone's depth.
    pub fn new(config: &RunConfig, registry: &Registry, networks: &Networks, random: Random) -> Result<Self> {
        let mut all = Vec::new();
        for (index, section) in config.reward.iter().enumerate() {
            let name = section.name.clone().unwrap_or_else(|| section.component.r#type.clone());
            let init = RewardInit {
                device: device::sdk(networks.device),
                seed: random.seed(Stream::Init, 100 + index as u64),
                backbone: Some(networks.spec.clone()),
            };
            let reward = registry.reward(&section.component, &init)?;
            let needs = reward.needs();
            let depth = networks.spec.depth;
            if let Some(features) = &needs.features
                && (features.taps.iter().any(|&tap| tap >= depth) || !features.taps.is_sorted_by(|a, b| a < b))
            {
                let taps = &features.taps;
                return Err(Error::config(format!(
                    "reward `{name}` taps blocks {taps:?} of {depth}: expected rising indices below {depth}"
                )));
            }
            let provider = registry.entry(Kind::Reward, &section.component.r#type)?.provider.to_string();
            all.push(ActiveReward { name, weight: section.weight, needs, provider, reward });
        }
        let taps = |source| {
            let needs = all.iter().filter_map(|reward| reward.needs.features.as_ref());
            let mut taps: Vec<_> = needs.filter(|f| f.source == source).flat_map(|f| f.taps.clone()).collect();
            taps.sort_unstable();
            taps.dedup();
            taps
        };
        Ok(Self { fake_taps: taps(FeatureSource::Fake), teacher_taps: taps(FeatureSource::Teacher), all })
    }

    /// Whether any reward learns.
    pub fn learns(&mut self) -> bool {
        self.all.iter_mut().any(|reward| reward.reward.learner().is_some())
    }

    /// Features at `x` for all rewards; each network stops at its deepest tap.
    ///
    /// # Errors
    /// The backbone's.
    pub fn features(&self, networks: &Networks, x: &Tensor, sigma: &Tensor, chunk: &Chunk) -> Result<Features> {
        let tap = |role, denoiser: &dyn advdmd_sdk::Denoiser, taps: &[usize]| -> Result<Vec<Tensor>> {
            if taps.is_empty() {
                return Ok(Vec::new());
            }
            networks.passes.forward(role, x.size()[0]);
            Ok(denoiser.predict(x, sigma, &chunk.conditioning, Request { velocity: false, taps })?.features)
        };
        Ok(Features {
            fake: tap(Role::Fake, networks.fake.as_ref(), &self.fake_taps)?,
            teacher: tap(Role::Teacher, networks.teacher.as_ref(), &self.teacher_taps)?,
        })
    }

    /// The batch that `reward` reads, holding only what it asked for.
    ///
    /// # Errors
    /// A tensor type that does not cross the plugin edge.
    pub fn batch<'a>(&self, reward: &ActiveReward, state: &Scored<'a>) -> Result<RewardBatch<'a>> {
        let view = |tensor: &Tensor| {
            let tensor = if reward.needs.on_cpu {
                tensor.to_device(tch::Device::Cpu).contiguous()
            } else {
                tensor.shallow_clone()
            };
            TensorView::from_torch(&tensor)
        };
        let features = match &reward.needs.features {
            None => Vec::new(),
            Some(needs) => {
                let (taps, features) = match needs.source {
                    FeatureSource::Fake => (&self.fake_taps, &state.features.fake),
                    FeatureSource::Teacher => (&self.teacher_taps, &state.features.teacher),
                };
                let wanted = taps.iter().zip(features).filter(|(tap, _)| needs.taps.contains(tap));
                wanted.map(|(_, feature)| view(feature)).collect::<Result<_, _>>()?
            }
        };
        Ok(RewardBatch {
            prompts: state.prompts.clone(),
            sigma: Some(view(state.sigma)?),
            images: state.images.filter(|_| reward.needs.images).map(view).transpose()?,
            latents: Some(state.latents).filter(|_| reward.needs.latents).map(view).transpose()?,
            features,
        })
    }

    /// Scores a rollout: for each reward `[B, S]`, S the stochastic steps of the trajectory.
    ///
    /// The score of step k reads `x_{k+1}`, the result of its action (`x_k` would not depend on it). A reward of the
    /// final image scores every step alike.
    ///
    /// # Errors
    /// A reward that fails, or gives a wrong number of scores: names reward and step. Whether they are finite is not read
    /// here.
    pub fn score(
        &mut self,
        networks: &Networks,
        trajectory: &Trajectory,
        rollout: &Rollout,
        prompts: &[String],
    ) -> Result<Vec<Tensor>> {
        let _no_grad = tch::no_grad_guard();
        let actions: Vec<usize> = trajectory.stochastic().collect();
        let mut scores: Vec<Vec<Tensor>> = self.all.iter().map(|_| Vec::new()).collect();
        for chunk in &rollout.chunks {
            let mut columns: Vec<Vec<Tensor>> = self.all.iter().map(|_| Vec::new()).collect();
            if self.all.iter().any(|reward| reward.needs.scope == Scope::EveryStep) {
                for &step in &actions {
                    self.score_state(networks, trajectory, chunk, step + 1, Scope::EveryStep, prompts, &mut columns)?;
                }
            }
            if self.all.iter().any(|reward| reward.needs.scope == Scope::Final) {
                let last = trajectory.steps();
                self.score_state(networks, trajectory, chunk, last, Scope::Final, prompts, &mut columns)?;
            }
            for (all, mut column) in scores.iter_mut().zip(columns) {
                if column.len() == 1 {
                    column = (0..actions.len()).map(|_| column[0].shallow_clone()).collect();
                }
                all.push(Tensor::stack(&column, 1));
            }
        }
        Ok(scores.iter().map(|chunks| Tensor::cat(chunks, 0)).collect())
    }

    #[expect(clippy::too_many_arguments, reason = "one call site; a struct for it would only rename the arguments")]
    fn score_state(
        &mut self,
        networks: &Networks,
        trajectory: &Trajectory,
        chunk: &Chunk,
        state: usize,
        scope: Scope,
        prompts: &[String],
        columns: &mut [Vec<Tensor>],
    ) -> Result<()> {
        let x = &chunk.states[state];
        let sigma = sigma_column(trajectory.sigmas[state], x);
        let here = |reward: &ActiveReward| reward.needs.scope == scope;
        let wants = |need: fn(&Needs) -> bool| self.all.iter().any(|reward| here(reward) && need(&reward.needs));
        let features = if wants(|needs| needs.features.is_some()) {
            self.features(networks, x, &sigma, chunk)?
        } else {
            Features::default()
        };
        let images = if wants(|needs| needs.images) { Some(networks.backbone.decode_latents(x)?) } else { None };
        let scored = Scored {
            prompts: chunk.prompts.iter().map(|&id| prompts[id].as_str()).collect(),
            sigma: &sigma,
            latents: x,
            images: images.as_ref(),
            features: &features,
        };
        for (index, column) in columns.iter_mut().enumerate() {
            if !here(&self.all[index]) {
                continue;
            }
            let batch = self.batch(&self.all[index], &scored)?;
            let reward = &mut self.all[index];
            let scores = reward.scores(&batch, networks.device);
            column.push(scores.map_err(|source| reward.error(state - 1, source))?);
        }
        Ok(())
    }
}

impl ActiveReward {
    /// The error of this reward at a step.
    fn error(&self, step: usize, source: advdmd_sdk::Error) -> Error {
        Error::Reward { reward: self.name.clone(), provider: self.provider.clone(), step, source }
    }

    /// Scores `[b]`, float32 on `device`, their number checked. Values stay unread: reading would wait for the device.
    fn scores(&mut self, batch: &RewardBatch<'_>, device: tch::Device) -> advdmd_sdk::Result<Tensor> {
        let invalid = |message: String| advdmd_sdk::Error::invalid(message);
        let scores = if self.needs.scores_on_device {
            let scores = self.reward.score_differentiable(batch)?;
            scores.ok_or_else(|| invalid("says that it scores on the device, and gave no tensor".to_owned()))?.detach()
        } else {
            Tensor::from_slice(&self.reward.score(batch)?)
        };
        if scores.size() != [batch.len() as i64] {
            let found = if scores.dim() == 1 { scores.size()[0].to_string() } else { format!("{:?}", scores.size()) };
            return Err(invalid(format!("gave {found} scores for {} samples", batch.len())));
        }
        Ok(scores.to_device(device).to_kind(tch::Kind::Float))
    }
}

/// Refuses a score that is not finite: names reward, step and sample. `scores` as [`Rewards::score`] gives them. Waits
/// for the device.
///
/// # Errors
/// The first score that is not finite.
pub fn check_finite(
    rewards: &Rewards,
    scores: &[Tensor],
    trajectory: &Trajectory,
    rollout: &Rollout,
    prompts: &[String],
) -> Result<()> {
    let actions: Vec<usize> = trajectory.stochastic().collect();
    for (reward, scores) in rewards.all.iter().zip(scores) {
        let values: Vec<f32> = Vec::try_from(scores.reshape(-1))?;
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let sample = at / actions.len();
            let step = match reward.needs.scope {
                Scope::EveryStep => actions[at % actions.len()],
                Scope::Final => trajectory.steps() - 1,
            };
            let mut ids = rollout.chunks.iter().flat_map(|chunk| &chunk.prompts);
            let prompt = ids.nth(sample).and_then(|&id| prompts.get(id)).map_or("", String::as_str);
            let message = format!("scored sample {sample} (\"{prompt}\") with {}", values[at]);
            return Err(reward.error(step, advdmd_sdk::Error::invalid(message)));
        }
    }
    Ok(())
}

/// A failed call of a reward's learner.
pub fn learner_error(name: &str, source: advdmd_sdk::Error) -> Error {
    source.context(format!("learner of reward `{name}`")).into()
}
