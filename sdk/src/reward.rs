//! Rewards: a score per sample, for the final image or for each step of the trajectory.

use serde::{Deserialize, Serialize};

use crate::{BackboneSpec, Device, Error, Result, TensorView};

/// Which states of a trajectory a reward scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The state after each step; the reward of step k reads `x_{k+1}`, the result of its action.
    EveryStep,
    /// Only the final image.
    #[default]
    Final,
}

/// Which network's features a reward reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FeatureSource {
    /// The fake-score network (the paper, DMD2): its features follow the student.
    #[default]
    Fake,
    /// The frozen teacher (`FastGen`): features that never move.
    Teacher,
}

/// Features of a diffusion network that a reward wants to read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureNeeds {
    /// The network.
    pub source: FeatureSource,
    /// Indices of the transformer blocks whose image tokens are tapped, rising.
    pub taps: Vec<usize>,
}

/// What the host must make for a reward. Each thing is made once and shared by all rewards that need it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "a list of independent wishes")]
pub struct Needs {
    /// The states to score.
    pub scope: Scope,
    /// Decoded images, `[B, 3, H, W]` in 0..1.
    pub images: bool,
    /// Latents, `[B, C, h, w]`.
    pub latents: bool,
    /// Features of a diffusion network at the scored state.
    pub features: Option<FeatureNeeds>,
    /// Tensors must lie on the CPU as contiguous float32, because the plugin has no libtorch.
    pub on_cpu: bool,
    /// `Reward::score_differentiable` gives the very numbers of [`Reward::score`]. The host then scores with it,
    /// without gradients, and need not wait for the device.
    #[serde(default)]
    pub scores_on_device: bool,
    /// `Reward::score_differentiable` gives gradients to the images or latents, so that the reward can be a loss. Its
    /// numbers may differ a little from those of [`Reward::score`].
    #[serde(default)]
    pub differentiable: bool,
    /// [`Reward::score`] waits for something else than this machine's processors, such as a server. The host calls it on a
    /// thread of its own, one call at a time, with tensors on the CPU, and goes on training meanwhile. For rewards of the
    /// final state that read no features and have no learner.
    #[serde(default)]
    pub background: bool,
    /// A sample's score depends on the other samples of its batch, as a rank or a measure of variety does. The host then scores
    /// whole prompt groups: all `batch.group_size` samples of a prompt lie beside each other in one batch, and a batch may hold
    /// several groups. Other rewards score each sample alike in any company.
    #[serde(default)]
    pub groupwise: bool,
}

/// The samples to score. Fields that [`Needs`] did not ask for are `None` or empty.
#[derive(Debug, Default)]
pub struct RewardBatch<'a> {
    /// The prompt of each sample; its length is the batch size B.
    pub prompts: Vec<&'a str>,
    /// Noise level of each sample's state, `[B]`, float32: 0 for a finished image.
    pub sigma: Option<TensorView<'a>>,
    /// Images `[B, 3, H, W]` in 0..1.
    pub images: Option<TensorView<'a>>,
    /// Latents `[B, C, h, w]`.
    pub latents: Option<TensorView<'a>>,
    /// Tapped features, one `[B, C, h, w]` for each tap of [`FeatureNeeds`].
    pub features: Vec<TensorView<'a>>,
}

impl RewardBatch<'_> {
    /// Number of samples.
    pub fn len(&self) -> usize {
        self.prompts.len()
    }

    /// Whether there is nothing to score.
    pub fn is_empty(&self) -> bool {
        self.prompts.is_empty()
    }

    /// The images, for a reward whose [`Needs`] asked for them.
    ///
    /// # Errors
    /// A batch without images.
    pub fn images(&self) -> Result<&TensorView<'_>> {
        given(self.images.as_ref(), "images")
    }

    /// The latents, for a reward whose [`Needs`] asked for them.
    ///
    /// # Errors
    /// A batch without latents.
    pub fn latents(&self) -> Result<&TensorView<'_>> {
        given(self.latents.as_ref(), "latents")
    }
}

fn given<'b, T>(input: Option<&'b T>, name: &str) -> Result<&'b T> {
    input.ok_or_else(|| Error::invalid(format!("the batch holds no {name}; ask for them in `needs`")))
}

/// What a reward is told when it is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RewardInit {
    /// Device of the tensors it will be given.
    pub device: Device,
    /// Seed of its own initialisation.
    pub seed: u64,
    /// The backbone that is trained: latent shape, depth and width of its features; `None` where images alone are scored.
    pub backbone: Option<BackboneSpec>,
}

/// Scores samples. Called from one thread at a time.
pub trait Reward: Send {
    /// What the host must make for [`Reward::score`]. Asked once, after construction.
    fn needs(&self) -> Needs;

    /// One finite score per sample; higher is better. The host refuses a wrong length, NaN and infinities.
    ///
    /// # Errors
    /// Anything that keeps the reward from scoring: the host stops the run and names reward, step and sample.
    fn score(&mut self, batch: &RewardBatch<'_>) -> Result<Vec<f32>>;

    /// The same score as a tensor `[B]` with gradients to the batch's tensors; `None` where the reward has none.
    ///
    /// # Errors
    /// As [`Reward::score`].
    #[cfg(feature = "torch")]
    fn score_differentiable(&mut self, _batch: &RewardBatch<'_>) -> Result<Option<tch::Tensor>> {
        Ok(None)
    }

    /// The trainable part, for a reward that learns beside the student.
    #[cfg(feature = "torch")]
    fn learner(&mut self) -> Option<&mut dyn Learner> {
        None
    }
}

/// A reward's discriminator loss and what the host watches of it. All tensors stay on the device, so that
/// reading them is the host's choice of moment.
#[cfg(feature = "torch")]
#[derive(Debug)]
pub struct DiscriminatorLoss {
    /// Scalar loss with gradients to the learner's parameters.
    pub loss: tch::Tensor,
    /// Score in (0, 1) of each real sample, `[B]`, without gradient: above 0.5 means taken for real.
    pub real: tch::Tensor,
    /// The same for the fake samples, `[B]`.
    pub fake: tch::Tensor,
}

/// A reward that learns to tell real samples from the student's. The host owns the optimiser, the
/// gradient clipping and the checkpoint; the plugin gives parameters and losses.
#[cfg(feature = "torch")]
pub trait Learner {
    /// Trainable tensors under stable names; handles to the storage that the learner computes with.
    fn parameters(&self) -> Vec<(String, tch::Tensor)>;

    /// Loss that teaches the learner to score `real` above `fake`. Features come detached: the
    /// discriminator's loss never reaches the diffusion network.
    ///
    /// # Errors
    /// Batches without the needed inputs, or libtorch's error.
    fn discriminator_loss(&mut self, real: &RewardBatch<'_>, fake: &RewardBatch<'_>) -> Result<DiscriminatorLoss>;

    /// Loss `[B]` that falls as the samples look more real, with gradients to the batch's tensors.
    ///
    /// # Errors
    /// As [`Learner::discriminator_loss`].
    fn generator_loss(&mut self, fake: &RewardBatch<'_>) -> Result<tch::Tensor>;
}
