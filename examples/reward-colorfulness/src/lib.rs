//! The reward `colorfulness` for AdvDMD, without libtorch.

use advdmd_sdk::{Error, Needs, Result, Reward, RewardBatch, RewardConfig, RewardInit};
use schemars::JsonSchema;
use serde::Deserialize;

/// Rewards colourful images, by the measure M3 of Hasler and Süsstrunk ("Measuring colourfulness in natural images", 2003):
/// 0 is grey, 33 moderately, 59 quite and 109 extremely colourful.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Colorfulness {
    /// Colourfulness beyond which no more is gained: without a limit, a model ends at gaudy images.
    #[serde(default = "default_limit")]
    pub limit: f32,
}

fn default_limit() -> f32 {
    80.0
}

impl RewardConfig for Colorfulness {
    fn build(self, _init: &RewardInit) -> Result<Box<dyn Reward>> {
        if !(self.limit.is_finite() && self.limit > 0.0) {
            return Err(Error::config(format!("limit: expected a finite number above 0, found {}", self.limit)));
        }
        Ok(Box::new(self))
    }
}

impl Reward for Colorfulness {
    fn needs(&self) -> Needs {
        Needs { images: true, on_cpu: true, ..Needs::default() }
    }

    fn score(&mut self, batch: &RewardBatch<'_>) -> Result<Vec<f32>> {
        let images = batch.images()?;
        images.expect_shape("images", &[Some(batch.len() as i64), Some(3), None, None])?;
        let pixels = images.to_f32()?;
        let per_image = (pixels.len() / batch.len().max(1)).max(1);
        Ok(pixels.chunks(per_image).map(|image| colorfulness(image).min(self.limit)).collect())
    }
}

/// `M3 = s + 0.3 m` of an image `[3, H, W]` in 0..1, where s and m are the lengths of the standard deviations and of the means of
/// the opponent colours `R - G` and `(R + G) / 2 - B`, in units of 1/255.
pub fn colorfulness(image: &[f32]) -> f32 {
    let count = image.len() / 3;
    let channel =
        |index: usize| image[index * count..(index + 1) * count].iter().map(|value| f64::from(*value) * 255.0);
    let rgb = || channel(0).zip(channel(1)).zip(channel(2));
    let [rg_mean, rg_variance] = moments(rgb().map(|((r, g), _)| r - g), count);
    let [yb_mean, yb_variance] = moments(rgb().map(|((r, g), b)| (r + g) / 2.0 - b), count);
    ((rg_variance + yb_variance).sqrt() + 0.3 * rg_mean.hypot(yb_mean)) as f32
}

/// Mean and variance.
fn moments(values: impl Iterator<Item = f64> + Clone, count: usize) -> [f64; 2] {
    let mean = values.clone().sum::<f64>() / count as f64;
    [mean, values.map(|value| (value - mean).powi(2)).sum::<f64>() / count as f64]
}

advdmd_sdk::register_reward!("colorfulness", Colorfulness);
advdmd_sdk::export_plugin!();
