//! The reward `{{name}}` for AdvDMD.

use advdmd_sdk::{Error, Needs, Result, Reward, RewardBatch, RewardConfig, RewardInit};
use schemars::JsonSchema;
use serde::Deserialize;

/// Rewards images of one contrast: the nearer the standard deviation of their brightness is to a target, the better.
// These comments are what `advdmd plugins inspect reward {{name}}` and editors show.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Contrast {
    /// The contrast that scores highest, from 0 (one grey) to 0.5 (black and white).
    #[serde(default = "default_target")]
    pub target: f32,
}

fn default_target() -> f32 {
    0.25
}

impl RewardConfig for Contrast {
    /// Called once for each table `type = "{{name}}"` of a configuration: the place to refuse values.
    fn build(self, _init: &RewardInit) -> Result<Box<dyn Reward>> {
        if !(0.0..=0.5).contains(&self.target) {
            return Err(Error::config(format!("target: expected 0 to 0.5, found {}", self.target)));
        }
        Ok(Box::new(self))
    }
}

impl Reward for Contrast {
    /// Finished images `[B, 3, H, W]` in 0..1, as plain numbers.
    fn needs(&self) -> Needs {
        Needs { images: true, on_cpu: true, ..Needs::default() }
    }

    /// One finite number a sample; higher is better. Its scale does not matter: the host normalises scores.
    fn score(&mut self, batch: &RewardBatch<'_>) -> Result<Vec<f32>> {
        let images = batch.images()?;
        images.expect_shape("images", &[Some(batch.len() as i64), Some(3), None, None])?;
        let pixels = images.to_f32()?;
        let per_image = (pixels.len() / batch.len().max(1)).max(1);
        Ok(pixels.chunks(per_image).map(|image| -(contrast(image) - self.target).abs()).collect())
    }
}

/// Standard deviation of the brightness of an image `[3, H, W]`.
fn contrast(image: &[f32]) -> f32 {
    let pixels = image.len() / 3;
    let (red, rest) = image.split_at(pixels);
    let (green, blue) = rest.split_at(pixels);
    let brightness: Vec<f64> = red.iter().zip(green).zip(blue).map(|((r, g), b)| f64::from(r + g + b) / 3.0).collect();
    let mean = brightness.iter().sum::<f64>() / pixels as f64;
    let variance = brightness.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / pixels as f64;
    variance.sqrt() as f32
}

advdmd_sdk::register_reward!("{{name}}", Contrast);
advdmd_sdk::export_plugin!();
