//! The transformer's feed-forward layer.

use advdmd_sdk::Result;
use tch::Tensor;

use crate::{Linear, Params};

/// Linear to four times the width, tanh-approximated GELU, linear back (diffusers `FeedForward`, `gelu-approximate`).
#[derive(Debug)]
pub struct FeedForward {
    project_in: Linear,
    project_out: Linear,
}

impl FeedForward {
    /// The layer of width `dim` at `net.0.proj` and `net.2` of the path.
    ///
    /// # Errors
    /// A missing or misshapen weight.
    pub fn new(dim: i64, p: &Params<'_>) -> Result<Self> {
        Ok(Self {
            project_in: p.pp("net.0.proj").linear(dim, 4 * dim)?,
            project_out: p.pp("net.2").linear(4 * dim, dim)?,
        })
    }

    /// `[B, N, C]` to `[B, N, C]`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.project_out.forward(&self.project_in.forward(x)?.f_gelu("tanh")?)
    }
}
