//! The cosine of image and prompt, and what becomes of it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use advdmd_sdk::{DType, Error, Needs, Result, Reward, RewardBatch, RewardInit, Scope};
use tch::{Kind, Tensor};

use crate::model::{Model, lock};
use crate::{Pixels, Preprocess};

/// What stands for the prompt in a template.
const PROMPT: &str = "{prompt}";

/// The prompt alone.
pub(crate) fn prompt_template() -> String {
    PROMPT.to_owned()
}

/// Enough to keep a device busy with ViT-H-14; its activations of so many images fit beside much else.
pub(crate) fn batch_size() -> usize {
    16
}

/// What the three rewards have in common; the keys of their configurations.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Folder of a `CLIPModel`.
    pub model: PathBuf,
    /// Factor of the score.
    pub scale: f64,
    /// Whether the model's own `exp(logit_scale)` is another factor.
    pub logit_scale: bool,
    /// Scores below are raised to this.
    pub clamp_min: Option<f64>,
    /// Scores above are lowered to this.
    pub clamp_max: Option<f64>,
    /// The text that is encoded.
    pub prompt_template: String,
    /// How images become the model's input.
    pub preprocess: Preprocess,
    /// Images that pass through the model at once.
    pub batch_size: usize,
    /// Type of weights and activations.
    pub dtype: DType,
}

/// `factor * cos(image, prompt)`, clamped.
#[derive(Debug)]
pub struct ClipReward {
    model: Arc<Mutex<Model>>,
    pixels: Pixels,
    factor: f64,
    options: Options,
}

impl ClipReward {
    /// Loads the model, or shares that of another reward.
    ///
    /// # Errors
    /// A value out of range, by its key; a folder that does not hold what is needed.
    pub fn new(options: Options, init: &RewardInit) -> Result<Self> {
        check(&options)?;
        let model = Model::shared(&options.model, options.dtype.into(), init.device.into())?;
        let (image_size, logit_scale) = {
            let model = lock(&model);
            let vision = &model.clip().config().vision;
            if vision.num_channels != 3 {
                let (folder, found) = (options.model.display(), vision.num_channels);
                return Err(Error::config(format!("{folder}: vision_config: num_channels: expected 3, found {found}")));
            }
            (vision.image_size, model.clip().logit_scale())
        };
        let pixels = Pixels::new(options.preprocess, &options.model, image_size)?;
        let factor = options.scale * if options.logit_scale { logit_scale.exp() } else { 1.0 };
        Ok(Self { model, pixels, factor, options })
    }

    /// The model, which other rewards may share.
    pub fn model(&self) -> &Arc<Mutex<Model>> {
        &self.model
    }

    /// Scores `[B]`, from pixels that `pixels` makes of some of the images.
    fn scores(&self, batch: &RewardBatch<'_>, pixels: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        if batch.is_empty() {
            return Err(Error::invalid("the batch is empty: there is nothing to score"));
        }
        let images = batch.images()?;
        images.expect_shape("images", &[Some(batch.len() as i64), Some(3), None, None])?;
        let images = images.torch()?;
        let prompts: Vec<_> = batch.prompts.iter().map(|p| self.options.prompt_template.replace(PROMPT, p)).collect();
        let mut model = lock(&self.model);
        let text = model.text_features(&prompts)?;
        let (count, most) = (batch.len() as i64, self.options.batch_size as i64);
        let chunk = |start: i64| -> Result<Tensor> {
            let length = most.min(count - start);
            let features = model.image_features(&pixels(&images.f_narrow(0, start, length)?)?)?;
            Ok(features.f_mul(&text.f_narrow(0, start, length)?)?.f_sum_dim_intlist(-1, false, None::<Kind>)?)
        };
        let cosines = (0..count).step_by(self.options.batch_size).map(chunk).collect::<Result<Vec<_>>>()?;
        let mut scores = Tensor::f_cat(&cosines, 0)?.f_mul_scalar(self.factor)?;
        if let Some(least) = self.options.clamp_min {
            scores = scores.f_clamp_min(least)?;
        }
        if let Some(most) = self.options.clamp_max {
            scores = scores.f_clamp_max(most)?;
        }
        Ok(scores)
    }
}

fn check(options: &Options) -> Result<()> {
    let Options { scale, clamp_min, clamp_max, batch_size, dtype, .. } = options;
    if !scale.is_finite() || *scale == 0.0 {
        return Err(Error::config(format!("scale: expected a finite number other than 0, found {scale}")));
    }
    for (key, bound) in [("clamp_min", clamp_min), ("clamp_max", clamp_max)] {
        if let Some(bound) = bound.filter(|bound| !bound.is_finite()) {
            return Err(Error::config(format!("{key}: expected a finite number, found {bound}")));
        }
    }
    if let (Some(least), Some(most)) = (clamp_min, clamp_max)
        && least >= most
    {
        return Err(Error::config(format!("clamp_max: expected more than clamp_min = {least}, found {most}")));
    }
    if !options.prompt_template.contains(PROMPT) {
        let found = &options.prompt_template;
        return Err(Error::config(format!("prompt_template: expected a text with {PROMPT} in it, found {found:?}")));
    }
    if !(1..=1 << 16).contains(batch_size) {
        return Err(Error::config(format!("batch_size: expected 1 to {}, found {batch_size}", 1 << 16)));
    }
    if !matches!(dtype, DType::F32 | DType::Bf16 | DType::F16 | DType::F64) {
        return Err(Error::config(format!("dtype: expected f32, bf16, f16 or f64, found {dtype:?}")));
    }
    Ok(())
}

impl Reward for ClipReward {
    fn needs(&self) -> Needs {
        let scores_on_device = self.pixels.is_differentiable();
        Needs { scope: Scope::Final, images: true, scores_on_device, differentiable: true, ..Needs::default() }
    }

    fn score(&mut self, batch: &RewardBatch<'_>) -> Result<Vec<f32>> {
        let scores = tch::no_grad(|| self.scores(batch, |images| self.pixels.reference(images)))?;
        Ok(Vec::try_from(scores.f_to_kind(Kind::Float)?)?)
    }

    /// Where gradients are taken, the activations of all images are kept, whatever `batch_size`.
    fn score_differentiable(&mut self, batch: &RewardBatch<'_>) -> Result<Option<Tensor>> {
        self.scores(batch, |images| self.pixels.differentiable(images)).map(Some)
    }
}
