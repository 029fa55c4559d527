//! The reward `hps`.

use std::path::PathBuf;

use advdmd_sdk::{DType, Result, Reward, RewardConfig, RewardInit};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{ClipReward, Options, Preprocess, reward};

/// `scale * cos(image, prompt)`: the Human Preference Score v2 (Wu et al., arXiv:2306.09341). 2.0 and 2.1 differ in nothing but
/// their weights, a fine-tuned ViT-H-14 of `OpenCLIP`.
///
/// The official `img_score.py` gives the cosine without the model's logit scale, about 0.28; leaderboards print it times 100, so
/// `scale = 100`. Prompts of more than 77 tokens are cut, as the reference does. The official script repairs prompts before
/// (ftfy, HTML entities), which changes those with curly quotes or entities; here they are encoded as they are. It computes in
/// float16 where a GPU has it (autocast), which moves the last digits.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hps {
    /// Folder of a `CLIPModel` of transformers with the weights and CLIP's tokenizer, or a Hugging Face id of one that is in the
    /// local cache.
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
    /// What is encoded, with `{prompt}` in the place of the prompt. The prompt alone in the official script.
    #[serde(default = "reward::prompt_template")]
    pub prompt_template: String,
    /// How images become the model's input; `tensor-bicubic` in the official script (`transform.py`: `ToTensor`, then `Resize`).
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
    Preprocess::TensorBicubic
}

impl RewardConfig for Hps {
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
