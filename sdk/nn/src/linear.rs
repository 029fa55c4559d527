//! Linear layers, with or without a low-rank update.

use advdmd_sdk::Result;
use tch::Tensor;

/// `y = x W^T + b`, plus the update of its [`Lora`].
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    lora: Option<Lora>,
}

/// A low-rank update `scale x A^T B^T` of a linear layer (Hu et al., arXiv:2106.09685, with `scale = alpha / rank`).
#[derive(Debug)]
pub struct Lora {
    a: Tensor,
    b: Tensor,
    scale: f64,
}

impl Linear {
    /// From `weight` `[outputs, inputs]`, `bias` `[outputs]`, and a `LoRA` of these sizes.
    pub fn new(weight: Tensor, bias: Option<Tensor>, lora: Option<Lora>) -> Self {
        Self { weight, bias, lora }
    }

    /// `[..., inputs]` to `[..., outputs]`.
    ///
    /// # Errors
    /// libtorch's, when the last dimension or the type does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.f_linear(&self.weight, self.bias.as_ref())?;
        match &self.lora {
            Some(lora) => lora.add_to(&y, x),
            None => Ok(y),
        }
    }
}

impl Lora {
    /// From A `[rank, inputs]`, B `[outputs, rank]` and the factor of their product.
    pub fn new(a: Tensor, b: Tensor, scale: f64) -> Self {
        Self { a, b, scale }
    }

    /// `y + scale x A^T B^T`, computed in the type of `x`: the factors stay float32, so that small steps are not lost.
    fn add_to(&self, y: &Tensor, x: &Tensor) -> Result<Tensor> {
        let kind = x.f_kind()?;
        let [a, b] = [self.a.f_to_kind(kind)?, self.b.f_to_kind(kind)?];
        // Scaled where it is narrow.
        let narrow = x.f_linear::<&Tensor>(&a, None)?.f_mul_scalar(self.scale)?.f_flatten(0, -2)?;
        Ok(y.f_flatten(0, -2)?.f_addmm(&narrow, &b.f_transpose(0, 1)?)?.f_view(&*y.size())?)
    }
}
