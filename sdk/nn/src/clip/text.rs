//! The text encoder.

use advdmd_sdk::{Error, Result};
use tch::{Kind, Tensor};

use super::ClipTextConfig;
use super::layer::{Layer, LayerConfig};
use crate::{LayerNorm, Layout, Linear, Params};

/// The end-of-text id of configurations that do not know their tokenizer's.
const LEGACY_EOS: i64 = 2;

/// transformers' `CLIPTextModelWithProjection`: a causal transformer over tokens.
#[derive(Debug)]
pub struct ClipText {
    config: ClipTextConfig,
    tokens: Tensor,
    positions: Tensor,
    layers: Vec<Layer>,
    final_norm: LayerNorm,
    projection: Linear,
}

/// What [`ClipText::forward`] returns.
#[derive(Debug)]
pub struct ClipTextOutput {
    /// Tokens before the last layer, `[B, L, C]`, not normalised: transformers' `hidden_states[-2]`, on which Stable
    /// Diffusion is conditioned.
    pub penultimate: Tensor,
    /// The end-of-text token after the last layer, normalised and projected, `[B, P]`: transformers' `text_embeds`.
    pub pooled: Tensor,
}

impl ClipText {
    /// The encoder over the weights of `p`: `text_model.*` and `text_projection.weight`.
    ///
    /// # Errors
    /// A missing or misshapen weight.
    pub fn new(config: &ClipTextConfig, p: &Params<'_>) -> Result<Self> {
        let width = config.hidden_size;
        let layer = LayerConfig {
            width,
            inner: config.intermediate_size,
            heads: config.num_attention_heads,
            activation: config.hidden_act,
            eps: config.layer_norm_eps,
        };
        let text = p.pp("text_model");
        let embeddings = text.pp("embeddings");
        Ok(Self {
            config: config.clone(),
            tokens: embeddings.get("token_embedding.weight", &[config.vocab_size, width])?,
            positions: embeddings.get("position_embedding.weight", &[config.max_position_embeddings, width])?,
            layers: (0..config.num_hidden_layers)
                .map(|index| Layer::new(layer, &text.pp("encoder.layers").pp(index)))
                .collect::<Result<_>>()?,
            final_norm: LayerNorm::new(width, config.layer_norm_eps, &text.pp("final_layer_norm"))?,
            projection: p.pp("text_projection").linear_without_bias(width, config.projection_dim)?,
        })
    }

    /// Names and shapes of the weights.
    ///
    /// # Errors
    /// A configuration whose sizes do not fit.
    pub fn layout(config: &ClipTextConfig) -> Result<Layout> {
        config.check()?;
        Params::record(|p| Self::new(config, p))
    }

    /// The encoder's configuration.
    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// Encodes token ids `[B, L]` (int64, on the weights' device), L at most `max_position_embeddings`. The results are
    /// in the weights' type.
    ///
    /// # Errors
    /// A wrong shape; libtorch's, e.g. for an id outside the vocabulary.
    pub fn forward(&self, ids: &Tensor) -> Result<ClipTextOutput> {
        let (size, positions) = (ids.size(), self.config.max_position_embeddings);
        let length = match *size {
            [_, length] if length <= positions => length,
            _ => return Err(Error::shape("token ids", format!("[B, L], L at most {positions}"), &size)),
        };
        let tokens = Tensor::f_embedding(&self.tokens, ids, -1, false, false)?;
        let mut x = tokens.f_add(&self.positions.f_narrow(0, 0, length)?)?;
        let mut penultimate = x.shallow_clone();
        for layer in &self.layers {
            penultimate = std::mem::replace(&mut x, Tensor::new());
            x = layer.forward(&penultimate, true)?;
        }
        // One token of each prompt is read, so only that one is normalised.
        let ends = self.ends(ids)?.f_view([-1, 1, 1])?.f_expand([-1, 1, self.config.hidden_size], false)?;
        let end = self.final_norm.forward(&x.f_gather(1, &ends, false)?.f_squeeze_dim(1)?)?;
        Ok(ClipTextOutput { penultimate, pooled: self.projection.forward(&end)? })
    }

    /// Position of the first end-of-text token of each prompt, `[B]`.
    fn ends(&self, ids: &Tensor) -> Result<Tensor> {
        let eos = self.config.eos_token_id;
        let peak = if eos == LEGACY_EOS { ids.shallow_clone() } else { ids.f_eq(eos)?.f_to_kind(Kind::Int)? };
        Ok(peak.f_argmax(1, false)?)
    }
}
