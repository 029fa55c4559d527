//! The reward `{{name}}` for AdvDMD, on libtorch: it scores on the device and gives gradients.

use advdmd_sdk::{Error, Needs, Result, Reward, RewardBatch, RewardConfig, RewardInit};
use schemars::JsonSchema;
use serde::Deserialize;
use tch::{Kind, Tensor};

/// Rewards images of one contrast: the nearer the standard deviation of their brightness is to a target, the better.
// These comments are what `advdmd plugins inspect reward {{name}}` and editors show.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Contrast {
    /// The contrast that scores highest, from 0 (one grey) to 0.5 (black and white).
    #[serde(default = "default_target")]
    pub target: f64,
}

fn default_target() -> f64 {
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
    /// Finished images `[B, 3, H, W]` in 0..1, on the device of the run.
    fn needs(&self) -> Needs {
        Needs { images: true, differentiable: true, scores_on_device: true, ..Needs::default() }
    }

    /// One finite number a sample; higher is better. Its scale does not matter: the host normalises scores.
    fn score(&mut self, batch: &RewardBatch<'_>) -> Result<Vec<f32>> {
        Ok(self.scores(batch)?.f_detach()?.try_into()?)
    }

    /// The same scores `[B]` as a tensor, with gradients to the images: the host can score without waiting for the device,
    /// and use the reward as a loss.
    fn score_differentiable(&mut self, batch: &RewardBatch<'_>) -> Result<Option<Tensor>> {
        self.scores(batch).map(Some)
    }
}

impl Contrast {
    fn scores(&self, batch: &RewardBatch<'_>) -> Result<Tensor> {
        let images = batch.images()?;
        images.expect_shape("images", &[Some(batch.len() as i64), Some(3), None, None])?;
        let brightness = images.torch()?.f_to_kind(Kind::Float)?.f_mean_dim([1i64].as_slice(), false, Kind::Float)?;
        let centred = brightness.f_sub(&brightness.f_mean_dim([1i64, 2].as_slice(), true, Kind::Float)?)?;
        let variance = centred.f_square()?.f_mean_dim([1i64, 2].as_slice(), false, Kind::Float)?;
        // The root has no finite slope at 0, which an image of one grey would meet.
        let contrast = variance.f_add_scalar(1e-12)?.f_sqrt()?;
        Ok(contrast.f_sub_scalar(self.target)?.f_abs()?.f_neg()?)
    }
}

advdmd_sdk::register_reward!("{{name}}", Contrast);
advdmd_sdk::export_plugin!();
