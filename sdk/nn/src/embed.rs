//! Embeddings of the noise level, the pooled text and the image patches.

use std::cell::RefCell;
use std::collections::HashMap;
use std::f64::consts::LN_10;

use advdmd_sdk::{Error, Result};
use tch::{Device, Kind, Tensor};

use crate::{Linear, Params};

/// Sinusoidal features of a timestep: diffusers' `Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)`.
#[derive(Debug)]
pub struct Timesteps {
    /// `10000^(-k / 128)`, `[1, 128]`; moved to the input's device on first use.
    frequencies: RefCell<Tensor>,
}

impl Timesteps {
    /// Width of the features.
    pub const CHANNELS: i64 = 256;

    /// Prepares the frequencies.
    ///
    /// # Errors
    /// libtorch's.
    pub fn new() -> Result<Self> {
        let half = Self::CHANNELS / 2;
        // In float32 step by step, as diffusers, so that the angles at t = 1000 agree to the last bit.
        let exponent = Tensor::f_arange(half, (Kind::Float, Device::Cpu))?.f_mul_scalar(-4.0 * LN_10)?;
        let frequencies = exponent.f_div_scalar(half as f64)?.f_exp()?.f_unsqueeze(0)?;
        Ok(Self { frequencies: RefCell::new(frequencies) })
    }

    /// `[cos(t f), sin(t f)]` of `timestep` `[B]` (1000 sigma): `[B, 256]`, float32.
    ///
    /// # Errors
    /// libtorch's.
    pub fn forward(&self, timestep: &Tensor) -> Result<Tensor> {
        let mut frequencies = self.frequencies.borrow_mut();
        if frequencies.device() != timestep.device() {
            *frequencies = frequencies.f_to(timestep.device())?;
        }
        let angles = timestep.f_to_kind(Kind::Float)?.f_unsqueeze(1)?.f_mul(&frequencies)?;
        Ok(Tensor::f_cat(&[angles.f_cos()?, angles.f_sin()?], 1)?)
    }
}

/// Linear, `SiLU`, linear: the shape of both the timestep's and the pooled text's embedder.
#[derive(Debug)]
struct Embedder {
    linear_1: Linear,
    linear_2: Linear,
}

impl Embedder {
    fn new(inputs: i64, dim: i64, p: &Params<'_>) -> Result<Self> {
        Ok(Self { linear_1: p.pp("linear_1").linear(inputs, dim)?, linear_2: p.pp("linear_2").linear(dim, dim)? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.linear_2.forward(&self.linear_1.forward(x)?.f_silu()?)
    }
}

/// Sum of the embedded timestep and the embedded pooled text: diffusers' `CombinedTimestepTextProjEmbeddings`.
#[derive(Debug)]
pub struct TimestepTextEmbedding {
    timesteps: Timesteps,
    timestep_embedder: Embedder,
    text_embedder: Embedder,
}

impl TimestepTextEmbedding {
    /// Of width `dim`, from a pooled text of width `pooled_dim`.
    ///
    /// # Errors
    /// A missing or misshapen weight.
    pub fn new(dim: i64, pooled_dim: i64, p: &Params<'_>) -> Result<Self> {
        Ok(Self {
            timesteps: Timesteps::new()?,
            timestep_embedder: Embedder::new(Timesteps::CHANNELS, dim, &p.pp("timestep_embedder"))?,
            text_embedder: Embedder::new(pooled_dim, dim, &p.pp("text_embedder"))?,
        })
    }

    /// `timestep` `[B]` (1000 sigma) and `pooled` `[B, P]` to `[B, dim]`, in the type of `pooled`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn forward(&self, timestep: &Tensor, pooled: &Tensor) -> Result<Tensor> {
        let features = self.timesteps.forward(timestep)?.f_to_kind(pooled.f_kind()?)?;
        Ok(self.timestep_embedder.forward(&features)?.f_add(&self.text_embedder.forward(pooled)?)?)
    }
}

/// Patches of a latent as tokens with their positions: diffusers' `PatchEmbed` with a stored position table, of which
/// the centre is used, never interpolated.
#[derive(Debug)]
pub struct PatchEmbed {
    weight: Tensor,
    bias: Tensor,
    positions: Tensor,
    max_size: i64,
    patch: i64,
    /// Centres of the table already cut out, by grid `(h, w)`: `[1, h w, dim]`.
    centres: RefCell<HashMap<(i64, i64), Tensor>>,
}

impl PatchEmbed {
    /// For latents of `channels`, square patches of side `patch`, and a table of `max_size x max_size` positions.
    ///
    /// # Errors
    /// A missing or misshapen weight.
    pub fn new(channels: i64, patch: i64, dim: i64, max_size: i64, p: &Params<'_>) -> Result<Self> {
        Ok(Self {
            weight: p.get("proj.weight", &[dim, channels, patch, patch])?,
            bias: p.get("proj.bias", &[dim])?,
            positions: p.buffer("pos_embed", &[1, max_size * max_size, dim])?,
            max_size,
            patch,
            centres: RefCell::default(),
        })
    }

