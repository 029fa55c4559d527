//! The two halves of the autoencoder.

use std::sync::{Arc, Mutex, PoisonError};

use advdmd_nn::{Conv2d, GroupNorm, Params, checkpoint};
use advdmd_sdk::Result;
use tch::Tensor;

use super::VaeConfig;
use super::blocks::{MidBlock, Resnet, group_norm};

/// Images to the moments of their latents: diffusers' `Encoder`.
#[derive(Debug)]
pub struct Encoder {
    conv_in: Conv2d,
    levels: Vec<Level>,
    mid: MidBlock,
    output: Output,
}

/// Latents to images: diffusers' `Decoder`.
#[derive(Debug)]
pub struct Decoder {
    conv_in: Conv2d,
    mid: MidBlock,
    levels: Vec<Level>,
    output: Output,
}

/// A block that the backward pass, which may run on a thread of its own, uses again.
type Shared = Arc<Mutex<Resnet>>;

/// One resolution: residual blocks, and the convolution of the step to the next one.
#[derive(Debug)]
struct Level {
    resnets: Vec<Shared>,
    resample: Option<Conv2d>,
}

/// Normalisation, activation and a last convolution.
#[derive(Debug)]
struct Output {
    norm: GroupNorm,
    conv: Conv2d,
}

impl Encoder {
    /// The encoder at the path.
    ///
    /// # Errors
    /// A missing or misshapen weight.
    pub fn new(config: &VaeConfig, p: &Params<'_>) -> Result<Self> {
        let widths = &config.block_out_channels;
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        let mut inputs = first;
        let mut levels = Vec::new();
        for (index, &width) in widths.iter().enumerate() {
            let p = p.pp("down_blocks").pp(index);
            let more = index + 1 < widths.len();
            let resample = more.then(|| Conv2d::new(width, width, 3, &p.pp("downsamplers.0.conv")));
            levels.push(Level {
                resnets: resnets(config, config.layers_per_block, inputs, width, &p)?,
                // Padded by hand: below and to the right only.
                resample: resample.transpose()?.map(|conv| conv.strided(2, 0)),
            });
            inputs = width;
        }
        Ok(Self {
            conv_in: Conv2d::new(config.in_channels, first, 3, &p.pp("conv_in"))?,
            levels,
            mid: MidBlock::new(config, last, &p.pp("mid_block"))?,
            output: Output::new(config, last, 2 * config.latent_channels, p)?,
        })
    }

    /// Images `[B, 3, H, W]` in -1..1 to means above logarithmic variances `[B, 2 C, H / f, W / f]`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.conv_in.forward(x)?;
        for level in &self.levels {
            x = level.forward(&x)?;
            if let Some(conv) = &level.resample {
                x = conv.forward(&x.f_constant_pad_nd([0, 1, 0, 1])?)?;
            }
        }
        self.output.forward(&self.mid.forward(&x)?)
    }
}

impl Decoder {
    /// The decoder at the path.
    ///
    /// # Errors
    /// A missing or misshapen weight.
    pub fn new(config: &VaeConfig, p: &Params<'_>) -> Result<Self> {
        let widths = &config.block_out_channels;
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        let mut inputs = last;
        let mut levels = Vec::new();
        for (index, &width) in widths.iter().rev().enumerate() {
            let p = p.pp("up_blocks").pp(index);
            let more = index + 1 < widths.len();
            let resample = more.then(|| Conv2d::new(width, width, 3, &p.pp("upsamplers.0.conv")));
            let resnets = resnets(config, config.layers_per_block + 1, inputs, width, &p)?;
            levels.push(Level { resnets, resample: resample.transpose()? });
            inputs = width;
        }
        Ok(Self {
            conv_in: Conv2d::new(config.latent_channels, last, 3, &p.pp("conv_in"))?,
            mid: MidBlock::new(config, last, &p.pp("mid_block"))?,
            levels,
            output: Output::new(config, first, config.out_channels, p)?,
        })
    }

    /// Latents `[B, C, h, w]` to images `[B, 3, f h, f w]` in about -1..1.
    ///
    /// # Errors
    /// libtorch's.
    pub fn forward(&self, z: &Tensor) -> Result<Tensor> {
        let mut x = self.mid.forward(&self.conv_in.forward(z)?)?;
        for level in &self.levels {
            x = level.forward(&x)?;
            if let Some(conv) = &level.resample {
                let (_, _, height, width) = x.size4()?;
                x = conv.forward(&x.f_upsample_nearest2d([2 * height, 2 * width], None, None)?)?;
            }
        }
        self.output.forward(&x)
    }
}

impl Level {
    /// Where gradients are to come, each block keeps its input alone: all activations of a large image would fill a device.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.resnets.iter().try_fold(x.shallow_clone(), |x, resnet| {
            let resnet = Arc::clone(resnet);
            let block = move |x: &[Tensor]| {
                let resnet = resnet.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(vec![resnet.forward(&x[0])?])
            };
            Ok(checkpoint(&[&x], &[], 1, block)?.remove(0))
        })
    }
}

impl Output {
    fn new(config: &VaeConfig, inputs: i64, outputs: i64, p: &Params<'_>) -> Result<Self> {
        Ok(Self {
            norm: group_norm(config, inputs, &p.pp("conv_norm_out"))?,
            conv: Conv2d::new(inputs, outputs, 3, &p.pp("conv_out"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.conv.forward(&self.norm.forward(x)?.f_silu()?)
    }
}

/// `count` residual blocks, of which the first changes the number of channels.
fn resnets(config: &VaeConfig, count: usize, inputs: i64, outputs: i64, p: &Params<'_>) -> Result<Vec<Shared>> {
    let resnet = |index| {
        let inputs = if index == 0 { inputs } else { outputs };
        Resnet::new(config, inputs, outputs, &p.pp("resnets").pp(index)).map(|resnet| Arc::new(Mutex::new(resnet)))
    };
    (0..count).map(resnet).collect()
}
