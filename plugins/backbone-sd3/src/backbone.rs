//! The backbone.

use std::cell::{OnceCell, RefCell};
use std::path::Path;

use advdmd_nn::mmdit::{LORA_TARGETS, Mmdit, MmditConfig};
use advdmd_nn::{Params, Weights};
use advdmd_sdk::{
    Backbone, BackboneSpec, Conditioning, Denoiser, EncoderSource, Error, OriginalModule, Result, SaveOptions, Sources,
    Tuning,
};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::config::Sd3Config;
use crate::folder::ModelFiles;
use crate::original;
use crate::save::save;
use crate::text::{TextEncoders, TextOptions};
use crate::vae::{Vae, VaeConfig};

/// Stable Diffusion 3 or 3.5. Each part is read when it is first needed, so that text encoders which were released by then
/// are never in memory beside the transformer; its weights are shared by every denoiser.
#[derive(Debug)]
pub struct Sd3 {
    files: ModelFiles,
    config: MmditConfig,
    base: OnceCell<Weights>,
    kind: Kind,
    device: Device,
    /// Height and width of an image in pixels.
    image: [i64; 2],
    /// Pixels to a latent pixel.
    vae_scale: i64,
    text_options: TextOptions,
    vae_tile: Option<i64>,
    activation_checkpointing: bool,
    text: RefCell<Option<TextEncoders>>,
    vae: OnceCell<Vae>,
}

/// Pixels to a latent pixel where there is no autoencoder to ask.
const VAE_SCALE: i64 = 8;

impl Sd3 {
    /// Checks the configuration and the transformer of `files`, without reading weights.
    ///
    /// # Errors
    /// Files that cannot be read or do not fit, or an image size that is no multiple of what the model's patches cover.
    pub fn load(files: ModelFiles, options: &Sd3Config, kind: Kind, device: Device) -> Result<Self> {
        let config = files.read_config()?;
        let vae_scale = match files.pipeline_with("vae") {
            Ok(pipeline) => VaeConfig::read(&pipeline.join("vae/config.json"))?.factor(),
            Err(_) => VAE_SCALE,
        };
        let unit = vae_scale * config.patch_size;
        let largest = config.pos_embed_max_size * unit;
        let side = |key: &str, given: Option<i64>| {
            let side = given.unwrap_or(config.sample_size * vae_scale);
            if side < unit || side % unit != 0 || side > largest {
                return Err(Error::config(format!(
                    "{key}: expected a multiple of {unit} up to {largest}, found {side}"
                )));
            }
            Ok(side)
        };
        let image = [side("height", options.height)?, side("width", options.width)?];
        let text_options = TextOptions {
            kind,
            device,
            t5: options.t5,
            t5_tokens: options.t5_tokens,
            context_width: config.joint_attention_dim,
            pooled_width: config.pooled_projection_dim,
        };
        text_options.check(files.pipeline.as_deref())?;
        if let Some(side) = options.vae_tile {
            Vae::check_tile(side, vae_scale)?;
        }
        files.check_transformer(&config)?;
        if let Ok(pipeline) = files.pipeline_with("vae") {
            Vae::check(pipeline, files.variant.as_deref())?;
        }
        Ok(Self {
            files,
            config,
            base: OnceCell::new(),
            kind,
            device,
            image,
            vae_scale,
            text_options,
            vae_tile: options.vae_tile,
            activation_checkpointing: options.activation_checkpointing,
            text: RefCell::default(),
            vae: OnceCell::new(),
        })
    }

    fn base(&self) -> Result<&Weights> {
        filled(&self.base, || self.files.read_transformer(&self.config, self.kind, self.device))
    }

    fn vae(&self) -> Result<&Vae> {
        filled(&self.vae, || {
            let vae =
                Vae::load(self.files.pipeline_with("vae")?, self.files.variant.as_deref(), self.kind, self.device)?;
            match self.vae_tile {
                Some(side) => vae.tiled(side),
                None => Ok(vae),
            }
        })
    }
}

/// What is in `cell`, made first if nothing is.
fn filled<T>(cell: &OnceCell<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    if let Some(made) = cell.get() {
        return Ok(made);
    }
    let made = make()?;
    Ok(cell.get_or_init(|| made))
}

impl Backbone for Sd3 {
    fn spec(&self) -> BackboneSpec {
        let [height, width] = self.image;
        let [h, w] = [height / self.vae_scale, width / self.vae_scale];
        BackboneSpec {
            latent_shape: [self.config.in_channels, h, w],
            image_shape: [3, height, width],
            depth: self.config.num_layers,
            feature_channels: self.config.dim(),
            feature_grid: [h / self.config.patch_size, w / self.config.patch_size],
            null_prompt: String::new(),
        }
    }

    fn encode_text(&self, prompts: &[&str]) -> Result<Conditioning> {
        let mut kept = self.text.borrow_mut();
        let text = if let Some(text) = kept.take() {
            text
        } else {
            let pipeline = self.files.pipeline_with("text_encoder")?;
            TextEncoders::load(pipeline, self.files.variant.as_deref(), self.text_options)?
        };
        kept.insert(text).encode(prompts)
    }

    fn encode_images(&self, images: &Tensor) -> Result<Tensor> {
        self.vae()?.encode(images)
    }

    fn decode_latents(&self, latents: &Tensor) -> Result<Tensor> {
        self.vae()?.decode(latents)
    }

    fn save(&self, folder: &Path, parameters: &[(String, Tensor)], options: &SaveOptions) -> Result<()> {
        let weights = self.base()?.merged(parameters, options)?;
        weights.check(&Mmdit::layout(&self.config)?, "parameters to save")?;
        save(folder, &self.config, &weights, &self.files, self.text_options.t5, options)
    }

    fn original_modules(&self) -> Vec<OriginalModule> {
        // The configuration was checked when the weights were read.
        original::linear_modules(&self.config).unwrap_or_default()
    }

    fn sources(&self) -> Result<Option<Sources>> {
        let network = self.files.network()?;
        // What is missing is said by whoever needs it.
        let Some(pipeline) = &self.files.pipeline else {
            return Ok(Some(Sources { network, ..Sources::default() }));
        };
        let variant = self.files.variant.as_deref();
        let (files, t5) = TextEncoders::files(pipeline, variant, self.text_options.t5)?;
        let MmditConfig { joint_attention_dim, pooled_projection_dim, .. } = self.config;
        let settings = json!({
            "t5": t5, "t5_tokens": self.text_options.t5_tokens, "context": joint_attention_dim, "pooled": pooled_projection_dim,
        });
        let images = EncoderSource { files: Vae::files(pipeline, variant)?, settings: Value::Null };
        Ok(Some(Sources { network, text: EncoderSource { files, settings }, images }))
    }

    fn release_encoders(&self) -> Result<()> {
        self.text.replace(None);
        Ok(())
    }

    fn denoiser(&self, tuning: &Tuning, seed: u64) -> Result<Box<dyn Denoiser>> {
        let params = Params::new(self.base()?, tuning, &LORA_TARGETS, seed)?;
        Ok(Box::new(Mmdit::new(&self.config, &params)?.with_checkpointing(self.activation_checkpointing)))
    }
}
