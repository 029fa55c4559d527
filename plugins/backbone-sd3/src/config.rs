//! The configuration table of the backbone.

use std::path::PathBuf;

use advdmd_sdk::{Backbone, BackboneConfig, BackboneInit, DType, Error, Result};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::Sd3;
use crate::folder::ModelFiles;

/// Stable Diffusion 3 and 3.5: the transformer, three text encoders and autoencoder that diffusers'
/// `StableDiffusion3Pipeline` runs, from its folders or from an original single file.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sd3Config {
    /// A pipeline folder of diffusers, a Hugging Face id of one that is in the local cache, or an original
    /// `.safetensors` file (its text encoders and autoencoder are then taken from the folder that it lies in).
    #[schemars(extend("format" = "model"))]
    pub model: PathBuf,
    /// Another transformer in the place of the model's own: a folder of diffusers or an original single file.
    #[serde(default)]
    #[schemars(extend("format" = "model"))]
    pub transformer: Option<PathBuf>,
    /// Infix of the weight files to read, such as `fp16`; without it the plain ones, or `fp16` where there are no others.
    #[serde(default)]
    pub variant: Option<String>,
    /// Height of the images in pixels; that of the model's configuration by default.
    #[serde(default)]
    pub height: Option<i64>,
    /// Width of the images in pixels; that of the model's configuration by default.
    #[serde(default)]
    pub width: Option<i64>,
    /// Whether the T5 encoder is used. Without it, as in a model that has none, its tokens are zeros; that saves 9 GB and costs
    /// spelling and detail.
    #[serde(default = "yes")]
    pub t5: bool,
    /// Number of T5 tokens, up to 512; longer prompts are cut.
    #[serde(default = "t5_tokens")]
    pub t5_tokens: i64,
    /// Decode images with a longer side in overlapping tiles of this many pixels, which bounds the memory and changes the
    /// numbers a little; without it images are decoded whole.
    #[serde(default)]
    pub vae_tile: Option<i64>,
    /// Keep only the inputs of each block for the backward pass and compute the rest of it again: about a third more
    /// time, a fraction of the memory, the same gradients.
    #[serde(default)]
    pub activation_checkpointing: bool,
}

fn yes() -> bool {
    true
}

/// Default `max_sequence_length` of diffusers' pipeline.
fn t5_tokens() -> i64 {
    256
}

impl BackboneConfig for Sd3Config {
    fn build(self, init: &BackboneInit) -> Result<Box<dyn Backbone>> {
        if !matches!(init.dtype, DType::F32 | DType::Bf16 | DType::F16 | DType::F64) {
            return Err(Error::config(format!("dtype: expected f32, bf16, f16 or f64, found {:?}", init.dtype)));
        }
        let files = ModelFiles::find(&self.model, self.transformer.as_deref(), self.variant.clone())?;
        Ok(Box::new(Sd3::load(files, &self, init.dtype.into(), init.device.into())?))
    }
}
