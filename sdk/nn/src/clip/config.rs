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

/// Sizes of a text encoder. A `config.json` of transformers holds all of them, among keys that do not change the
/// numbers.
#[derive(Debug, Clone, PartialEq, Deserialize)]
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

impl ClipTextConfig {
    /// Reads and checks a `config.json` of a `CLIPTextModelWithProjection`.
    ///
    /// # Errors
    /// A file that cannot be read, a missing key, or a value that [`ClipTextConfig::check`] refuses; the message names
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
        if let Some((key, size)) = sizes.iter().find(|(_, size)| !(1..=1 << 20).contains(size)) {
            return Err(Error::config(format!("{key}: expected 1 to {}, found {size}", 1 << 20)));
        }
        let (width, heads) = (self.hidden_size, self.num_attention_heads);
        if width % heads != 0 {
            return Err(Error::config(format!(
                "num_attention_heads: expected a divisor of hidden_size = {width}, found {heads}"
            )));
        }
        Ok(())
    }
}
