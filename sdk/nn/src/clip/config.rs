//! The architecture, as transformers' `config.json` describes it.

use std::path::Path;

use advdmd_sdk::{Error, Result};
use serde::Deserialize;
use tch::Tensor;

/// What stands between the two linear layers of a feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x sigmoid(1.702 x)`: the original models.
    QuickGelu,
    /// The exact GELU: those of `OpenCLIP`.
    Gelu,
}

impl Activation {
    pub(super) fn forward(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::QuickGelu => x.f_mul_scalar(1.702)?.f_sigmoid()?.f_mul(x)?,
            Self::Gelu => x.f_gelu("none")?,
        })
    }
}

/// Sizes of a text encoder, as a `config.json` of transformers holds them among keys that do not change the numbers. A key
/// that it leaves out has transformers' default: ViT-B/32's.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct ClipTextConfig {
    /// Number of tokens.
    pub vocab_size: i64,
    /// Width of the tokens.
    pub hidden_size: i64,
    /// Width of the feed-forward layers.
    pub intermediate_size: i64,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of heads; divides the width.
    pub num_attention_heads: i64,
    /// Number of positions: the longest prompt in tokens.
    pub max_position_embeddings: i64,
    /// Activation of the feed-forward layers.
    pub hidden_act: Activation,
    /// Epsilon of the normalisations.
    pub layer_norm_eps: f64,
    /// Width of the pooled embedding.
    pub projection_dim: i64,
    /// The token whose position is pooled. 2, which older files hold whatever the tokenizer, stands for the largest
    /// token of the prompt (transformers pull request 24773).
    pub eos_token_id: i64,
}

impl Default for ClipTextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            projection_dim: 512,
            eos_token_id: 49407,
        }
    }
}

impl ClipTextConfig {
    /// Reads and checks a `config.json` of a `CLIPTextModelWithProjection`.
    ///
    /// # Errors
    /// A file that cannot be read, or a value that [`ClipTextConfig::check`] refuses; the message names
    /// the file.
    pub fn read(path: &Path) -> Result<Self> {
        let config: Self = crate::read_json(path)?;
        config.check().map_err(|error| error.context(path.display()))?;
        Ok(config)
    }

    /// Checks that the sizes fit together.
    ///
    /// # Errors
    /// Names the key, what it should be and what it is.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers as i64),
            ("num_attention_heads", self.num_attention_heads),
            ("max_position_embeddings", self.max_position_embeddings),
            ("projection_dim", self.projection_dim),
        ];
        check_sizes(&sizes)?;
        check_heads(self.hidden_size, self.num_attention_heads)
    }
}

/// Sizes of a vision encoder; a key that is left out has transformers' default: ViT-B/32's.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct ClipVisionConfig {
    /// Width of the tokens.
    pub hidden_size: i64,
    /// Width of the feed-forward layers.
    pub intermediate_size: i64,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of heads; divides the width.
    pub num_attention_heads: i64,
    /// Channels of an image.
    pub num_channels: i64,
    /// Side of an image in pixels.
    pub image_size: i64,
    /// Side of a patch in pixels; what an image has beyond the last whole patch is not seen.
    pub patch_size: i64,
    /// Activation of the feed-forward layers.
    pub hidden_act: Activation,
    /// Epsilon of the normalisations.
    pub layer_norm_eps: f64,
}

impl Default for ClipVisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
        }
    }
}

impl ClipVisionConfig {
    /// Patches along a side of the image.
    pub fn grid(&self) -> i64 {
        self.image_size / self.patch_size
    }

    /// Checks that the sizes fit together.
    ///
    /// # Errors
    /// Names the key, what it should be and what it is.
    pub fn check(&self) -> Result<()> {
        check_sizes(&[
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers as i64),
            ("num_attention_heads", self.num_attention_heads),
            ("num_channels", self.num_channels),
            ("image_size", self.image_size),
            ("patch_size", self.patch_size),
        ])?;
        if self.patch_size > self.image_size {
            let (patch, image) = (self.patch_size, self.image_size);
            return Err(Error::config(format!("patch_size: expected at most image_size = {image}, found {patch}")));
        }
        check_heads(self.hidden_size, self.num_attention_heads)
    }
}

/// Both encoders, as the `config.json` of a `CLIPModel` holds them.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipConfig {
    /// The text encoder; its `projection_dim` is the whole model's.
    pub text: ClipTextConfig,
    /// The vision encoder.
    pub vision: ClipVisionConfig,
    /// Width of the features that both are projected to.
    pub projection_dim: i64,
}

/// The file itself. Where it holds an older `<part>_config_dict`, that one counts (transformers' `CLIPConfig`).
#[derive(Deserialize)]
struct File {
    model_type: Option<String>,
    text_config: Option<ClipTextConfig>,
    text_config_dict: Option<ClipTextConfig>,
    vision_config: Option<ClipVisionConfig>,
    vision_config_dict: Option<ClipVisionConfig>,
    projection_dim: Option<i64>,
}

impl ClipConfig {
    /// Reads and checks a `config.json` of a `CLIPModel`.
    ///
    /// # Errors
    /// A file that cannot be read, that describes another kind of model, or whose sizes do not fit together; the message
    /// names the file.
    pub fn read(path: &Path) -> Result<Self> {
        let file: File = crate::read_json(path)?;
        let read = || {
            if let Some(found) = file.model_type.filter(|kind| kind != "clip") {
                return Err(Error::config(format!("model_type: expected \"clip\", found {found:?}")));
            }
            let projection_dim = file.projection_dim.unwrap_or(512);
            let text = file.text_config_dict.or(file.text_config).unwrap_or_default();
            let config = Self {
                text: ClipTextConfig { projection_dim, ..text },
                vision: file.vision_config_dict.or(file.vision_config).unwrap_or_default(),
                projection_dim,
            };
            config.check()?;
            Ok(config)
        };
        read().map_err(|error: Error| error.context(path.display()))
    }

    /// Checks that the sizes fit together.
    ///
    /// # Errors
    /// Names the key, what it should be and what it is.
    pub fn check(&self) -> Result<()> {
        self.text.check().map_err(|error| error.context("text_config"))?;
        self.vision.check().map_err(|error| error.context("vision_config"))
    }
}

fn check_sizes(sizes: &[(&str, i64)]) -> Result<()> {
    match sizes.iter().find(|(_, size)| !(1..=1 << 20).contains(size)) {
        Some((key, size)) => Err(Error::config(format!("{key}: expected 1 to {}, found {size}", 1 << 20))),
        None => Ok(()),
    }
}

fn check_heads(width: i64, heads: i64) -> Result<()> {
    if width % heads == 0 {
        return Ok(());
    }
    Err(Error::config(format!("num_attention_heads: expected a divisor of hidden_size = {width}, found {heads}")))
}
