//! All heads together.

use std::f64::consts::PI;

use advdmd_sdk::Result;
use tch::{Device, Kind, Tensor};

use crate::head::{Geometry, Head, normalize};

/// Cosine waves that embed the noise level; enough to tell the steps of a schedule apart.
pub(crate) const WAVES: i64 = 16;

/// One head for each tapped block.
#[derive(Debug)]
pub struct Heads {
    heads: Vec<Head>,
    /// `pi, 2 pi, ...`, `[1, waves]`; empty where the heads do not know the noise level.
    frequencies: Tensor,
}

impl Heads {
    /// `count` heads with weights drawn from `seed`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn new(count: usize, geometry: Geometry, seed: u64, device: Device) -> Result<Self> {
        let head = |i| Head::new(geometry, seed, &format!("heads.{i}"), device);
        let heads = (0..count).map(head).collect::<Result<_>>()?;
        let frequencies: Vec<f32> = (1..=geometry.waves).map(|k| (PI * k as f64) as f32).collect();
        Ok(Self { heads, frequencies: Tensor::f_from_slice(&frequencies)?.f_view([1, -1])?.f_to(device)? })
    }

    /// Handles on the trainable tensors: `heads.{i}.conv.weight` and so on.
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        let of = |(i, head): (usize, &Head)| {
            head.parameters().map(move |(name, tensor)| (format!("heads.{i}.{name}"), tensor)).collect::<Vec<_>>()
        };
        self.heads.iter().enumerate().flat_map(of).collect()
    }

    /// The same heads over the same storage, without gradients to their parameters: a judge that does not learn.
    #[must_use]
    pub fn detach(&self) -> Self {
        let heads = self.heads.iter().map(Head::detach).collect();
        Self { heads, frequencies: self.frequencies.shallow_clone() }
    }

    /// Features normalised for [`Heads::logits`].
    ///
    /// # Errors
    /// libtorch's.
    pub fn normalize(features: &[Tensor]) -> Result<Vec<Tensor>> {
        features.iter().map(normalize).collect()
    }

    /// Logits `[B, N]` of all heads and places, from one [normalised](Heads::normalize) `[B, C, h, w]` for each head and
    /// noise levels `sigma` `[B]`. Each head has the same number of places, so a mean over N is a mean over heads of means
    /// over places.
    ///
    /// # Errors
    /// Wrong shapes, as libtorch sees them.
    pub fn logits(&self, normalized: &[Tensor], sigma: &Tensor) -> Result<Tensor> {
        let sigma = self.embed(sigma)?;
        let pairs = self.heads.iter().zip(normalized);
        let logits: Vec<_> = pairs.map(|(head, features)| head.forward(features, &sigma)).collect::<Result<_>>()?;
        Ok(Tensor::f_cat(&logits, 1)?)
    }

    /// `cos(k pi sigma)` for k = 1, 2, ...: with the bias a cosine series, in which any smooth function of a sigma in 0..1
    /// is a short sum. `[B]` -> `[B, waves]`.
    fn embed(&self, sigma: &Tensor) -> Result<Tensor> {
        Ok(sigma.f_to_kind(Kind::Float)?.f_view([-1, 1])?.f_mul(&self.frequencies)?.f_cos()?)
    }
}