    /// Type of the weights.
    ///
    /// # Errors
    /// libtorch's.
    pub fn kind(&self) -> Result<Kind> {
        Ok(self.weight.f_kind()?)
    }

    /// Rows and columns of tokens for a latent `[B, C, H, W]`.
    ///
    /// # Errors
    /// Sides that are no multiple of the patch, or larger than the position table.
    pub fn grid(&self, latent: &[i64]) -> Result<(i64, i64)> {
        let (patch, max) = (self.patch, self.max_size * self.patch);
        let fits = |side: i64| side > 0 && side % patch == 0 && side <= max;
        match *latent {
            [_, _, height, width] if fits(height) && fits(width) => Ok((height / patch, width / patch)),
            _ => {
                Err(Error::shape("latents", format!("[B, C, H, W], H and W multiples of {patch} up to {max}"), latent))
            }
        }
    }

    /// `[B, C, H, W]` to tokens `[B, h w, dim]`, row by row.
    ///
    /// # Errors
    /// As [`PatchEmbed::grid`]; libtorch's.
    pub fn forward(&self, latent: &Tensor) -> Result<Tensor> {
        let size = latent.size();
        let (h, w) = self.grid(&size)?;
        let (batch, channels, patch) = (size[0], size[1], self.patch);
        // A convolution whose stride is its kernel is one product over patches, and the tokens come out in order.
        let patches = latent.f_reshape([batch, channels, h, patch, w, patch])?.f_permute([0, 2, 4, 1, 3, 5])?;
        let patches = patches.f_reshape([batch, h * w, channels * patch * patch])?;
        let tokens = patches.f_linear(&self.weight.f_flatten(1, -1)?, Some(&self.bias))?;
        Ok(tokens.f_add(&self.centre(h, w)?)?)
    }

    fn centre(&self, h: i64, w: i64) -> Result<Tensor> {
        if let Some(centre) = self.centres.borrow().get(&(h, w)) {
            return Ok(centre.shallow_clone());
        }
        let (top, left) = ((self.max_size - h) / 2, (self.max_size - w) / 2);
        let table = self.positions.f_view([1, self.max_size, self.max_size, -1])?;
        let centre = table.f_narrow(1, top, h)?.f_narrow(2, left, w)?.f_reshape([1, h * w, -1])?;
        self.centres.borrow_mut().insert((h, w), centre.shallow_clone());
        Ok(centre)
    }
}

/// Two-dimensional sine-cosine positions of a `size x size` grid whose coordinates span `base` units:
/// `[1, size^2, dim]`, float32 (diffusers `get_2d_sincos_pos_embed`, after MAE, arXiv:2111.06377): first half of the
/// channels the column, second half the row, each `[sin, cos]`.
///
/// # Errors
/// A `dim` that is no multiple of 4; libtorch's.
pub fn sincos_positions(dim: i64, size: i64, base: i64) -> Result<Tensor> {
    if dim % 4 != 0 {
        return Err(Error::config(format!("position embedding: expected a width divisible by 4, found {dim}")));
    }
    let double = (Kind::Double, Device::Cpu);
    let omega = Tensor::f_arange(dim / 4, double)?.f_mul_scalar(-16.0 * LN_10 / dim as f64)?.f_exp()?;
    let coordinates = Tensor::f_arange(size, (Kind::Float, Device::Cpu))?.f_div_scalar(size as f64 / base as f64)?;
    let angles = coordinates.f_to_kind(Kind::Double)?.f_outer(&omega)?;
    let waves = Tensor::f_cat(&[angles.f_sin()?, angles.f_cos()?], 1)?; // [size, dim / 2]
    let columns = waves.f_unsqueeze(0)?.f_expand([size, size, dim / 2], false)?;
    let rows = waves.f_unsqueeze(1)?.f_expand([size, size, dim / 2], false)?;
    Ok(Tensor::f_cat(&[columns, rows], 2)?.f_reshape([1, size * size, dim])?.f_to_kind(Kind::Float)?)
}
