//! A reward that does not fail unless it is told to, of numbers that can be computed by hand.

use advdmd_sdk::{Error, FeatureNeeds, FeatureSource, Needs, Result, Reward, RewardBatch, RewardConfig, RewardInit};
use schemars::JsonSchema;
use serde::Deserialize;

/// The mean of one colour of an image, 0 to 1, plus the letters of its prompt times a factor.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Colour {
    /// Red, green or blue: 0, 1 or 2.
    channel: usize,
    /// Factor on the number of the prompt's letters.
    #[serde(default)]
    per_letter: f32,
    /// Says that it reads latents.
    #[serde(default)]
    latents: bool,
    /// Says that it reads features.
    #[serde(default)]
    features: bool,
    /// Scores an image of this mean, within a thousandth, with NaN.
    #[serde(default)]
    nan_at: Option<f32>,
    /// Seconds to wait before each batch.
    #[serde(default)]
    wait: f32,
    /// A file that must exist.
    #[serde(default)]
    #[schemars(extend("format" = "path"))]
    file: Option<std::path::PathBuf>,
}

impl RewardConfig for Colour {
    fn build(self, _init: &RewardInit) -> Result<Box<dyn Reward>> {
        if self.channel > 2 {
            return Err(Error::config(format!("channel: expected 0, 1 or 2, found {}", self.channel)));
        }
        if let Some(file) = self.file.as_ref().filter(|file| !file.is_file()) {
            return Err(Error::failed(format!("{} is not there", file.display())));
        }
        Ok(Box::new(self))
    }
}

impl Reward for Colour {
    fn needs(&self) -> Needs {
        let features = self.features.then(|| FeatureNeeds { source: FeatureSource::Fake, taps: vec![0] });
        Needs { images: true, on_cpu: true, latents: self.latents, features, ..Needs::default() }
    }

    fn score(&mut self, batch: &RewardBatch<'_>) -> Result<Vec<f32>> {
        std::thread::sleep(std::time::Duration::from_secs_f32(self.wait));
        let images = batch.images()?;
        images.expect_shape("images", &[Some(batch.len() as i64), Some(3), None, None])?;
        let pixels = images.to_f32()?;
        let plane = pixels.len() / batch.len() / 3;
        let means = pixels.chunks(3 * plane).map(|image| {
            let colour = &image[self.channel * plane..][..plane];
            colour.iter().sum::<f32>() / plane as f32
        });
        let scored = means.zip(&batch.prompts).map(|(mean, prompt)| {
            let nan = self.nan_at.is_some_and(|at| (at - mean).abs() < 1e-3);
            if nan { f32::NAN } else { mean + self.per_letter * prompt.chars().count() as f32 }
        });
        Ok(scored.collect())
    }
}
