//! The whole network.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use advdmd_sdk::{Conditioning, Denoiser, Error, Prediction, Request, Result};
use tch::{Kind, Tensor};

use super::block::{Block, chunks};
use super::{Init, MmditConfig};
use crate::embed::{PatchEmbed, TimestepTextEmbedding};
use crate::params::LORA_PREFIX;
use crate::{Layout, Linear, Params, Weights, checkpoint, layer_norm, modulate};

/// The layers that a `LoRA` adapts by default: the eight attention projections (Flow-GRPO's SD3 recipe).
pub const LORA_TARGETS: [&str; 8] = [
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
];

/// Path of the blocks.
const BLOCKS: &str = "transformer_blocks";

/// The velocity network of SD3: diffusers' `SD3Transformer2DModel`.
#[derive(Debug)]
pub struct Mmdit {
    config: MmditConfig,
    patch_embed: PatchEmbed,
    time_text_embed: TimestepTextEmbedding,
    context_embedder: Linear,
    /// Shared with the graphs of backward passes to come, which run on another thread where the device has its own.
    blocks: Vec<Arc<Mutex<Block>>>,
    checkpointing: bool,
    output_modulation: Linear,
    output: Linear,
    /// Compute type, that of the weights.
    kind: Kind,
    parameters: Vec<(String, Tensor)>,
}

impl Mmdit {
    /// The network over the weights and the tuning of `p`.
    ///
    /// # Errors
    /// A configuration whose sizes do not fit; weights whose names and shapes are not exactly the configuration's, in
    /// one error that lists them all.
    pub fn new(config: &MmditConfig, p: &Params<'_>) -> Result<Self> {
        p.check(&Self::layout(config)?, "MMDiT")?;
        let mut model = Self::build(config, p)?;
        model.kind = model.patch_embed.kind()?;
        Ok(model)
    }

    /// Names and shapes of the weights.
    ///
    /// # Errors
    /// A configuration whose sizes do not fit.
    pub fn layout(config: &MmditConfig) -> Result<Layout> {
        config.check()?;
        Params::record(|p| Self::build(config, p))
    }

    /// Random weights to train from scratch: float32, on the CPU, the same for the same `seed`.
    ///
    /// # Errors
    /// A configuration whose sizes do not fit.
    pub fn init(config: &MmditConfig, scheme: Init, seed: u64) -> Result<Weights> {
        scheme.weights(config, &Self::layout(config)?, seed)
    }

    fn build(config: &MmditConfig, p: &Params<'_>) -> Result<Self> {
        let dim = config.dim();
        let patch_embed =
            PatchEmbed::new(config.in_channels, config.patch_size, dim, config.pos_embed_max_size, &p.pp("pos_embed"))?;
        let time_text_embed = TimestepTextEmbedding::new(dim, config.pooled_projection_dim, &p.pp("time_text_embed"))?;
        let context_embedder = p.pp("context_embedder").linear(config.joint_attention_dim, dim)?;
        let block = |i| Ok(Arc::new(Mutex::new(Block::new(config, i, &p.pp(format_args!("{BLOCKS}.{i}")))?)));
        let blocks = (0..config.num_layers).map(block).collect::<Result<_>>()?;
        let patch_values = config.patch_size * config.patch_size * config.out_channels();
        Ok(Self {
            config: config.clone(),
            patch_embed,
            time_text_embed,
            context_embedder,
            blocks,
            checkpointing: false,
            output_modulation: p.pp("norm_out.linear").linear(dim, 2 * dim)?,
            output: p.pp("proj_out").linear(dim, patch_values)?,
            kind: Kind::Float,
            parameters: p.parameters(),
        })
    }

    /// Whether blocks keep only their inputs for the backward pass and compute the rest again ([`checkpoint()`]): more
    /// time, less memory, the same gradients. Off at first.
    #[must_use]
    pub fn with_checkpointing(mut self, on: bool) -> Self {
        self.checkpointing = on;
        self
    }

    /// The network's configuration.
    pub fn config(&self) -> &MmditConfig {
        &self.config
    }

