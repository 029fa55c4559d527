//! T5's architecture, as transformers' `config.json` describes it.

use std::path::Path;

use advdmd_nn::read_json;
use advdmd_sdk::{Error, Result};
use serde::Deserialize;

/// Sizes of a T5 encoder. A `config.json` of transformers holds all of them, among keys of the decoder and of training.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct T5Config {
    /// Number of rows of the embedding table; not all need be tokens.
    pub vocab_size: i64,
    /// Width of the tokens.
    pub d_model: i64,
    /// Width of one head.
    pub d_kv: i64,
    /// Width of the feed-forward layers.
    pub d_ff: i64,
    /// Number of layers.
    pub num_layers: usize,
    /// Number of heads.
    pub num_heads: i64,
    /// Number of classes of distances between tokens.
    pub relative_attention_num_buckets: i64,
    /// The distance from which on all are one class; files older than the key mean 128.
    #[serde(default = "max_distance")]
    pub relative_attention_max_distance: i64,
    /// Epsilon of the normalisations.
    pub layer_norm_epsilon: f64,
    /// Kind of the feed-forward layers; `gated-gelu` (T5 v1.1) is known.
    pub feed_forward_proj: String,
}

fn max_distance() -> i64 {
    128
}

impl T5Config {
    /// Reads and checks a `config.json` of a `T5EncoderModel`.
    ///
    /// # Errors
    /// A file that cannot be read, a missing key, or a value that [`T5Config::check`] refuses; the message names the
    /// file.
    pub fn read(path: &Path) -> Result<Self> {
        let config: Self = read_json(path)?;
        config.check().map_err(|error| error.context(path.display()))?;
        Ok(config)
    }

    /// Checks the sizes and the kind.
    ///
    /// # Errors
    /// Names the key, what it should be and what it is.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("d_model", self.d_model),
            ("d_kv", self.d_kv),
            ("d_ff", self.d_ff),
            ("num_layers", self.num_layers as i64),
            ("num_heads", self.num_heads),
        ];
        if let Some((key, size)) = sizes.iter().find(|(_, size)| !(1..=1 << 20).contains(size)) {
            return Err(Error::config(format!("{key}: expected 1 to {}, found {size}", 1 << 20)));
        }
        let (buckets, distance) = (self.relative_attention_num_buckets, self.relative_attention_max_distance);
        if buckets < 4 || buckets % 4 != 0 {
            return Err(Error::config(format!(
                "relative_attention_num_buckets: expected a multiple of 4, found {buckets}"
            )));
        }
        if distance <= buckets / 4 {
            let least = buckets / 4 + 1;
            return Err(Error::config(format!(
                "relative_attention_max_distance: expected at least {least}, found {distance}"
            )));
        }
        match self.feed_forward_proj.as_str() {
            "gated-gelu" => Ok(()),
            other => Err(Error::config(format!("feed_forward_proj: expected \"gated-gelu\", found {other:?}"))),
        }
    }
}
