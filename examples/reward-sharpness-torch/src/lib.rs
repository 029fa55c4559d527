//! The reward `sharpness` for AdvDMD, on libtorch: scored on the device, with gradients to the images.

use advdmd_sdk::{Error, Needs, Result, Reward, RewardBatch, RewardConfig, RewardInit};
use schemars::JsonSchema;
use serde::Deserialize;
use tch::{Kind, Tensor};

/// Rewards sharp images: the logarithm of the variance of the brightness' Laplacian (Pech-Pacheco et al., "Diatom
/// autofocusing in brightfield microscopy", 2000).
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sharpness {
    /// Variance that is added before the logarithm, so that an image of one colour has a finite score.
    #[serde(default = "default_floor")]
    pub floor: f64,
}

fn default_floor() -> f64 {
    1e-4
}

impl RewardConfig for Sharpness {
    fn build(self, _init: &RewardInit) -> Result<Box<dyn Reward>> {
        if !(self.floor.is_finite() && self.floor >= 1e-12) {
            return Err(Error::config(format!(
                "floor: expected a finite number of at least 1e-12, found {}",
                self.floor
            )));
        }
        Ok(Box::new(self))
    }
}

impl Reward for Sharpness {
    fn needs(&self) -> Needs {
        Needs { images: true, differentiable: true, scores_on_device: true, ..Needs::default() }
    }

    fn score(&mut self, batch: &RewardBatch<'_>) -> Result<Vec<f32>> {
        Ok(self.scores(batch)?.f_detach()?.try_into()?)
    }

    fn score_differentiable(&mut self, batch: &RewardBatch<'_>) -> Result<Option<Tensor>> {
        self.scores(batch).map(Some)
    }
}

impl Sharpness {
    /// Scores `[B]` with gradients to the images.
    fn scores(&self, batch: &RewardBatch<'_>) -> Result<Tensor> {
        let images = batch.images()?;
        images.expect_shape("images", &[Some(batch.len() as i64), Some(3), None, None])?;
        let [height, width] = [images.shape()[2], images.shape()[3]];
        if height < 3 || width < 3 {
            return Err(Error::shape("images", "[B, 3, H, W] of at least 3x3 pixels", images.shape()));
        }
        let brightness = images.torch()?.f_to_kind(Kind::Float)?.f_mean_dim([1i64].as_slice(), true, Kind::Float)?;
        let kernel = Tensor::f_from_slice(&[0f32, 1.0, 0.0, 1.0, -4.0, 1.0, 0.0, 1.0, 0.0])?.f_view([1, 1, 3, 3])?;
        let kernel = kernel.f_to(brightness.device())?;
        let laplacian = brightness.f_conv2d(&kernel, None::<&Tensor>, [1, 1], [0, 0], [1, 1], 1)?;
        let variance = laplacian.f_flatten(1, -1)?.f_var_dim([1i64].as_slice(), false, false)?;
        Ok(variance.f_add_scalar(self.floor)?.f_log()?)
    }
}

advdmd_sdk::register_reward!("sharpness", Sharpness);
advdmd_sdk::export_plugin!();
