//! Both encoders.

use std::path::Path;

use advdmd_sdk::{Result, Tuning};
use tch::{Device, Kind, Tensor};

use super::{ClipConfig, ClipText, ClipVision};
use crate::{Layout, Params, Stored};

const LOGIT_SCALE: &str = "logit_scale";

/// transformers' `CLIPModel`.
#[derive(Debug)]
pub struct Clip {
    config: ClipConfig,
    text: ClipText,
    vision: ClipVision,
    logit_scale: f64,
}

impl Clip {
    /// Reads a folder of transformers: `config.json`, and `model.safetensors` or its shards. The weights become `kind`.
    ///
    /// # Errors
    /// A missing or malformed file, or weights that are not exactly the configuration's.
    pub fn load(folder: &Path, kind: Kind, device: Device) -> Result<Self> {
        let config = ClipConfig::read(&folder.join("config.json"))?;
        // Older files hold the positions' numbers.
        let name_of = |name: &str| (!name.ends_with(".position_ids")).then(|| name.to_owned());
        let stored = Stored::open_folder(folder, "model", None)?;
        let weights = stored.read_layout(&Self::layout(&config)?, name_of, Some(kind), device)?;
        let p = Params::new(&weights, &Tuning::Frozen, &[], 0)?;
        // Half precision would cost it two digits.
        let logit_scale = stored.read(LOGIT_SCALE, Some(Kind::Double), Device::Cpu)?.f_double_value(&[])?;
        Ok(Self { text: text(&config, &p)?, vision: vision(&config, &p)?, config, logit_scale })
    }

    /// Names and shapes of the weights.
    ///
    /// # Errors
    /// A configuration whose sizes do not fit.
    pub fn layout(config: &ClipConfig) -> Result<Layout> {
        config.check()?;
        Params::record(|p| Ok((p.get(LOGIT_SCALE, &[])?, text(config, p)?, vision(config, p)?)))
    }

    /// The model's configuration.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// The logarithm of the factor by which the model was trained to scale cosines.
    pub fn logit_scale(&self) -> f64 {
        self.logit_scale
    }

    /// Features `[B, P]` of token ids `[B, L]` (int64), not normalised: transformers' `get_text_features`.
    ///
    /// # Errors
    /// As [`ClipText::forward`].
    pub fn text_features(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(self.text.forward(ids)?.pooled)
    }

    /// Features `[B, P]` of normalised pixels `[B, C, S, S]` in the weights' type, not normalised: transformers'
    /// `get_image_features`.
    ///
    /// # Errors
    /// As [`ClipVision::forward`].
    pub fn image_features(&self, pixels: &Tensor) -> Result<Tensor> {
        self.vision.forward(pixels)
    }
}

fn text(config: &ClipConfig, p: &Params<'_>) -> Result<ClipText> {
    ClipText::new(&config.text, p)
}

fn vision(config: &ClipConfig, p: &Params<'_>) -> Result<ClipVision> {
    ClipVision::new(&config.vision, config.projection_dim, p)
}
