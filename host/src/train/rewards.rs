//! The rewards of a run: what they need, and what they are given.

use advdmd_sdk::{FeatureSource, Kind, Learner, Needs, Request, Reward, RewardBatch, RewardInit, Scope, TensorView};
use tch::Tensor;

use super::background::{self, Background, Job};
use super::networks::Networks;
use super::rollout::Chunk;
use super::scoring::not_finite;
use crate::config::{Batch, Component, Containment, HeldOutSection, OnRewardError, RewardSection, RunConfig};
use crate::containment::{self, floating};
use crate::device;
use crate::passes::Role;
use crate::random::{Random, Stream};
use crate::registry::Registry;
use crate::sampling::sigma_column;
use crate::{Error, Result, interrupt};

/// A reward of the run.
pub struct ActiveReward {
    /// Label in logs and checkpoints.
    pub name: String,
    /// What it needs.
    pub needs: Needs,
    /// Whether it learns beside the student.
    pub learns: bool,
    /// Who provides it: the plugin's file, or the program.
    pub provider: String,
    /// What is done when it fails to score samples.
    pub on_error: OnRewardError,
    /// The plugin's object.
    scorer: Scorer,
}

/// Where a reward scores.
enum Scorer {
    Here(Box<dyn Reward>),
    Background(Background),
}

/// How much a reward counts in the advantage.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    /// Weight in the sum.
    pub weight: f64,
    /// Factor of the weight for each step between a step and the last.
    pub discount: f64,
    /// Least standard deviation.
    pub std_floor: f64,
}

/// All rewards, and the union of what they need.
pub struct Rewards {
    /// In the order of the configuration.
    pub all: Vec<ActiveReward>,
    /// How much each counts.
    pub shares: Vec<Share>,
    /// Those whose gradients reach the student, by index; none where that objective is off.
    pub backprop: Vec<usize>,
    /// Blocks that any reward taps in the fake-score network, rising.
    pub fake_taps: Vec<usize>,
    /// Blocks that any reward taps in the teacher, rising.
    pub teacher_taps: Vec<usize>,
}

/// The rewards that score evaluations alone.
///
/// # Errors
/// The registry's; a reward that learns or reads more than images.
pub fn held_out(
    config: &RunConfig,
    registry: &Registry,
    networks: &Networks,
    random: Random,
) -> Result<Vec<ActiveReward>> {
    let make = |(index, section): (usize, &HeldOutSection)| {
        let init = RewardInit {
            device: device::sdk(networks.device),
            seed: random.seed(Stream::Init, 200 + index as u64),
            backbone: Some(networks.spec.clone()),
        };
        let HeldOutSection { name, containment, component } = section;
        let reward =
            ActiveReward::new(name.as_deref(), component, (containment, OnRewardError::Stop), registry, &init)?;
        if reward.scores_images() {
            return Ok(reward);
        }
        Err(Error::usage(
            format!(
                "`held_out.{index}`: reward `{}` learns, compares the samples of a prompt, or reads more than prompts and images, \
                 which is all that a held-out reward is given",
                reward.name
            ),
            "take a reward of images, such as clipscore or remote".to_owned(),
        ))
    };
    config.held_out.iter().enumerate().map(make).collect()
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
            let init = RewardInit {
                device: device::sdk(networks.device),
                seed: random.seed(Stream::Init, 100 + index as u64),
                backbone: Some(networks.spec.clone()),
            };
            let faults = (&section.containment, section.on_error);
            all.push(ActiveReward::new(section.name.as_deref(), &section.component, faults, registry, &init)?);
        }
        let share = |section: &RewardSection| Share {
            weight: section.weight,
            discount: section.discount.unwrap_or(1.0),
            std_floor: section.std_floor.unwrap_or(config.objective.grpo.std_floor),
        };
        let shares = config.reward.iter().map(share).collect();
        for (index, (section, reward)) in config.reward.iter().zip(&all).enumerate() {
            if section.discount.is_some() && reward.needs.scope == Scope::EveryStep {
                return Err(Error::usage(
                    format!("`reward.{index}.discount`: reward `{}` scores every step on its own", reward.name),
                    "leave the key out: it spreads the score of a final image over the steps".to_owned(),
                ));
            }
        }
        whole_groups(&all, &config.batch)?;
        let taps = |source| {
            let needs = all.iter().filter_map(|reward| reward.needs.features.as_ref());
            let mut taps: Vec<_> = needs.filter(|f| f.source == source).flat_map(|f| f.taps.clone()).collect();
            taps.sort_unstable();
            taps.dedup();
            taps
        };
        Ok(Self {
            fake_taps: taps(FeatureSource::Fake),
            teacher_taps: taps(FeatureSource::Teacher),
            backprop: backprop(config, &all)?,
            all,
            shares,
        })
    }

    /// Whether any reward learns.
    pub fn learns(&self) -> bool {
        self.all.iter().any(|reward| reward.learns)
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
}

