//! Normalisations, as diffusers and transformers compute them.

use advdmd_sdk::Result;
use tch::{Kind, Tensor};

use crate::Params;

/// The epsilon of every normalisation in SD3 (diffusers `transformer_sd3.py`).
pub const EPS: f64 = 1e-6;

/// Layer normalisation over the last dimension, without affine parameters, epsilon 1e-6.
///
/// # Errors
/// libtorch's.
pub fn layer_norm(x: &Tensor) -> Result<Tensor> {
    let width = x.size().last().copied().unwrap_or_default();
    Ok(x.f_layer_norm([width], None::<&Tensor>, None, EPS, true)?)
}

/// `x (1 + scale) + shift` in one pass: `x` `[B, N, C]`, `shift` and `scale` `[B, 1, C]`
/// (adaLN: Peebles and Xie, arXiv:2212.09748).
///
/// # Errors
/// libtorch's.
pub fn modulate(x: &Tensor, shift: &Tensor, scale: &Tensor) -> Result<Tensor> {
    Ok(shift.f_addcmul(x, &scale.f_add_scalar(1.0)?)?)
}

/// Root-mean-square normalisation over the last dimension with a learned gain (Zhang and Sennrich, arXiv:1910.07467).
#[derive(Debug)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// With gain `weight` `[C]`.
    pub fn new(weight: Tensor, eps: f64) -> Self {
        Self { weight, eps }
    }

    /// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension of `[..., C]`; the mean and the quotient in
    /// float32, the product in the weight's type, as diffusers' `RMSNorm`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(normalize(x, self.eps)?.f_to_kind(self.weight.f_kind()?)?.f_mul(&self.weight)?)
    }
}

/// `x / sqrt(mean(x^2) + eps)` over the last dimension, in float32.
fn normalize(x: &Tensor, eps: f64) -> Result<Tensor> {
    let wide = x.f_to_kind(Kind::Float)?;
    let mean_square = wide.f_square()?.f_mean_dim(-1, true, None)?;
    Ok(wide.f_mul(&mean_square.f_add_scalar(eps)?.f_rsqrt()?)?)
}

/// Layer normalisation over the last dimension with learned gain and shift (Ba et al., arXiv:1607.06450).
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// `weight` and `bias` `[width]` of the path.
    ///
    /// # Errors
    /// A missing or misshapen weight.
    pub fn new(width: i64, eps: f64, p: &Params<'_>) -> Result<Self> {
        Ok(Self { weight: p.get("weight", &[width])?, bias: p.get("bias", &[width])?, eps })
    }

    /// `[..., width]` to `[..., width]`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_layer_norm(&*self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, true)?)
    }
}

/// Normalisation of an image over groups of channels, with learned gain and shift per channel (Wu and He,
/// arXiv:1803.08494).
#[derive(Debug)]
pub struct GroupNorm {
    groups: i64,
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl GroupNorm {
    /// `weight` and `bias` `[channels]` of the path.
    ///
    /// # Errors
    /// A missing or misshapen weight.
    pub fn new(groups: i64, channels: i64, eps: f64, p: &Params<'_>) -> Result<Self> {
        Ok(Self { groups, weight: p.get("weight", &[channels])?, bias: p.get("bias", &[channels])?, eps })
    }

    /// `[B, channels, ...]` to the same shape.
    ///
    /// # Errors
    /// libtorch's, when the groups do not divide the channels.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_group_norm(self.groups, Some(&self.weight), Some(&self.bias), self.eps, true)?)
    }
}
