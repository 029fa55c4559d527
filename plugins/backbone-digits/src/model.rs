//! A model's folder: configuration, text scales and base weights.

use std::collections::BTreeMap;
use std::path::Path;

use advdmd_nn::mmdit::{Init, Mmdit, MmditConfig};
use advdmd_nn::{Weights, read_json, write_json};
use advdmd_sdk::{Error, Result, SaveOptions};
use tch::{Device, Kind, Tensor};

use crate::text::{CONTEXT_WIDTH, POOLED_WIDTH, TextEncoder};

/// What is stored of a digit model.
#[derive(Debug)]
pub struct Model {
    /// Sizes of the transformer.
    pub config: MmditConfig,
    /// Scales of its text embeddings.
    pub text_encoder: TextEncoder,
    /// Its weights under diffusers' names.
    pub base: Weights,
}

/// Stem of the weight file.
const WEIGHTS: &str = "diffusion_pytorch_model";

/// The shipped teacher, as `teacher/README.md` says how it was made.
mod shipped {
    pub const CONFIG: &str = include_str!("../teacher/model/config.json");
    pub const TEXT_ENCODER: &str = include_str!("../teacher/model/text_encoder.json");
    pub const WEIGHTS: &[u8] = include_bytes!("../teacher/model/diffusion_pytorch_model.safetensors");
}

impl Model {
    /// Reads `config.json`, `diffusion_pytorch_model.safetensors` (any floating type) and, if there is one,
    /// `text_encoder.json`.
    ///
    /// # Errors
    /// A missing or malformed file, sizes that do not fit the scenes or this crate's text embeddings, or weights that
    /// are not exactly the configuration's. The message names the file.
    pub fn load(folder: &Path, kind: Kind, device: Device) -> Result<Self> {
        let path = folder.join("config.json");
        let config = MmditConfig::read(&path)?;
        check(&config).map_err(|error| error.context(path.display()))?;

        let path = folder.join("text_encoder.json");
        let text_encoder = if path.exists() { read_text_encoder(&path)? } else { TextEncoder::default() };

        let base = Weights::load_folder(folder, WEIGHTS, Some(kind), device)?;
        base.check(&Mmdit::layout(&config)?, &folder.display().to_string())?;
        Ok(Self { config, text_encoder, base })
    }

    /// The teacher that is part of this plugin.
    ///
    /// # Errors
    /// libtorch's; the files themselves are checked by a test.
    pub fn shipped(kind: Kind, device: Device) -> Result<Self> {
        let config = MmditConfig::from_json(serde_json::from_str(shipped::CONFIG)?)?;
        let base = Weights::from_bytes(shipped::WEIGHTS, Some(kind), device)?;
        base.check(&Mmdit::layout(&config)?, "the shipped teacher")?;
        Ok(Self { config, text_encoder: serde_json::from_str(shipped::TEXT_ENCODER)?, base })
    }

    /// Weights drawn from `seed` (adaLN-Zero: the first velocity is 0), to train from scratch.
    ///
    /// # Errors
    /// Sizes or scales that do not fit.
    pub fn random(
        config: MmditConfig,
        text_encoder: TextEncoder,
        seed: u64,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        check(&config)?;
        text_encoder.check()?;
        let base = Mmdit::init(&config, Init::AdaLnZero, seed)?.into_iter();
        let base = base
            .map(|(name, tensor)| Ok((name, tensor.f_to_device_(device, kind, false, false)?)))
            .collect::<Result<_>>()?;
        Ok(Self { config, text_encoder, base })
    }

    /// Writes the folder that [`Model::load`] reads and that diffusers' `SD3Transformer2DModel.from_pretrained` reads:
    /// the base, with `parameters` in the place of its tensors or merged into them. The weights come last, so that a folder
    /// with weights is complete, and are read back.
    ///
    /// # Errors
    /// A parameter that the base does not have (a `LoRA` is no full weight), another shape, a loss as
    /// [`Weights::merged`] refuses it, or a disk error.
    pub fn save(&self, folder: &Path, parameters: &[(String, Tensor)], options: &SaveOptions) -> Result<()> {
        let weights = self.base.merged(parameters, options)?;
        weights.check(&Mmdit::layout(&self.config)?, "parameters to save")?;
        let failed = |error: std::io::Error| Error::failed(error).context(folder.display());
        std::fs::create_dir_all(folder).map_err(failed)?;

        let mut config = serde_json::to_value(&self.config)?;
        config["_class_name"] = "SD3Transformer2DModel".into();
        write_json(&folder.join("config.json"), &config)?;
        write_json(&folder.join("text_encoder.json"), &self.text_encoder)?;
        let path = folder.join(format!("{WEIGHTS}.safetensors"));
        weights.save(&path, &BTreeMap::new())?;
        weights.check_saved(&path)
    }
}

/// Checks the sizes that scenes and captions fix.
fn check(config: &MmditConfig) -> Result<()> {
    config.check()?;
    let fixed = [
        ("in_channels", config.in_channels, 3),
        ("out_channels", config.out_channels(), 3),
        ("joint_attention_dim", config.joint_attention_dim, CONTEXT_WIDTH),
        ("pooled_projection_dim", config.pooled_projection_dim, POOLED_WIDTH),
    ];
    for (key, found, expected) in fixed {
        if found != expected {
            return Err(Error::config(format!("{key}: expected {expected}, found {found}")));
        }
    }
    let (side, patch, table) = (config.sample_size, config.patch_size, config.pos_embed_max_size);
    if side % patch != 0 {
        return Err(Error::config(format!("patch_size: expected a divisor of sample_size {side}, found {patch}")));
    }
    if side / patch > table {
        return Err(Error::config(format!("pos_embed_max_size: expected at least {}, found {table}", side / patch)));
    }
    Ok(())
}

fn read_text_encoder(path: &Path) -> Result<TextEncoder> {
    let encoder: TextEncoder = read_json(path)?;
    encoder.check().map_err(|error| error.context(path.display()))?;
    Ok(encoder)
}
