//! The autoencoder's architecture, as diffusers' `config.json` describes it.

use std::path::Path;

use advdmd_nn::read_json;
use advdmd_sdk::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Sizes of an `AutoencoderKL`. What files older than a key mean by its absence is diffusers' default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaeConfig {
    /// Channels of the images read.
    pub in_channels: i64,
    /// Channels of the images written.
    pub out_channels: i64,
    /// Channels at each resolution, the image's first; each further one halves the sides.
    pub block_out_channels: Vec<i64>,
    /// Residual blocks at each resolution of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Channels C of the latents.
    pub latent_channels: i64,
    /// Groups of the normalisations.
    pub norm_num_groups: i64,
    /// Factor of the latents that the transformer sees.
    pub scaling_factor: f64,
    /// What is subtracted from them before.
    #[serde(default)]
    pub shift_factor: Option<f64>,
    /// Whether a convolution follows the encoder.
    #[serde(default = "yes")]
    pub use_quant_conv: bool,
    /// Whether a convolution precedes the decoder.
    #[serde(default = "yes")]
    pub use_post_quant_conv: bool,
    /// Whether the lowest resolution has attention.
    #[serde(default = "yes")]
    pub mid_block_add_attention: bool,
    /// Kinds of the encoder's blocks; `DownEncoderBlock2D` is known.
    #[serde(default)]
    pub down_block_types: Vec<String>,
    /// Kinds of the decoder's blocks; `UpDecoderBlock2D` is known.
    #[serde(default)]
    pub up_block_types: Vec<String>,
    /// Activation; `silu` is known.
    #[serde(default = "silu")]
    pub act_fn: String,
    /// Side of the images trained on; changes no number.
    #[serde(default)]
    pub sample_size: Value,
    /// Whether other pipelines compute in float32; changes no number.
    #[serde(default)]
    pub force_upcast: Value,
    /// Means of the latents, which SD3 does not have.
    #[serde(default)]
    pub latents_mean: Value,
    /// Deviations of the latents, which SD3 does not have.
    #[serde(default)]
    pub latents_std: Value,
}

fn yes() -> bool {
    true
}

fn silu() -> String {
    "silu".to_owned()
}

impl VaeConfig {
    /// Reads and checks a `config.json`. Keys that begin with an underscore are diffusers' own notes.
    ///
    /// # Errors
    /// A file that cannot be read, a missing or unknown key, or a value that [`VaeConfig::check`] refuses; the message
    /// names the file.
    pub fn read(path: &Path) -> Result<Self> {
        let mut keys: Map<String, Value> = read_json(path)?;
        keys.retain(|key, _| !key.starts_with('_'));
        let config = serde_json::from_value(Value::Object(keys)).map_err(Error::from);
        let config = config.and_then(|config: Self| config.check().map(|()| config));
        config.map_err(|error| error.context(path.display()))
    }

    /// Checks that the sizes fit together and that all kinds are known.
    ///
    /// # Errors
    /// Names the key, what it should be and what it is.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("layers_per_block", self.layers_per_block as i64),
            ("latent_channels", self.latent_channels),
            ("norm_num_groups", self.norm_num_groups),
        ];
        if let Some((key, size)) = sizes.iter().find(|(_, size)| !(1..=1 << 16).contains(size)) {
            return Err(Error::config(format!("{key}: expected 1 to {}, found {size}", 1 << 16)));
        }
        let (blocks, groups) = (&self.block_out_channels, self.norm_num_groups);
        if blocks.is_empty() || blocks.len() > 16 {
            return Err(Error::config(format!("block_out_channels: expected 1 to 16 numbers, found {}", blocks.len())));
        }
        if let Some(channels) = blocks.iter().find(|&&channels| channels < 1 || channels % groups != 0) {
            return Err(Error::config(format!(
                "block_out_channels: expected multiples of norm_num_groups = {groups}, found {channels}"
            )));
        }
        if !(self.scaling_factor.is_finite() && self.scaling_factor > 0.0) {
            let found = self.scaling_factor;
            return Err(Error::config(format!("scaling_factor: expected a positive number, found {found}")));
        }
        let kinds = [
            ("down_block_types", &self.down_block_types, "DownEncoderBlock2D"),
            ("up_block_types", &self.up_block_types, "UpDecoderBlock2D"),
        ];
        for (key, found, known) in kinds {
            if let Some(other) = found.iter().find(|kind| *kind != known) {
                return Err(Error::config(format!("{key}: expected {known:?}, found {other:?}")));
            }
        }
        if self.act_fn != "silu" {
            return Err(Error::config(format!("act_fn: expected \"silu\", found {:?}", self.act_fn)));
        }
        for (key, found) in [("latents_mean", &self.latents_mean), ("latents_std", &self.latents_std)] {
            if !found.is_null() {
                return Err(Error::config(format!("{key}: expected null, found {found}")));
            }
        }
        Ok(())
    }

    /// Image pixels to a latent pixel, on a side.
    pub fn factor(&self) -> i64 {
        1 << (self.block_out_channels.len() - 1)
    }
}
