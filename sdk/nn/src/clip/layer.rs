//! One layer of CLIP's transformers.

use advdmd_sdk::Result;
use tch::Tensor;

use super::Activation;
use crate::{LayerNorm, Linear, Params};

/// What [`Layer::new`] needs to know; text and vision encoders have it alike.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerConfig {
    pub width: i64,
    pub inner: i64,
    pub heads: i64,
    pub activation: Activation,
    pub eps: f64,
}

/// transformers' `CLIPEncoderLayer`: self-attention and a feed-forward layer, each behind its normalisation and added to
/// its input.
#[derive(Debug)]
pub(super) struct Layer {
    heads: i64,
    activation: Activation,
    norm1: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    norm2: LayerNorm,
    project_in: Linear,
    project_out: Linear,
}

impl Layer {
    /// The layer at the path.
    ///
    /// # Errors
    /// A missing or misshapen weight.
    pub fn new(config: LayerConfig, p: &Params<'_>) -> Result<Self> {
        let LayerConfig { width, inner, heads, activation, eps } = config;
        let attention = |name: &str| p.pp("self_attn").pp(name).linear(width, width);
        Ok(Self {
            heads,
            activation,
            norm1: LayerNorm::new(width, eps, &p.pp("layer_norm1"))?,
            query: attention("q_proj")?,
            key: attention("k_proj")?,
            value: attention("v_proj")?,
            output: attention("out_proj")?,
            norm2: LayerNorm::new(width, eps, &p.pp("layer_norm2"))?,
            project_in: p.pp("mlp.fc1").linear(width, inner)?,
            project_out: p.pp("mlp.fc2").linear(inner, width)?,
        })
    }

    /// Tokens `[B, N, C]` to tokens `[B, N, C]`; `causal`: each sees itself and those before it, else all.
    ///
    /// # Errors
    /// libtorch's.
    pub fn forward(&self, x: &Tensor, causal: bool) -> Result<Tensor> {
        let normed = self.norm1.forward(x)?;
        self.finish(x, &self.attend(&normed, &normed, causal)?)
    }

    /// The first token `[B, 1, C]` of the result for tokens `[B, N, C]` that see all, without computing the others.
    ///
    /// # Errors
    /// libtorch's.
    pub fn first(&self, x: &Tensor) -> Result<Tensor> {
        let normed = self.norm1.forward(x)?;
        self.finish(&x.f_narrow(1, 0, 1)?, &self.attend(&normed.f_narrow(1, 0, 1)?, &normed, false)?)
    }

    /// What comes behind the attention.
    fn finish(&self, x: &Tensor, attended: &Tensor) -> Result<Tensor> {
        let x = x.f_add(attended)?;
        let inner = self.activation.forward(&self.project_in.forward(&self.norm2.forward(&x)?)?)?;
        Ok(x.f_add(&self.project_out.forward(&inner)?)?)
    }

    /// What the tokens `of` take from the tokens `from`.
    fn attend(&self, of: &Tensor, from: &Tensor, causal: bool) -> Result<Tensor> {
        let heads = |linear: &Linear, x: &Tensor| -> Result<Tensor> {
            Ok(linear.forward(x)?.f_unflatten(-1, [self.heads, -1])?.f_transpose(1, 2)?)
        };
        let (query, key, value) = (heads(&self.query, of)?, heads(&self.key, from)?, heads(&self.value, from)?);
        let attended =
            Tensor::f_scaled_dot_product_attention(&query, &key, &value, None::<&Tensor>, 0.0, causal, None, false)?;
        self.output.forward(&attended.f_transpose(1, 2)?.f_flatten(2, 3)?)
    }
}
