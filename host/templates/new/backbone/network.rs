//! The velocity network: patches, and blocks of two linear layers that see the mean of all patches, sigma and the prompt.

use advdmd_nn::{Linear, Params, RandomStream, Weights, layer_norm};
use advdmd_sdk::{Conditioning, Denoiser, Error, Prediction, Request, Result};
use tch::{Kind, Tensor};

use crate::Architecture;

/// Width of a prompt's embedding.
pub const TEXT_WIDTH: i64 = 64;

/// Sines and cosines that stand for sigma.
const FREQUENCIES: i64 = 16;

/// The layers that a LoRA adapts where a configuration names none.
pub const LORA_TARGETS: [&str; 3] = ["widen", "mix", "narrow"];

/// Predicts `v = noise - x0`.
#[derive(Debug)]
pub struct Network {
    architecture: Architecture,
    patches: Linear,
    positions: Tensor,
    sigma: Linear,
    text: Linear,
    blocks: Vec<Block>,
    output: Linear,
    kind: Kind,
    parameters: Vec<(String, Tensor)>,
}

/// `x + narrow(silu(widen(norm(x) + condition) + mix(mean)))`.
#[derive(Debug)]
struct Block {
    widen: Linear,
    mix: Linear,
    narrow: Linear,
}

impl Network {
    /// The network over the weights and the tuning of `p`.
    ///
    /// # Errors
    /// Weights that are missing or of another shape.
    pub fn new(architecture: &Architecture, p: &Params<'_>) -> Result<Self> {
        let Architecture { image_size, patch_size, width, depth } = *architecture;
        let (values, grid) = (3 * patch_size * patch_size, image_size / patch_size);
        let block = |index: usize| {
            let p = p.pp("blocks").pp(index);
            Ok(Block {
                widen: p.pp("widen").linear(width, 2 * width)?,
                mix: p.pp("mix").linear(width, 2 * width)?,
                narrow: p.pp("narrow").linear(2 * width, width)?,
            })
        };
        Ok(Self {
            architecture: architecture.clone(),
            patches: p.pp("patches").linear(values, width)?,
            positions: p.get("positions", &[1, grid * grid, width])?,
            sigma: p.pp("sigma").linear(2 * FREQUENCIES, width)?,
            text: p.pp("text").linear(TEXT_WIDTH, width)?,
            blocks: (0..depth).map(block).collect::<Result<_>>()?,
            output: p.pp("output").linear(width, values)?,
            kind: Kind::Float,
            parameters: p.parameters(),
        })
    }

    /// Random weights, the same for the same `seed`: normal, with a standard deviation that keeps the size of what flows.
    ///
    /// # Errors
    /// libtorch's.
    pub fn random(architecture: &Architecture, seed: u64) -> Result<Weights> {
        let layout = Params::record(|p| Self::new(architecture, p))?;
        let draw = |(name, shape): (String, Vec<i64>)| {
            let inputs = shape.last().copied().unwrap_or(1).max(1);
            let std = if name.ends_with(".bias") { 0.0 } else { (inputs as f32).sqrt().recip() };
            Ok((name.clone(), RandomStream::new(seed, &name).normal(&shape, std)?))
        };
        layout.into_iter().map(draw).collect()
    }

    /// Sets the type of the weights that it was made of.
    pub(crate) fn computing_in(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }

    fn check(&self, x: &Tensor, sigma: &Tensor, request: Request<'_>) -> Result<()> {
        let (size, side) = (x.size(), self.architecture.image_size);
        if size.len() != 4 || size[1..] != [3, side, side] {
            return Err(Error::shape("latents", format!("[B, 3, {side}, {side}]"), &size));
        }
        if sigma.size() != [size[0]] {
            return Err(Error::shape("sigma", format!("[{}]", size[0]), &sigma.size()));
        }
        let depth = self.blocks.len();
        match request.taps.iter().find(|&&tap| tap >= depth) {
            Some(tap) => Err(Error::invalid(format!("tap: expected a block below {depth}, found {tap}"))),
            None => Ok(()),
        }
    }

    /// What all patches are told: sigma and the prompt, `[B, 1, width]`.
    fn condition(&self, sigma: &Tensor, conditioning: &Conditioning) -> Result<Tensor> {
        let pooled = conditioning.pooled.as_ref();
        let pooled = pooled.ok_or_else(|| Error::invalid("the conditioning has no pooled embedding"))?;
        let rates = Tensor::f_arange(FREQUENCIES, (Kind::Float, sigma.device()))?.f_mul_scalar(0.4)?.f_exp()?;
        let angles = sigma.f_to_kind(Kind::Float)?.f_unsqueeze(1)?.f_mul(&rates)?;
        let waves = Tensor::f_cat(&[angles.f_sin()?, angles.f_cos()?], 1)?.f_to_kind(self.kind)?;
        let condition = self.sigma.forward(&waves.f_unsqueeze(1)?)?;
        Ok(condition.f_add(&self.text.forward(&pooled.f_to_kind(self.kind)?.f_unsqueeze(1)?)?)?)
    }
}

impl Denoiser for Network {
    fn predict(
        &self,
        x: &Tensor,
        sigma: &Tensor,
        conditioning: &Conditioning,
        request: Request<'_>,
    ) -> Result<Prediction> {
        self.check(x, sigma, request)?;
        let Architecture { image_size, patch_size, width, .. } = self.architecture;
        let (batch, grid) = (x.size()[0], image_size / patch_size);
        // Features alone let the network stop at the deepest tap.
        let depth = match request.velocity {
            true => self.blocks.len(),
            false => request.taps.iter().max().map_or(0, |tap| tap + 1),
        };

        let patches = x.f_to_kind(self.kind)?.f_view([batch, 3, grid, patch_size, grid, patch_size])?;
        let patches = patches.f_permute([0, 2, 4, 1, 3, 5])?.f_reshape([batch, grid * grid, -1])?;
        let mut tokens = self.patches.forward(&patches)?.f_add(&self.positions)?;
        let condition = self.condition(sigma, conditioning)?;

        let mut features = Vec::with_capacity(request.taps.len());
        for (index, block) in self.blocks[..depth].iter().enumerate() {
            let normed = layer_norm(&tokens)?.f_add(&condition)?;
            let mean = normed.f_mean_dim([1i64].as_slice(), true, self.kind)?;
            let hidden = block.widen.forward(&normed)?.f_add(&block.mix.forward(&mean)?)?.f_silu()?;
            tokens = tokens.f_add(&block.narrow.forward(&hidden)?)?;
            if request.taps.contains(&index) {
                let map = tokens.f_transpose(1, 2)?.f_reshape([batch, width, grid, grid])?;
                features.push(map.f_to_kind(Kind::Float)?);
            }
        }
        if !request.velocity {
            return Ok(Prediction { velocity: None, features });
        }
        let values = self.output.forward(&layer_norm(&tokens)?)?.f_to_kind(Kind::Float)?;
        let velocity = values.f_view([batch, grid, grid, 3, patch_size, patch_size])?;
        let velocity = velocity.f_permute([0, 3, 1, 4, 2, 5])?.f_reshape([batch, 3, image_size, image_size])?;
        Ok(Prediction { velocity: Some(velocity), features })
    }

    fn parameters(&self) -> Vec<(String, Tensor)> {
        self.parameters.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
    }
}
