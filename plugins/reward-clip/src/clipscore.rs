//! The reward `clipscore`.

use std::path::PathBuf;

use advdmd_sdk::{DType, Result, Reward, RewardConfig, RewardInit};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{ClipReward, Options, Preprocess, reward};

/// `scale * cos(image, prompt)`: CLIPScore (Hessel et al., arXiv:2104.08718) in the scale of `DiffusionNFT` and RTDMD,
/// `logits_per_image / 100`, which for `OpenAI`'s models, whose logit scale is 100, is the cosine.
///
/// Others print other numbers under this name: Flow-GRPO and Adv-GRPO `logits / 30`, so `scale = 3.3333`; torchmetrics
/// `max(100 cos, 0)`, so `scale = 100` and `clamp_min = 0`; Hessel et al. `2.5 max(cos, 0)`, so `scale = 2.5` and `clamp_min = 0`, of
/// "A photo depicts {prompt}". The published ones use `openai/clip-vit-large-patch14` (torchmetrics too by default, Hessel et
/// al. ViT-B/32). Prompts of more than 77 tokens are cut, as the reference does.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClipScore {
    /// Folder of a `CLIPModel` of transformers with its tokenizer, or a Hugging Face id of one that is in the local cache, such
    /// as `openai/clip-vit-large-patch14`.
    #[schemars(extend("format" = "model"))]
    pub model: PathBuf,
    /// Factor on the cosine.
    #[serde(default = "scale")]
    pub scale: f64,
    /// Scores below are raised to this.
    #[serde(default)]
    pub clamp_min: Option<f64>,
    /// Scores above are lowered to this, so that a gradient stops there.
    #[serde(default)]
    pub clamp_max: Option<f64>,
    /// What is encoded, with `{prompt}` in the place of the prompt. The prompt alone in Flow-GRPO, `DiffusionNFT` and RTDMD.
    #[serde(default = "reward::prompt_template")]
    pub prompt_template: String,
    /// How images become the model's input; `tensor-bilinear`, torchvision's `Resize` on a tensor, in Flow-GRPO and those that
    /// took its scorer over. `processor` for numbers of transformers' processor.
    #[serde(default = "preprocess")]
    pub preprocess: Preprocess,
    /// Images that pass through the model at once; scores depend on it by rounding alone. Without gradients it bounds the memory.
    #[serde(default = "reward::batch_size")]
    pub batch_size: usize,
    /// Type of weights and activations: f32, bf16, f16 or f64. Features are normalised and compared in float32 at least.
    #[serde(default)]
    pub dtype: DType,
}

fn scale() -> f64 {
    1.0
}

fn preprocess() -> Preprocess {
    Preprocess::TensorBilinear
}

impl RewardConfig for ClipScore {
    fn build(self, init: &RewardInit) -> Result<Box<dyn Reward>> {
        let Self { model, scale, clamp_min, clamp_max, prompt_template, preprocess, batch_size, dtype } = self;
        let options = Options {
            model,
            scale,
            logit_scale: false,
            clamp_min,
            clamp_max,
            prompt_template,
            preprocess,
            batch_size,
            dtype,
        };
        Ok(Box::new(ClipReward::new(options, init)?))
    }
}
