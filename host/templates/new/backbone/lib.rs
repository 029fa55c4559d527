//! The backbone `{{name}}` for AdvDMD: a small network in pixel space, to start from.

mod backbone;
mod network;

use std::path::PathBuf;

use advdmd_nn::{Params, Weights, read_json};
use advdmd_sdk::{BackboneConfig, BackboneInit, DType, Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use backbone::SmallBackbone;
pub use network::Network;

/// A small network in pixel space. Without `model`, its weights are random: train them with `advdmd pretrain`.
// These comments are what `advdmd plugins inspect backbone {{name}}` and editors show.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Small {
    /// Folder of a trained model: `config.json` and `model.safetensors`.
    #[serde(default)]
    #[schemars(extend("format" = "model"))]
    pub model: Option<PathBuf>,
    /// Sizes of a network with random weights; a trained model brings its own.
    #[serde(default)]
    pub architecture: Option<Architecture>,
}

/// Sizes of the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Architecture {
    /// Side of the square images in pixels.
    pub image_size: i64,
    /// Side of a square patch in pixels; it divides the image's.
    pub patch_size: i64,
    /// Channels between the blocks.
    pub width: i64,
    /// Number of blocks.
    pub depth: usize,
}

impl Default for Architecture {
    fn default() -> Self {
        Self { image_size: 16, patch_size: 4, width: 64, depth: 2 }
    }
}

impl Architecture {
    /// # Errors
    /// Sizes that no network can have; names the key.
    fn check(&self) -> Result<()> {
        let Self { image_size, patch_size, width, depth } = *self;
        let within = |key: &str, value: i64, most: i64| match value {
            1.. if value <= most => Ok(()),
            _ => Err(Error::config(format!("architecture.{key}: expected 1 to {most}, found {value}"))),
        };
        within("image_size", image_size, 1024)?;
        within("patch_size", patch_size, image_size)?;
        within("width", width, 4096)?;
        within("depth", depth as i64, 100)?;
        if image_size % patch_size != 0 {
            return Err(Error::config(format!(
                "architecture.patch_size: expected a divisor of image_size {image_size}, found {patch_size}"
            )));
        }
        Ok(())
    }
}

impl BackboneConfig for Small {
    fn build(self, init: &BackboneInit) -> Result<Box<dyn advdmd_sdk::Backbone>> {
        if !matches!(init.dtype, DType::F32 | DType::Bf16 | DType::F16) {
            return Err(Error::config(format!("dtype: expected f32, bf16 or f16, found {:?}", init.dtype)));
        }
        let (kind, device) = (init.dtype.into(), init.device.into());
        let (architecture, base) = match (self.model, self.architecture) {
            (Some(_), Some(_)) => return Err(Error::config("architecture: a trained model brings its own")),
            (Some(folder), None) => {
                let architecture: Architecture = read_json(&folder.join("config.json"))?;
                architecture.check().map_err(|error| error.context(folder.join("config.json").display()))?;
                let base = Weights::load(&folder.join("model.safetensors"), Some(kind), device)?;
                (architecture, base)
            }
            (None, architecture) => {
                let architecture = architecture.unwrap_or_default();
                architecture.check()?;
                let base = Network::random(&architecture, init.seed)?.into_iter();
                let base = base.map(|(name, tensor)| Ok((name, tensor.f_to_device_(device, kind, false, false)?)));
                (architecture, base.collect::<Result<_>>()?)
            }
        };
        base.check(&Params::record(|p| Network::new(&architecture, p))?, "the model")?;
        Ok(Box::new(SmallBackbone { architecture, base, kind, device }))
    }
}

advdmd_sdk::register_backbone!("{{name}}", Small);
advdmd_sdk::export_plugin!();
