//! What encoder and decoder are made of.

use advdmd_nn::{Conv2d, GroupNorm, Linear, Params};
use advdmd_sdk::Result;
use tch::Tensor;

use super::VaeConfig;

/// The epsilon of every normalisation (diffusers `autoencoders/vae.py`).
const EPS: f64 = 1e-6;

/// diffusers' `ResnetBlock2D`: twice normalised, activated and convolved, and added to the input.
#[derive(Debug)]
pub struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    /// Where the number of channels changes.
    shortcut: Option<Conv2d>,
}

impl Resnet {
    /// The block at the path.
    ///
    /// # Errors
    /// A missing or misshapen weight.
    pub fn new(config: &VaeConfig, inputs: i64, outputs: i64, p: &Params<'_>) -> Result<Self> {
        Ok(Self {
            norm1: group_norm(config, inputs, &p.pp("norm1"))?,
            conv1: Conv2d::new(inputs, outputs, 3, &p.pp("conv1"))?,
            norm2: group_norm(config, outputs, &p.pp("norm2"))?,
            conv2: Conv2d::new(outputs, outputs, 3, &p.pp("conv2"))?,
            shortcut: (inputs != outputs)
                .then(|| Conv2d::new(inputs, outputs, 1, &p.pp("conv_shortcut")))
                .transpose()?,
        })
    }

    /// `[B, inputs, H, W]` to `[B, outputs, H, W]`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let hidden = self.conv1.forward(&self.norm1.forward(x)?.f_silu()?)?;
        let hidden = self.conv2.forward(&self.norm2.forward(&hidden)?.f_silu()?)?;
        match &self.shortcut {
            Some(shortcut) => Ok(shortcut.forward(x)?.f_add(&hidden)?),
            None => Ok(x.f_add(&hidden)?),
        }
    }
}

/// The lowest resolution: two residual blocks, with attention of one head between them in most models.
#[derive(Debug)]
pub struct MidBlock {
    resnets: [Resnet; 2],
    attention: Option<Attention>,
}

#[derive(Debug)]
struct Attention {
    norm: GroupNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
}

impl MidBlock {
    /// The block at the path.
    ///
    /// # Errors
    /// A missing or misshapen weight.
    pub fn new(config: &VaeConfig, channels: i64, p: &Params<'_>) -> Result<Self> {
        let resnet = |index| Resnet::new(config, channels, channels, &p.pp("resnets").pp(index));
        Ok(Self {
            resnets: [resnet(0)?, resnet(1)?],
            attention: config
                .mid_block_add_attention
                .then(|| Attention::new(config, channels, &p.pp("attentions.0")))
                .transpose()?,
        })
    }

    /// `[B, C, h, w]` to the same shape.
    ///
    /// # Errors
    /// libtorch's.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.resnets[0].forward(x)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(&x)?;
        }
        self.resnets[1].forward(&x)
    }
}

impl Attention {
    fn new(config: &VaeConfig, channels: i64, p: &Params<'_>) -> Result<Self> {
        let linear = |name: &str| p.pp(name).linear(channels, channels);
        Ok(Self {
            norm: group_norm(config, channels, &p.pp("group_norm"))?,
            query: linear("to_q")?,
            key: linear("to_k")?,
            value: linear("to_v")?,
            output: linear("to_out.0")?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = x.size4()?;
        let tokens = self.norm.forward(x)?.f_flatten(2, 3)?.f_transpose(1, 2)?; // [B, h w, C]
        let head = |linear: &Linear| -> Result<Tensor> { Ok(linear.forward(&tokens)?.f_unsqueeze(1)?) };
        let (query, key, value) = (head(&self.query)?, head(&self.key)?, head(&self.value)?);
        let attended =
            Tensor::f_scaled_dot_product_attention(&query, &key, &value, None::<&Tensor>, 0.0, false, None, false)?;
        let tokens = self.output.forward(&attended.f_squeeze_dim(1)?)?;
        Ok(tokens.f_transpose(1, 2)?.f_unflatten(2, [height, width])?.f_add(x)?)
    }
}

/// The normalisation at the path.
///
/// # Errors
/// A missing or misshapen weight.
pub fn group_norm(config: &VaeConfig, channels: i64, p: &Params<'_>) -> Result<GroupNorm> {
    GroupNorm::new(config.norm_num_groups, channels, EPS, p)
}
