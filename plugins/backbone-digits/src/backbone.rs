//! The backbone.

use std::path::Path;

use advdmd_nn::Params;
use advdmd_nn::mmdit::{LORA_TARGETS, Mmdit};
use advdmd_sdk::{Backbone, BackboneSpec, Conditioning, Denoiser, Error, Result, SaveOptions, Tuning};
use tch::{Device, Kind, Tensor};

use crate::Model;

/// Digit scenes in pixel space: latents are the image's values moved from 0..1 to -1..1.
#[derive(Debug)]
pub struct Digits {
    model: Model,
    device: Device,
}

impl Digits {
    /// The backbone over a model, whose weights every denoiser shares.
    ///
    /// # Errors
    /// A model without weights.
    pub fn new(model: Model) -> Result<Self> {
        let device = model.base.iter().next().map(|(_, tensor)| tensor.device());
        let device = device.ok_or_else(|| Error::invalid("the model has no weights"))?;
        Ok(Self { model, device })
    }

    /// The model underneath.
    pub fn model(&self) -> &Model {
        &self.model
    }

    fn check_pixels(&self, what: &str, tensor: &Tensor) -> Result<()> {
        let (size, side) = (tensor.size(), self.model.config.sample_size);
        if size.len() != 4 || size[1..] != [3, side, side] {
            return Err(Error::shape(what, format!("[B, 3, {side}, {side}]"), &size));
        }
        Ok(())
    }
}

impl Backbone for Digits {
    fn spec(&self) -> BackboneSpec {
        let config = &self.model.config;
        let pixels = [3, config.sample_size, config.sample_size];
        BackboneSpec {
            latent_shape: pixels,
            image_shape: pixels,
            depth: config.num_layers,
            feature_channels: config.dim(),
            feature_grid: [config.sample_size / config.patch_size; 2],
            null_prompt: String::new(),
        }
    }

    fn encode_text(&self, prompts: &[&str]) -> Result<Conditioning> {
        self.model.text_encoder.encode(prompts, self.device)
    }

    fn encode_images(&self, images: &Tensor) -> Result<Tensor> {
        self.check_pixels("images", images)?;
        Ok(images.f_to_kind(Kind::Float)?.f_mul_scalar(2.0)?.f_sub_scalar(1.0)?)
    }

    fn decode_latents(&self, latents: &Tensor) -> Result<Tensor> {
        self.check_pixels("latents", latents)?;
        Ok(latents.f_to_kind(Kind::Float)?.f_add_scalar(1.0)?.f_div_scalar(2.0)?.f_clamp(0.0, 1.0)?)
    }

    fn save(&self, folder: &Path, parameters: &[(String, Tensor)], options: &SaveOptions) -> Result<()> {
        self.model.save(folder, parameters, options)
    }

    fn denoiser(&self, tuning: &Tuning, seed: u64) -> Result<Box<dyn Denoiser>> {
        let params = Params::new(&self.model.base, tuning, &LORA_TARGETS, seed)?;
        Ok(Box::new(Mmdit::new(&self.model.config, &params)?))
    }
}
