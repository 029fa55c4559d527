//! The architecture, as diffusers' `config.json` describes it.

use std::path::Path;

use advdmd_sdk::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::read_json;

/// Sizes of one MMDiT. diffusers' own defaults belong to no released model, so every size must be given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MmditConfig {
    /// Side of the latents trained on; only initial position tables depend on it.
    pub sample_size: i64,
    /// Side of a square patch, in latent pixels.
    pub patch_size: i64,
    /// Latent channels read.
    pub in_channels: i64,
    /// Number of joint blocks.
    pub num_layers: usize,
    /// Width of one head.
    pub attention_head_dim: i64,
    /// Number of heads; times the head's width it is the width of the tokens.
    pub num_attention_heads: i64,
    /// Width D of the text tokens given.
    pub joint_attention_dim: i64,
    /// Width that they are projected to; the width of the tokens.
    pub caption_projection_dim: i64,
    /// Width P of the pooled text given.
    pub pooled_projection_dim: i64,
    /// Latent channels written; those read if absent.
    #[serde(default)]
    pub out_channels: Option<i64>,
    /// Side of the stored position table, in patches.
    pub pos_embed_max_size: i64,
    /// Blocks with a second attention of the image alone (SD3.5-medium).
    #[serde(default)]
    pub dual_attention_layers: Vec<usize>,
    /// Normalisation of queries and keys: none (SD3) or `rms_norm` (SD3.5).
    #[serde(default)]
    pub qk_norm: Option<String>,
}

impl MmditConfig {
    /// Reads and checks a `config.json`. Keys that begin with an underscore are diffusers' own notes.
    ///
    /// # Errors
    /// A file that cannot be read, a missing or unknown key, or a value that [`MmditConfig::check`] refuses; the
    /// message names the file.
    pub fn read(path: &Path) -> Result<Self> {
        Self::from_json(read_json(path)?).map_err(|error| error.context(path.display()))
    }

    /// As [`MmditConfig::read`], from parsed JSON.
    ///
    /// # Errors
    /// A missing or unknown key, or a value that [`MmditConfig::check`] refuses.
    pub fn from_json(mut json: Value) -> Result<Self> {
        if let Value::Object(keys) = &mut json {
            keys.retain(|key, _| !key.starts_with('_'));
        }
        let config: Self = serde_json::from_value(json)?;
        config.check()?;
        Ok(config)
    }

    /// Checks that the sizes fit together.
    ///
    /// # Errors
    /// Names the key, what it should be and what it is.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("sample_size", self.sample_size),
            ("patch_size", self.patch_size),
            ("in_channels", self.in_channels),
            ("num_layers", self.num_layers as i64),
            ("attention_head_dim", self.attention_head_dim),
            ("num_attention_heads", self.num_attention_heads),
            ("joint_attention_dim", self.joint_attention_dim),
            ("pooled_projection_dim", self.pooled_projection_dim),
            ("out_channels", self.out_channels()),
            ("pos_embed_max_size", self.pos_embed_max_size),
        ];
        if let Some((key, size)) = sizes.iter().find(|(_, size)| !(1..=1 << 20).contains(size)) {
            return Err(Error::config(format!("{key}: expected 1 to {}, found {size}", 1 << 20)));
        }
        let (dim, caption) = (self.dim(), self.caption_projection_dim);
        if caption != dim {
            return Err(Error::config(format!(
                "caption_projection_dim: expected num_attention_heads x attention_head_dim = {dim}, found {caption}"
            )));
        }
        if let Some(layer) = self.dual_attention_layers.iter().find(|&&layer| layer >= self.num_layers) {
            let layers = self.num_layers;
            return Err(Error::config(format!("dual_attention_layers: expected below {layers}, found {layer}")));
        }
        match self.qk_norm.as_deref() {
            None | Some("rms_norm") => Ok(()),
            Some(other) => Err(Error::config(format!("qk_norm: expected null or \"rms_norm\", found {other:?}"))),
        }
    }

    /// Width of the tokens.
    pub fn dim(&self) -> i64 {
        self.num_attention_heads * self.attention_head_dim
    }

    /// Latent channels written.
    pub fn out_channels(&self) -> i64 {
        self.out_channels.unwrap_or(self.in_channels)
    }
}
