//! A backbone as small as it gets that breaks one promise.

use advdmd_sdk::{
    Backbone, BackboneConfig, BackboneInit, BackboneSpec, Conditioning, Denoiser, Error, Result, SaveOptions, Tuning,
};
use schemars::JsonSchema;
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::denoiser::{Network, Weights};

/// Two blocks of one linear layer each, and the broken promise that `how` names.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FaultyBackbone {
    /// The promise that is broken: for each check of the conformance kit the one fault that it finds.
    how: How,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// None.
    Healthy,
    /// No blocks, it says.
    Spec,
    /// Pads prompts to the longest of the batch.
    EncodeText,
    /// Draws latents instead of giving their mean.
    EncodeImages,
    /// Does not clamp pixels.
    DecodeLatents,
    /// Gives float64.
    Velocity,
    /// Weights depend on how many backbones were made before.
    Deterministic,
    /// Stops one block too early.
    Taps,
    /// Panics at a tap beyond its depth.
    Refuses,
    /// Its teacher has parameters.
    Frozen,
    /// Each network has a base of its own.
    LoraShares,
    /// A new update is not 0.
    LoraInit,
    /// Trains a tensor that it does not name.
    LoraGradients,
    /// Its full copy is the base itself.
    Full,
    /// Keeps the latents of each prediction.
    Memory,
    /// Leaves gradients switched off after encoding text.
    GradMode,
}

/// Channels of a token.
pub const WIDTH: i64 = 128;
/// Tokens of a prompt.
const TOKENS: usize = 48;
const LATENT: [i64; 3] = [4, 8, 8];
const IMAGE: [i64; 3] = [3, 8, 8];

struct Made {
    how: How,
    base: Weights,
}

impl BackboneConfig for FaultyBackbone {
    fn build(self, _init: &BackboneInit) -> Result<Box<dyn Backbone>> {
        let offset = if self.how == How::Deterministic { Weights::made_before() } else { 0 };
        Ok(Box::new(Made { how: self.how, base: Weights::new(offset)? }))
    }
}

impl Backbone for Made {
    fn spec(&self) -> BackboneSpec {
        BackboneSpec {
            latent_shape: LATENT,
            image_shape: IMAGE,
            depth: if self.how == How::Spec { 0 } else { 2 },
            feature_channels: WIDTH,
            feature_grid: [LATENT[1], LATENT[2]],
            null_prompt: String::new(),
        }
    }

    /// One row of a prompt: its bytes, as numbers of a wave.
    fn encode_text(&self, prompts: &[&str]) -> Result<Conditioning> {
        if self.how == How::GradMode {
            std::mem::forget(tch::no_grad_guard());
        }
        let longest = prompts.iter().map(|prompt| prompt.len()).max().unwrap_or(0).clamp(1, TOKENS);
        let tokens = if self.how == How::EncodeText { longest } else { TOKENS };
        let letters: Vec<f32> = prompts
            .iter()
            .flat_map(|prompt| prompt.bytes().chain(std::iter::repeat(0)).take(tokens))
            .map(|byte| f32::from(byte) / 255.0)
            .collect();
        let letters = Tensor::f_from_slice(&letters)?.f_view([prompts.len() as i64, tokens as i64, 1])?;
        let waves = Tensor::f_linspace(1.0, 20.0, WIDTH, (Kind::Float, Device::Cpu))?;
        Ok(Conditioning { context: letters.f_mul(&waves)?.f_sin()?, pooled: None, mask: None })
    }

    fn encode_images(&self, images: &Tensor) -> Result<Tensor> {
        expect("images", images, IMAGE)?;
        let pixels = images.f_mul_scalar(2.0)?.f_sub_scalar(1.0)?;
        let latents = Tensor::f_cat(&[&pixels, &pixels.f_narrow(1, 0, 1)?], 1)?;
        // Any numbers that differ from call to call, but for libtorch's generator.
        let drawn = if self.how == How::EncodeImages { 0.1 * f64::from(Weights::made_before()) } else { 0.0 };
        Ok(latents.f_add_scalar(drawn)?)
    }

    fn decode_latents(&self, latents: &Tensor) -> Result<Tensor> {
        expect("latents", latents, LATENT)?;
        let images = latents.f_narrow(1, 0, 3)?.f_add_scalar(1.0)?.f_mul_scalar(0.5)?;
        Ok(if self.how == How::DecodeLatents { images } else { images.f_clamp(0.0, 1.0)? })
    }

    fn save(&self, _: &std::path::Path, _: &[(String, Tensor)], _: &SaveOptions) -> Result<()> {
        Err(Error::unsupported("it saves nothing"))
    }

    fn denoiser(&self, tuning: &Tuning, _seed: u64) -> Result<Box<dyn Denoiser>> {
        let base =
            if self.how == How::LoraShares { self.base.copy(false)? } else { self.base.shared() };
        Ok(Box::new(match tuning {
            Tuning::Frozen => Network::frozen(self.how, base),
            Tuning::Lora { rank, alpha, targets } => {
                if let Some(unknown) = targets.iter().find(|target| *target != "linear") {
                    return Err(Error::config(format!("targets: no layer ends in {unknown:?}: expected \"linear\"")));
                }
                Network::lora(self.how, base, *rank, *alpha)?
            }
            Tuning::Full => {
                let copy = if self.how == How::Full { self.base.trainable()? } else { self.base.copy(true)? };
                Network::full(self.how, copy)
            }
        }))
    }
}

/// Refuses a tensor that is not `[B, shape..]`.
pub fn expect(what: &str, tensor: &Tensor, [c, h, w]: [i64; 3]) -> Result<()> {
    match tensor.size()[..] {
        [_, found_c, found_h, found_w] if [found_c, found_h, found_w] == [c, h, w] => Ok(()),
        ref found => Err(Error::shape(what, format!("[B, {c}, {h}, {w}]"), found)),
    }
}

pub const fn latent_shape() -> [i64; 3] {
    LATENT
}
