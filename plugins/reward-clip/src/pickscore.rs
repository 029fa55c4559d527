//! The reward `pickscore`.

use std::path::PathBuf;

use advdmd_sdk::{DType, Result, Reward, RewardConfig, RewardInit};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{ClipReward, Options, Preprocess, reward};

/// Flow-GRPO's `pickscore_scorer.py`.
const SCALE: f64 = 1.0 / 26.0;

/// `scale * exp(logit_scale) * cos(image, prompt)`: `PickScore` (Kirstain et al., arXiv:2305.01569), `yuvalkirstain/PickScore_v1`
/// with the image processor of `laion/CLIP-ViT-H-14-laion2B-s32B-b79K`.
///
/// The scale of 1 / 26 is what Flow-GRPO, Adv-GRPO and RTDMD train with, which brings scores near 0.85; the model card's own
/// number, about 22, is `scale = 1`, and the `0.22` of AdvDMD's tables `scale = 0.01`. Prompts of more than 77 tokens are cut, as
/// the reference does.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PickScore {
    /// Folder of a `CLIPModel` of transformers with its tokenizer, or a Hugging Face id of one that is in the local cache, such
    /// as `yuvalkirstain/PickScore_v1`.
    #[schemars(extend("format" = "model"))]
    pub model: PathBuf,
    /// Factor on the scaled cosine.
    #[serde(default = "scale")]
    pub scale: f64,
    /// Scores below are raised to this.
    #[serde(default)]
    pub clamp_min: Option<f64>,
    /// Scores above are lowered to this, so that a gradient stops there.
    #[serde(default)]
    pub clamp_max: Option<f64>,
    /// What is encoded, with `{prompt}` in the place of the prompt. The prompt alone in the model card.
    #[serde(default = "reward::prompt_template")]
    pub prompt_template: String,
    /// How images become the model's input; `processor`, transformers' image processor with Pillow, in the model card and the
    /// trainers. Its scores wait for the device; with `tensor-bicubic` they need not, and differ a little.
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
    SCALE
}

fn preprocess() -> Preprocess {
    Preprocess::Processor
}

impl RewardConfig for PickScore {
    fn build(self, init: &RewardInit) -> Result<Box<dyn Reward>> {
        let Self { model, scale, clamp_min, clamp_max, prompt_template, preprocess, batch_size, dtype } = self;
        let options = Options {
            model,
            scale,
            logit_scale: true,
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
