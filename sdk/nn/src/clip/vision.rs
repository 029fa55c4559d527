//! The vision encoder.

use advdmd_sdk::{Error, Result};
use tch::Tensor;

use super::ClipVisionConfig;
use super::layer::{Layer, LayerConfig};
use crate::{LayerNorm, Linear, Params};

/// transformers' `CLIPVisionModelWithProjection`: a transformer over the patches of an image.
#[derive(Debug)]
pub struct ClipVision {
    config: ClipVisionConfig,
    class: Tensor,
    patches: Tensor,
    positions: Tensor,
    first_norm: LayerNorm,
    layers: Vec<Layer>,
    final_norm: LayerNorm,
    projection: Linear,
}

impl ClipVision {
    /// The encoder over the weights of `p`: `vision_model.*` and `visual_projection.weight` `[projection_dim, C]`.
    ///
    /// # Errors
    /// A missing or misshapen weight.
    pub fn new(config: &ClipVisionConfig, projection_dim: i64, p: &Params<'_>) -> Result<Self> {
        let ClipVisionConfig { hidden_size: width, patch_size: patch, layer_norm_eps: eps, .. } = *config;
        let layer = LayerConfig {
            width,
            inner: config.intermediate_size,
            heads: config.num_attention_heads,
            activation: config.hidden_act,
            eps,
        };
        let vision = p.pp("vision_model");
        let embeddings = vision.pp("embeddings");
        Ok(Self {
            config: config.clone(),
            class: embeddings.get("class_embedding", &[width])?,
            patches: embeddings.get("patch_embedding.weight", &[width, config.num_channels, patch, patch])?,
            positions: embeddings.get("position_embedding.weight", &[config.grid().pow(2) + 1, width])?,
            // Spelt so in every file.
            first_norm: LayerNorm::new(width, eps, &vision.pp("pre_layrnorm"))?,
            layers: (0..config.num_hidden_layers)
                .map(|index| Layer::new(layer, &vision.pp("encoder.layers").pp(index)))
                .collect::<Result<_>>()?,
            final_norm: LayerNorm::new(width, eps, &vision.pp("post_layernorm"))?,
            projection: p.pp("visual_projection").linear_without_bias(width, projection_dim)?,
        })
    }

    /// The encoder's configuration.
    pub fn config(&self) -> &ClipVisionConfig {
        &self.config
    }

    /// The class token after the last layer, normalised and projected, `[B, P]`, of normalised pixels `[B, C, S, S]` in
    /// the weights' type: transformers' `image_embeds`.
    ///
    /// # Errors
    /// A wrong shape; libtorch's.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let ClipVisionConfig { hidden_size: width, num_channels, image_size, patch_size, .. } = self.config;
        let size = pixels.size();
        if size.len() != 4 || size[1..] != [num_channels, image_size, image_size] {
            return Err(Error::shape("pixels", format!("[B, {num_channels}, {image_size}, {image_size}]"), &size));
        }
        let stride = [patch_size; 2];
        let patches = pixels.f_conv2d::<&Tensor>(&self.patches, None, stride, [0, 0], [1, 1], 1)?;
        let class = self.class.f_expand([size[0], 1, width], false)?;
        let tokens = Tensor::f_cat(&[class, patches.f_flatten(2, 3)?.f_transpose(1, 2)?], 1)?;
        let mut x = self.first_norm.forward(&tokens.f_add(&self.positions)?)?;
        // Only the class token is read, so the last layer computes no other.
        if let Some((last, others)) = self.layers.split_last() {
            for layer in others {
                x = layer.forward(&x, false)?;
            }
            x = last.first(&x)?;
        }
        self.projection.forward(&self.final_norm.forward(&x.f_select(1, 0)?)?)
    }
}
