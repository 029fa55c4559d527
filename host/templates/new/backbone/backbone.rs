//! What the host asks a backbone for: encoders, a decoder, and denoisers over one frozen base.

use std::collections::BTreeMap;
use std::path::Path;

use advdmd_nn::{Params, Weights, write_json};
use advdmd_sdk::{Backbone, BackboneSpec, Conditioning, Denoiser, Error, Result, SaveOptions, Tuning};
use tch::{Device, Kind, Tensor};

use crate::network::{LORA_TARGETS, TEXT_WIDTH};
use crate::{Architecture, Network};

/// Pixels are the latents: the image's values moved from 0..1 to -1..1.
#[derive(Debug)]
pub struct SmallBackbone {
    pub(crate) architecture: Architecture,
    /// The weights that all denoisers share.
    pub(crate) base: Weights,
    /// Compute type.
    pub(crate) kind: Kind,
    pub(crate) device: Device,
}

impl SmallBackbone {
    fn check(&self, what: &str, tensor: &Tensor) -> Result<()> {
        let (size, side) = (tensor.size(), self.architecture.image_size);
        if size.len() != 4 || size[1..] != [3, side, side] {
            return Err(Error::shape(what, format!("[B, 3, {side}, {side}]"), &size));
        }
        Ok(())
    }
}

impl Backbone for SmallBackbone {
    fn spec(&self) -> BackboneSpec {
        let Architecture { image_size, patch_size, width, depth } = self.architecture;
        BackboneSpec {
            latent_shape: [3, image_size, image_size],
            image_shape: [3, image_size, image_size],
            depth,
            feature_channels: width,
            feature_grid: [image_size / patch_size; 2],
            null_prompt: String::new(),
        }
    }

    /// A bag of words: each word adds a fixed random vector. Put a real text encoder in its place.
    fn encode_text(&self, prompts: &[&str]) -> Result<Conditioning> {
        let embed = |prompt: &&str| {
            let words =
                prompt.split_whitespace().map(|word| advdmd_nn::RandomStream::new(0, word).normal(&[TEXT_WIDTH], 1.0));
            let mut sum = Tensor::f_zeros([TEXT_WIDTH], (Kind::Float, Device::Cpu))?;
            for word in words {
                sum = sum.f_add(&word?)?;
            }
            Ok(sum)
        };
        let rows = prompts.iter().map(embed).collect::<Result<Vec<_>>>()?;
        // No prompts are no rows.
        let rows = if rows.is_empty() {
            Tensor::f_zeros([0, TEXT_WIDTH], (Kind::Float, Device::Cpu))?
        } else {
            Tensor::f_stack(&rows, 0)?
        };
        let pooled = rows.f_to_device_(self.device, Kind::Float, false, false)?;
        Ok(Conditioning { context: pooled.f_unsqueeze(1)?, pooled: Some(pooled), mask: None })
    }

    fn encode_images(&self, images: &Tensor) -> Result<Tensor> {
        self.check("images", images)?;
        Ok(images.f_to_kind(Kind::Float)?.f_mul_scalar(2.0)?.f_sub_scalar(1.0)?)
    }

    fn decode_latents(&self, latents: &Tensor) -> Result<Tensor> {
        self.check("latents", latents)?;
        Ok(latents.f_to_kind(Kind::Float)?.f_add_scalar(1.0)?.f_div_scalar(2.0)?.f_clamp(0.0, 1.0)?)
    }

    /// Writes the folder that `model` names in a later configuration. The weights come last, so that a folder with weights is
    /// complete.
    fn save(&self, folder: &Path, parameters: &[(String, Tensor)], options: &SaveOptions) -> Result<()> {
        let weights = self.base.merged(parameters, options)?;
        weights.check(&Params::record(|p| Network::new(&self.architecture, p))?, "parameters to save")?;
        std::fs::create_dir_all(folder).map_err(|error| Error::failed(error).context(folder.display()))?;
        write_json(&folder.join("config.json"), &self.architecture)?;
        weights.save(&folder.join("model.safetensors"), &BTreeMap::new())
    }

    fn denoiser(&self, tuning: &Tuning, seed: u64) -> Result<Box<dyn Denoiser>> {
        let params = Params::new(&self.base, tuning, &LORA_TARGETS, seed)?;
        Ok(Box::new(Network::new(&self.architecture, &params)?.computing_in(self.kind)))
    }
}
