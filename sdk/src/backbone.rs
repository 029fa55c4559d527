//! Backbones: the diffusion model behind teacher, student and fake-score network.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{DType, Device};

/// What the host and the rewards know of a backbone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackboneSpec {
    /// Shape `[C, h, w]` of one latent.
    pub latent_shape: [i64; 3],
    /// Shape `[3, H, W]` of one decoded image.
    pub image_shape: [i64; 3],
    /// Number of transformer blocks, i.e. of places to tap.
    pub depth: usize,
    /// Channels C of a tapped feature map `[B, C, h, w]`.
    pub feature_channels: i64,
    /// Height and width of a tapped feature map.
    pub feature_grid: [i64; 2],
    /// The prompt of the unconditional branch of guidance.
    pub null_prompt: String,
}

/// What a backbone is told when it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackboneInit {
    /// Device of weights and results.
    pub device: Device,
    /// Compute type of the network; results come as float32 all the same.
    pub dtype: DType,
    /// Seed of anything that is initialised rather than loaded (LoRA, training from scratch).
    pub seed: u64,
}

/// How a denoiser relates to the backbone's one frozen base.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case", tag = "type", deny_unknown_fields)]
pub enum Tuning {
    /// The base itself, without gradients: the teacher.
    Frozen,
    /// Low-rank updates on the base, which stays shared and frozen.
    Lora {
        /// Rank of the update.
        rank: i64,
        /// Scale: the update is `B A alpha / rank`.
        alpha: f64,
        /// Names of the linear layers to adapt, as suffixes of module paths; empty for the backbone's default.
        #[serde(default)]
        targets: Vec<String>,
    },
    /// A trainable copy of every weight.
    Full,
}

/// How [`Backbone::save`] writes a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SaveOptions {
    /// Type of the stored numbers.
    pub dtype: DType,
    /// The tuning that the parameters belong to: those of a `LoRA` are merged into the base's weights.
    pub tuning: Tuning,
    /// The K + 1 sigmas of a few-step student, the last one 0, for formats that store how to sample; `None` keeps the
    /// base's own.
    pub sigmas: Option<Vec<f64>>,
    /// Whether to write it even where rounding to `dtype` takes most of what was learned.
    #[serde(default)]
    pub lossy: bool,
}

/// A linear layer under the name that the architecture's original release gave it, where tools other than diffusers
/// use those names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginalModule {
    /// Path of the layer as [`Denoiser::parameters`] names it, without `.weight`.
    pub module: String,
    /// Its path in the original release.
    pub original: String,
    /// Which of `parts` blocks of output rows of the original layer it is, from 0.
    pub part: usize,
    /// How many layers the original one fuses, stacked along the outputs; 1 for none.
    pub parts: usize,
}

/// The files that a backbone reads, by what depends on them: what [`Backbone::sources`] says.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sources {
    /// Files of the network.
    pub network: Vec<PathBuf>,
    /// What embedded prompts depend on.
    pub text: EncoderSource,
    /// What latents of images depend on, beside the shapes of the [`BackboneSpec`].
    pub images: EncoderSource,
}

/// What an encoder's results depend on. Where its files lie is not among it: their names, order and content are.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EncoderSource {
    /// Files that are read, in an order that says what each is for.
    pub files: Vec<PathBuf>,
    /// What else changes the numbers, such as the number of tokens.
    pub settings: serde_json::Value,
}

/// Embedded prompts, one row per prompt, in whatever floating type the encoders compute.
#[cfg(feature = "torch")]
#[derive(Debug)]
pub struct Conditioning {
    /// Token embeddings `[B, L, D]`.
    pub context: tch::Tensor,
    /// Pooled embedding `[B, P]`, where the architecture has one.
    pub pooled: Option<tch::Tensor>,
    /// Boolean mask `[B, L]` of the tokens that count, where the architecture reads one.
    pub mask: Option<tch::Tensor>,
}

#[cfg(feature = "torch")]
impl Conditioning {
    /// The rows at `index` (`[N]`, int64), in that order.
    #[must_use]
    pub fn select(&self, index: &tch::Tensor) -> Self {
        self.map(|tensor| tensor.index_select(0, index))
    }

    /// `self` above `other`, row-wise.
    #[must_use]
    pub fn concat(&self, other: &Self) -> Self {
        let pair = |a: &tch::Tensor, b: &tch::Tensor| tch::Tensor::cat(&[a, b], 0);
        let option =
            |a: &Option<tch::Tensor>, b: &Option<tch::Tensor>| a.as_ref().zip(b.as_ref()).map(|(a, b)| pair(a, b));
        Self {
            context: pair(&self.context, &other.context),
            pooled: option(&self.pooled, &other.pooled),
            mask: option(&self.mask, &other.mask),
        }
    }