impl ActiveReward {
    /// Makes a reward called `name`, or as its type if `None`; `faults` says what keeps them from the run and what follows them.
    ///
    /// # Errors
    /// The registry's; taps beyond the backbone's depth; needs that contradict each other.
    pub fn new(
        name: Option<&str>,
        component: &Component,
        faults: (&Containment, OnRewardError),
        registry: &Registry,
        init: &RewardInit,
    ) -> Result<Self> {
        let name = name.unwrap_or(&component.r#type).to_owned();
        let (containment, on_error) = faults;
        let mut reward = containment::reward(&name, component, containment, on_error, registry, init)?;
        let needs = reward.needs();
        let depth = init.backbone.as_ref().map_or(0, |backbone| backbone.depth);
        if let Some(features) = &needs.features
            && (features.taps.iter().any(|&tap| tap >= depth) || !features.taps.is_sorted_by(|a, b| a < b))
        {
            let taps = &features.taps;
            return Err(Error::config(format!(
                "reward `{name}` taps blocks {taps:?} of {depth}: expected rising indices below {depth}"
            )));
        }
        let provider = registry.entry(Kind::Reward, &component.r#type)?.provider.to_string();
        let learns = reward.learner().is_some();
        if needs.background && (learns || needs.features.is_some() || needs.scope != Scope::Final) {
            return Err(Error::contract(format!(
                "reward `{name}` ({provider}) asks to score in the background, and learns, reads features or scores every step: \
                 it cannot have both"
            )));
        }
        let scorer =
            if needs.background { Scorer::Background(Background::new(&name, reward)?) } else { Scorer::Here(reward) };
        Ok(Self { name, needs, learns, provider, on_error, scorer })
    }

    /// The trainable part, for a reward that learns.
    pub fn learner(&mut self) -> Option<&mut dyn Learner> {
        match &mut self.scorer {
            Scorer::Here(reward) if self.learns => reward.learner(),
            _ => None,
        }
    }

    /// Its trained tensors under their names; none where it does not learn.
    pub fn parameters(&mut self) -> Vec<(String, Tensor)> {
        self.learner().map_or_else(Vec::new, |learner| learner.parameters())
    }

    /// Whether images and prompts are all that it reads, and its opinion stays the same.
    pub fn scores_images(&self) -> bool {
        let needs = &self.needs;
        needs.scope == Scope::Final && !self.learns && needs.features.is_none() && !needs.latents && !needs.groupwise
    }

    /// Whether its gradients reach the final image or its latents.
    pub fn is_differentiable(&self) -> bool {
        // What goes through the decoder at once is cut by memory, not by groups.
        let plain =
            self.needs.scope == Scope::Final && self.needs.features.is_none() && !self.learns && !self.needs.groupwise;
        plain && self.needs.differentiable && matches!(self.scorer, Scorer::Here(_))
    }

    /// The thread of a reward that scores in the background.
    pub fn background(&self) -> Option<&Background> {
        match &self.scorer {
            Scorer::Here(_) => None,
            Scorer::Background(background) => Some(background),
        }
    }

    /// Scores of finished images `[B, 3, H, W]`, which lie on the CPU: `size` at a time on `device`, or all at once in the
    /// background. Waits for them.
    ///
    /// # Errors
    /// The reward's, a wrong number of scores, one that is not finite: names the reward. [`Error::Stopped`].
    pub fn score_images(
        &mut self,
        prompts: &[&str],
        images: &Tensor,
        size: usize,
        device: tch::Device,
    ) -> Result<Vec<f32>> {
        let _no_grad = tch::no_grad_guard();
        let named = |source: advdmd_sdk::Error, reward: &Self| {
            if interrupt::is_raised() {
                return Error::Stopped;
            }
            source.context(format!("reward `{}` ({})", reward.name, reward.provider)).into()
        };
        if let Some(background) = self.background() {
            let awaited = background.score(Job {
                prompts: prompts.iter().map(|&prompt| prompt.to_owned()).collect(),
                images: Some(images.f_contiguous()?).filter(|_| self.needs.images),
                latents: None,
            });
            let scores = background::wait(&awaited)?.and_then(|scores| checked(&scores, 0, prompts));
            return scores.map_err(|source| named(source, self));
        }
        let mut all = Vec::with_capacity(prompts.len());
        for (index, prompts) in prompts.chunks(size).enumerate() {
            let first = index * size;
            let device = if self.needs.on_cpu { tch::Device::Cpu } else { device };
            let images = images.f_narrow(0, first as i64, prompts.len() as i64)?.f_to_device(device)?.f_contiguous()?;
            let batch = RewardBatch {
                prompts: prompts.to_vec(),
                sigma: Some(TensorView::from_torch(&sigma_column(0.0, &images))?),
                images: Some(TensorView::from_torch(&images)?).filter(|_| self.needs.images),
                latents: None,
                features: Vec::new(),
            };
            let scores = self.scores(&batch, first, device);
            let scores = scores.and_then(|scores| Ok(Vec::try_from(scores.f_to_device(tch::Device::Cpu)?)?));
            let scores: advdmd_sdk::Result<Vec<f32>> =
                scores.and_then(|scores: Vec<f32>| checked(&scores, first, prompts));
            all.extend(scores.map_err(|source| named(source, self))?);
        }
        Ok(all)
    }

    /// Scores `[b]` of samples `first..`, float32 on `device`, their number checked. Scores that are on the device stay
    /// unread: reading would wait for it.
    ///
    /// # Errors
    /// The reward's; a wrong number of scores; one that is not finite, where it is known.
    pub fn scores(&mut self, batch: &RewardBatch<'_>, first: usize, device: tch::Device) -> advdmd_sdk::Result<Tensor> {
        let invalid = |message: String| advdmd_sdk::Error::invalid(message);
        let Scorer::Here(reward) = &mut self.scorer else { return Err(invalid("scores in the background".to_owned())) };
        if !self.needs.scores_on_device {
            let scores = reward.score(batch)?;
            let scores = checked(&scores, first, &batch.prompts)?;
            return Ok(Tensor::f_from_slice(&scores)?.f_to_device(device)?);
        }
        let scores = reward.score_differentiable(batch)?;
        let scores =
            scores.ok_or_else(|| invalid("says that it scores on the device, and gave no tensor".to_owned()))?.detach();
        if scores.size() != [batch.len() as i64] {
            let found = if scores.dim() == 1 { scores.size()[0].to_string() } else { format!("{:?}", scores.size()) };
            return Err(invalid(format!("gave {found} scores for {} samples", batch.len())));
        }
        floating("scores", &scores)?;
        let scores = scores.f_to_device(device)?.f_to_kind(tch::Kind::Float)?;
        if self.on_error == OnRewardError::SkipGroup {
            // Which groups are left has to be known at once, and is worth waiting for the device.
            checked(&Vec::<f32>::try_from(scores.f_to_device(tch::Device::Cpu)?)?, first, &batch.prompts)?;
        }
        Ok(scores)
    }

    /// The scores of samples `first..`, with gradients to the batch's tensors.
    ///
    /// # Errors
    /// The reward's; a reward without gradients; a wrong shape.
    pub fn differentiable_scores(&mut self, batch: &RewardBatch<'_>) -> advdmd_sdk::Result<Tensor> {
        let scores = match &mut self.scorer {
            Scorer::Here(reward) => reward.score_differentiable(batch)?,
            Scorer::Background(_) => None,
        };
        match scores {
            Some(scores) if scores.size() == [batch.len() as i64] && scores.requires_grad() => Ok(scores),
            Some(scores) if scores.size() == [batch.len() as i64] => {
                Err(advdmd_sdk::Error::unsupported("says that it is differentiable, and gave scores without gradients"))
            }
            Some(scores) => Err(advdmd_sdk::Error::shape("scores", format!("[{}]", batch.len()), &scores.size())),
            None => Err(advdmd_sdk::Error::unsupported("says that it is differentiable, and gave no tensor")),
        }
    }

    /// The error of this reward at a step; [`Error::Stopped`] where the user asked the run to stop meanwhile, since a reward that
    /// is waited for gives up then.
    pub fn error(&self, step: usize, source: advdmd_sdk::Error) -> Error {
        if interrupt::is_raised() {
            return Error::Stopped;
        }
        Error::Reward { reward: self.name.clone(), provider: self.provider.clone(), step, source }
    }
}

/// Refuses scores of a wrong number, and those that are not finite.
///
/// # Errors
/// Which it is.
pub fn checked(scores: &[f32], first: usize, prompts: &[&str]) -> advdmd_sdk::Result<Vec<f32>> {
    if scores.len() != prompts.len() {
        let (found, expected) = (scores.len(), prompts.len());
        return Err(advdmd_sdk::Error::invalid(format!("gave {found} scores for {expected} samples")));
    }
    match scores.iter().position(|score| !score.is_finite()) {
        Some(at) => Err(not_finite(first + at, prompts[at], scores[at])),
        None => Ok(scores.to_vec()),
    }
}

/// Refuses chunks that cut the groups of a reward that compares their samples. In the background it is given all samples at
/// once.
fn whole_groups(all: &[ActiveReward], batch: &Batch) -> Result<()> {
    let Batch { groups, group_size, micro_batch } = *batch;
    let cut = !micro_batch.is_multiple_of(group_size) && micro_batch < groups * group_size;
    let groupwise = all.iter().find(|reward| reward.needs.groupwise && !reward.needs.background);
    match groupwise.filter(|_| cut) {
        None => Ok(()),
        Some(reward) => Err(Error::usage(
            format!(
                "`batch.micro_batch`: reward `{}` compares the samples of a prompt and scores whole groups: expected a multiple \
                 of batch.group_size = {group_size}, found {micro_batch}",
                reward.name
            ),
            format!("set batch.micro_batch = {}", micro_batch.next_multiple_of(group_size)),
        )),
    }
}

/// The rewards of `objective.reward_backprop`.
fn backprop(config: &RunConfig, all: &[ActiveReward]) -> Result<Vec<usize>> {
    let settings = &config.objective.reward_backprop;
    if settings.weight == 0.0 {
        return Ok(Vec::new());
    }
    let named = |reward: &ActiveReward| settings.rewards.as_ref().is_none_or(|names| names.contains(&reward.name));
    let chosen: Vec<usize> = (0..all.len()).filter(|&index| named(&all[index])).collect();
    let unfit = |index: &&usize| !all[**index].is_differentiable();
    let hint =
        "take a reward that says `differentiable`, such as clipscore, or set objective.reward_backprop.weight = 0";
    if settings.rewards.is_some()
        && let Some(&index) = chosen.iter().find(unfit)
    {
        let name = &all[index].name;
        let message =
            format!("`objective.reward_backprop.rewards`: reward `{name}` gives no gradients to the final image");
        return Err(Error::usage(message, hint.to_owned()));
    }
    let fit: Vec<usize> = chosen
        .into_iter()
        .filter(|&index| config.reward[index].weight > 0.0)
        .filter(|&index| all[index].is_differentiable())
        .collect();
    if let Some(&index) = fit.iter().find(|&&index| config.reward[index].on_error == OnRewardError::SkipGroup) {
        let message = format!(
            "`reward.{index}.on_error` is \"skip_group\", and reward `{}` is a loss as well (`objective.reward_backprop`), which \
             leaves no group out",
            all[index].name
        );
        let hint = "set on_error = \"stop\", or name other rewards in objective.reward_backprop.rewards".to_owned();
        return Err(Error::usage(message, hint));
    }
    if fit.is_empty() {
        let message = "`objective.reward_backprop.weight` is above 0, and no reward of a weight above 0 gives gradients to the \
                       final image";
        return Err(Error::usage(message, hint.to_owned()));
    }
    Ok(fit)
}