    /// Handles on the trainable tensors, by published name; none when frozen.
    ///
    /// In the last block nothing reads the text's queries, so its `attn.add_q_proj` and `attn.norm_added_q` (or their
    /// `LoRA`) never receive a gradient.
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        self.parameters.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
    }

    /// Predicts the velocity `noise - x0` and/or the features of some blocks; without a velocity the network stops
    /// after the deepest tap.
    ///
    /// # Shapes
    /// `latents` `[B, C, H, W]`, `timestep` `[B]` (1000 sigma), `context` `[B, L, D]`, `pooled` `[B, P]`; the velocity
    /// `[B, C_out, H, W]`, each feature map `[B, dim, h, w]` with `h = H / patch_size`, all float32. Inputs of any
    /// floating type on the weights' device; the computation is in the weights' type. Gradients flow to `latents`,
    /// `context` and `pooled` as well as to the parameters.
    ///
    /// # Errors
    /// A wrong shape, a tap beyond the depth; libtorch's.
    pub fn forward(
        &self,
        latents: &Tensor,
        timestep: &Tensor,
        context: &Tensor,
        pooled: &Tensor,
        request: Request<'_>,
    ) -> Result<Prediction> {
        let (h, w) = self.check_inputs(latents, timestep, context, pooled, request.taps)?;
        let depth =
            if request.velocity { self.blocks.len() } else { request.taps.iter().max().map_or(0, |&tap| tap + 1) };
        if depth == 0 {
            return Ok(Prediction::default());
        }
        let conditioning = self.time_text_embed.forward(timestep, &pooled.f_to_kind(self.kind)?)?;
        // Every block and the output begin with SiLU; once is enough.
        let conditioning = conditioning.f_silu()?.f_unsqueeze(1)?;
        let mut image = self.patch_embed.forward(&latents.f_to_kind(self.kind)?)?;
        let mut text = self.context_embedder.forward(&context.f_to_kind(self.kind)?)?;
        let mut tapped: Vec<Option<Tensor>> = request.taps.iter().map(|_| None).collect();
        for (index, block) in self.blocks[..depth].iter().enumerate() {
            let (next_image, next_text) = if self.checkpointing {
                self.checkpointed(index, block, [&image, &text, &conditioning], index + 1 < depth)?
            } else {
                hold(block).forward(&image, &text, &conditioning, index + 1 < depth)?
            };
            image = next_image;
            if let Some(next) = next_text {
                text = next;
            }
            for (slot, _) in tapped.iter_mut().zip(request.taps).filter(|(_, tap)| **tap == index) {
                *slot = Some(feature_map(&image, h, w)?);
            }
        }
        let velocity = request.velocity.then(|| self.emit(&image, &conditioning, h, w)).transpose()?;
        Ok(Prediction { velocity, features: tapped.into_iter().flatten().collect() })
    }

    /// As [`Block::forward`], of which autograd keeps the inputs alone.
    fn checkpointed(
        &self,
        index: usize,
        block: &Arc<Mutex<Block>>,
        inputs: [&Tensor; 3],
        want_text: bool,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let inside = format!("{BLOCKS}.{index}.");
        let trained = self
            .parameters
            .iter()
            .filter(|(name, _)| name.strip_prefix(LORA_PREFIX).unwrap_or(name).starts_with(&inside));
        let trained: Vec<Tensor> = trained.map(|(_, tensor)| tensor.shallow_clone()).collect();
        let block = Arc::clone(block);
        let outputs = if want_text { 2 } else { 1 };
        let mut outputs = checkpoint(&inputs, &trained, outputs, move |inputs| {
            let (image, text) = hold(&block).forward(&inputs[0], &inputs[1], &inputs[2], want_text)?;
            Ok([Some(image), text].into_iter().flatten().collect())
        })?
        .into_iter();
        let image = outputs.next().ok_or_else(|| Error::failed("a block gave no image tokens"))?;
        Ok((image, outputs.next()))
    }

    /// Image tokens `[B, h w, C]` to the velocity `[B, C_out, H, W]`.
    fn emit(&self, image: &Tensor, conditioning: &Tensor, h: i64, w: i64) -> Result<Tensor> {
        // diffusers' AdaLayerNormContinuous: scale before shift
        let modulation = chunks(&self.output_modulation, conditioning, 2)?;
        let tokens = self.output.forward(&modulate(&layer_norm(image)?, &modulation[1], &modulation[0])?)?;
        let (patch, channels) = (self.config.patch_size, self.config.out_channels());
        let patches = tokens.f_to_kind(Kind::Float)?.f_view([-1, h, w, patch, patch, channels])?;
        Ok(patches.f_permute([0, 5, 1, 3, 2, 4])?.f_reshape([-1, channels, h * patch, w * patch])?)
    }

    fn check_inputs(
        &self,
        latents: &Tensor,
        timestep: &Tensor,
        context: &Tensor,
        pooled: &Tensor,
        taps: &[usize],
    ) -> Result<(i64, i64)> {
        let config = &self.config;
        let size = latents.size();
        let grid = self.patch_embed.grid(&size)?;
        let (batch, channels) = (size[0], config.in_channels);
        if size[1] != channels {
            return Err(Error::shape("latents", format!("[B, {channels}, H, W]"), &size));
        }
        if timestep.size() != [batch] {
            return Err(Error::shape("timestep", format!("[{batch}]"), &timestep.size()));
        }
        let (found, width) = (context.size(), config.joint_attention_dim);
        if found.len() != 3 || found[0] != batch || found[2] != width {
            return Err(Error::shape("context", format!("[{batch}, L, {width}]"), &found));
        }
        if pooled.size() != [batch, config.pooled_projection_dim] {
            let expected = format!("[{batch}, {}]", config.pooled_projection_dim);
            return Err(Error::shape("pooled", expected, &pooled.size()));
        }
        match taps.iter().find(|&&tap| tap >= self.blocks.len()) {
            Some(tap) => Err(Error::invalid(format!("tap: expected a block below {}, found {tap}", self.blocks.len()))),
            None => Ok(grid),
        }
    }
}

impl Denoiser for Mmdit {
    fn predict(
        &self,
        x: &Tensor,
        sigma: &Tensor,
        conditioning: &Conditioning,
        request: Request<'_>,
    ) -> Result<Prediction> {
        let pooled = conditioning.pooled.as_ref();
        let pooled = pooled.ok_or_else(|| Error::invalid("the conditioning holds no pooled embedding"))?;
        // SD3's network reads the unrounded timestep 1000 sigma.
        self.forward(x, &sigma.f_mul_scalar(1000.0)?, &conditioning.context, pooled, request)
    }

    fn parameters(&self) -> Vec<(String, Tensor)> {
        Self::parameters(self)
    }
}

/// The block; one that a panic went through holds the same weights as before.
fn hold(block: &Mutex<Block>) -> MutexGuard<'_, Block> {
    block.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tokens `[B, h w, C]` as a map `[B, C, h, w]`, float32; a view where the tokens are float32.
fn feature_map(tokens: &Tensor, h: i64, w: i64) -> Result<Tensor> {
    Ok(tokens.f_to_kind(Kind::Float)?.f_transpose(1, 2)?.f_unflatten(2, [h, w])?)
}