    /// `f` applied to each tensor.
    #[must_use]
    pub fn map(&self, f: impl Fn(&tch::Tensor) -> tch::Tensor) -> Self {
        Self { context: f(&self.context), pooled: self.pooled.as_ref().map(&f), mask: self.mask.as_ref().map(&f) }
    }
}

/// What a forward pass is to return; features alone let the network stop at the deepest tap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// Whether the velocity is wanted.
    pub velocity: bool,
    /// Blocks to tap, rising.
    pub taps: &'a [usize],
}

impl Request<'_> {
    /// The velocity and nothing else.
    pub const VELOCITY: Self = Self { velocity: true, taps: &[] };
}

/// What a forward pass returned.
#[cfg(feature = "torch")]
#[derive(Debug, Default)]
pub struct Prediction {
    /// Velocity `noise - x0`, `[B, C, h, w]`, float32; `Some` exactly when it was asked for.
    pub velocity: Option<tch::Tensor>,
    /// Image tokens after each tapped block, `[B, C, h, w]`.
    pub features: Vec<tch::Tensor>,
}

/// A diffusion model: text and image encoders and a factory of denoisers over one frozen base.
#[cfg(feature = "torch")]
pub trait Backbone: Send {
    /// Shapes and depth.
    fn spec(&self) -> BackboneSpec;

    /// Embeds prompts; the empty unconditional prompt is [`BackboneSpec::null_prompt`].
    ///
    /// # Errors
    /// A prompt that the tokenizer refuses; the message quotes it.
    fn encode_text(&self, prompts: &[&str]) -> crate::Result<Conditioning>;

    /// Latents `[B, C, h, w]` of images `[B, 3, H, W]` in 0..1 (the posterior's mean, scaled).
    ///
    /// # Errors
    /// A wrong shape, or libtorch's error.
    fn encode_images(&self, images: &tch::Tensor) -> crate::Result<tch::Tensor>;

    /// Images `[B, 3, H, W]` in 0..1 of latents `[B, C, h, w]`; differentiable, and clamped.
    ///
    /// # Errors
    /// A wrong shape, or libtorch's error.
    fn decode_latents(&self, latents: &tch::Tensor) -> crate::Result<tch::Tensor>;

    /// Writes a model folder that this backbone's own configuration loads again: the base with `parameters` (those of
    /// a denoiser, or averages of them) in the place of its own, or merged into it.
    ///
    /// # Errors
    /// Parameters that the model lacks, or a disk error; names the tensor or file.
    fn save(
        &self,
        folder: &std::path::Path,
        parameters: &[(String, tch::Tensor)],
        options: &SaveOptions,
    ) -> crate::Result<()>;

    /// The linear layers of the network under their original names; none where there are no others.
    fn original_modules(&self) -> Vec<OriginalModule> {
        Vec::new()
    }

    /// The files that this backbone reads, and what its encoders' results depend on; no weights are read for it. `None`:
    /// all files below the paths that the configuration names, and all options.
    ///
    /// # Errors
    /// Files that are not there or contradict each other; names them.
    fn sources(&self) -> crate::Result<Option<Sources>> {
        Ok(None)
    }

    /// Frees what only [`Backbone::encode_text`] and [`Backbone::encode_images`] need, once their results are kept
    /// elsewhere. A later call of either loads it again.
    ///
    /// # Errors
    /// A device error.
    fn release_encoders(&self) -> crate::Result<()> {
        Ok(())
    }

    /// A denoiser on the shared base; `seed` draws the LoRA's initialisation. Frozen denoisers and LoRA
    /// ones hold the base's own storage.
    ///
    /// # Errors
    /// LoRA targets that match no layer.
    fn denoiser(&self, tuning: &Tuning, seed: u64) -> crate::Result<Box<dyn Denoiser>>;
}

/// A velocity network.
#[cfg(feature = "torch")]
pub trait Denoiser: Send {
    /// Predicts at latents `x` `[B, C, h, w]` and noise levels `sigma` `[B]` (float32 in 0..1).
    ///
    /// # Errors
    /// A wrong shape, a tap beyond the depth, or libtorch's error.
    fn predict(
        &self,
        x: &tch::Tensor,
        sigma: &tch::Tensor,
        conditioning: &Conditioning,
        request: Request<'_>,
    ) -> crate::Result<Prediction>;

    /// The trainable tensors under their published names: none when frozen. Handles to the storage in use.
    fn parameters(&self) -> Vec<(String, tch::Tensor)>;
}
