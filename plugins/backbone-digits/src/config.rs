//! The configuration table of the backbone.

use std::path::PathBuf;

use advdmd_nn::mmdit::MmditConfig;
use advdmd_sdk::{Backbone, BackboneConfig, BackboneInit, DType, Error, Result};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::text::{CONTEXT_WIDTH, POOLED_WIDTH, TextEncoder};
use crate::{Digits, Model};

/// Scenes of handwritten digits in 16x16 pixels: SD3's transformer at toy size. The shipped teacher, unless `model` or
/// `init` names other weights.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DigitsConfig {
    /// Folder of a trained model: `config.json` (diffusers' `SD3Transformer2DModel`),
    /// `diffusion_pytorch_model.safetensors` and, where it differs from the default, `text_encoder.json`.
    #[serde(default)]
    #[schemars(extend("format" = "model"))]
    pub model: Option<PathBuf>,
    /// Weights to start training from scratch with, instead of a trained model's.
    #[serde(default)]
    pub init: Option<InitFrom>,
    /// Sizes of the network that `init` makes.
    #[serde(default)]
    pub architecture: Option<Architecture>,
    /// Scales of the text embeddings of the network that `init` makes.
    #[serde(default)]
    pub text_encoder: Option<TextEncoder>,
}

/// Where untrained weights come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InitFrom {
    /// Drawn at random from the run's seed.
    Random,
}

/// Sizes of the network.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Architecture {
    /// Side of a square patch in pixels; it divides 16.
    pub patch_size: i64,
    /// Number of joint blocks.
    pub num_layers: usize,
    /// Number of attention heads.
    pub num_attention_heads: i64,
    /// Width of one head.
    pub attention_head_dim: i64,
}

impl Default for Architecture {
    /// 2.3 million parameters.
    fn default() -> Self {
        Self { patch_size: 4, num_layers: 4, num_attention_heads: 4, attention_head_dim: 32 }
    }
}

/// Side of a scene in pixels.
const SIDE: i64 = 16;

impl Architecture {
    /// diffusers' configuration of the same sizes, for scenes of 16x16 RGB and this crate's text embeddings.
    ///
    /// # Errors
    /// A patch size that does not divide the scene.
    pub fn to_mmdit(&self) -> Result<MmditConfig> {
        let patch = self.patch_size;
        if patch < 1 || SIDE % patch != 0 {
            return Err(Error::config(format!("architecture.patch_size: expected a divisor of {SIDE}, found {patch}")));
        }
        Ok(MmditConfig {
            sample_size: SIDE,
            patch_size: patch,
            in_channels: 3,
            out_channels: Some(3),
            num_layers: self.num_layers,
            attention_head_dim: self.attention_head_dim,
            num_attention_heads: self.num_attention_heads,
            joint_attention_dim: CONTEXT_WIDTH,
            caption_projection_dim: self.num_attention_heads.saturating_mul(self.attention_head_dim),
            pooled_projection_dim: POOLED_WIDTH,
            pos_embed_max_size: SIDE / patch,
            dual_attention_layers: Vec::new(),
            qk_norm: Some("rms_norm".to_owned()),
        })
    }
}

impl BackboneConfig for DigitsConfig {
    fn build(self, init: &BackboneInit) -> Result<Box<dyn Backbone>> {
        if !matches!(init.dtype, DType::F32 | DType::Bf16 | DType::F16) {
            return Err(Error::config(format!("dtype: expected f32, bf16 or f16, found {:?}", init.dtype)));
        }
        let (kind, device) = (init.dtype.into(), init.device.into());
        if self.init.is_none() {
            let given = [("architecture", self.architecture.is_some()), ("text_encoder", self.text_encoder.is_some())];
            if let Some((key, _)) = given.into_iter().find(|(_, given)| *given) {
                return Err(Error::config(format!("{key}: goes with `init`; a trained model brings its own")));
            }
        }
        let model = match (self.model, self.init) {
            (None, None) => Model::shipped(kind, device)?,
            (Some(folder), None) => Model::load(&folder, kind, device)?,
            (None, Some(InitFrom::Random)) => {
                let architecture = self.architecture.unwrap_or_default().to_mmdit()?;
                Model::random(architecture, self.text_encoder.unwrap_or_default(), init.seed, kind, device)?
            }
            (Some(_), Some(_)) => return Err(Error::config("model, init: give one of the two, not both")),
        };
        Ok(Box::new(Digits::new(model)?))
    }
}
