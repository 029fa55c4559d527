//! Convolutions.

use advdmd_sdk::Result;
use tch::Tensor;

use crate::Params;

/// A two-dimensional convolution with a square kernel and a bias.
#[derive(Debug)]
pub struct Conv2d {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
    padding: i64,
}

impl Conv2d {
    /// `weight` `[outputs, inputs, kernel, kernel]` and `bias` `[outputs]` of the path; stride 1, and padded so that an
    /// odd kernel keeps the image's size.
    ///
    /// # Errors
    /// A missing or misshapen weight.
    pub fn new(inputs: i64, outputs: i64, kernel: i64, p: &Params<'_>) -> Result<Self> {
        Ok(Self {
            weight: p.get("weight", &[outputs, inputs, kernel, kernel])?,
            bias: p.get("bias", &[outputs])?,
            stride: 1,
            padding: kernel / 2,
        })
    }

    /// The same with another stride and padding (zeros on all sides).
    #[must_use]
    pub fn strided(self, stride: i64, padding: i64) -> Self {
        Self { stride, padding, ..self }
    }

    /// `[B, inputs, H, W]` to `[B, outputs, H', W']`.
    ///
    /// # Errors
    /// libtorch's, when channels or types do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        Ok(x.f_conv2d(&self.weight, Some(&self.bias), stride, padding, [1, 1], 1)?)
    }
}
