//! Rewards that break one promise each.

use std::sync::atomic::{AtomicU16, Ordering};

use advdmd_sdk::{
    Error, FeatureNeeds, FeatureSource, Needs, Result, Reward, RewardBatch, RewardConfig, RewardInit, TensorView,
};
use schemars::JsonSchema;
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::ffi;

/// Scores bright images, more towards the lower right, and breaks the promise that `how` names.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FaultyReward {
    /// The promise that is broken: for each check of the conformance kit the one fault that it finds.
    how: How,
}

#[derive(Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum How {
    /// None.
    Healthy,
    /// None: it scores the difference to the mean of a prompt's samples, says so, and takes no group of one.
    Groupwise,
    /// Taps that fall.
    Needs,
    /// Panics on an image of one colour.
    Answers,
    /// One score too many.
    Length,
    /// Divides by the contrast.
    Finite,
    /// Takes it for granted that there are images.
    Refuses,
    /// Scores of an instance depend on how many were made before.
    Deterministic,
    /// Every second sample of a batch scores higher.
    Permutation,
    /// Scores the difference to the batch's mean, and does not say so.
    BatchSplit,
    /// Misreads bfloat16.
    Dtypes,
    /// Its sums are too large for float16.
    NanInHalf,
    /// Its differentiable score is another.
    SameScores,
    /// Scores on the device, where it divides 0 by 0.
    NanOnDevice,
    /// Half of its gradient is cut off.
    Gradient,
    /// NaN in float64 where no gradient is asked for.
    NanWithoutGradient,
    /// Leaves gradients switched off.
    GradMode,
    /// Draws from libtorch's generator.
    RngState,
    /// Makes float64 the default.
    DefaultDtype,
    /// Takes three threads.
    Threads,
    /// Keeps every batch.
    Memory,
}

struct Made {
    how: How,
    /// Instances before this one.
    before: u16,
}

impl RewardConfig for FaultyReward {
    fn build(self, _init: &RewardInit) -> Result<Box<dyn Reward>> {
        static MADE: AtomicU16 = AtomicU16::new(0);
        Ok(Box::new(Made { how: self.how, before: MADE.fetch_add(1, Ordering::Relaxed) }))
    }
}

impl Made {
    /// `[B]`, with gradients to the images.
    fn of(&self, images: &Tensor) -> Result<Tensor> {
        let misread = self.how == How::Dtypes && images.kind() == Kind::BFloat16;
        let x = match images.kind() {
            Kind::Double => images.shallow_clone(),
            _ => images.f_to_kind(Kind::Float)?,
        };
        let all = [1, 2, 3].as_slice();
        let size = x.size();
        let ramp =
            Tensor::f_linspace(0.5, 1.5, size[2] * size[3], (x.kind(), x.device()))?.f_view([size[2], size[3]])?;
        let scores = x.f_mul(&ramp)?.f_square()?.f_mean_dim(all, false, x.kind())?;
        let contrast = || x.f_amax(all, false)?.f_sub(&x.f_amin(all, false)?);
        Ok(match self.how {
            How::Answers if scores.numel() > 0 && contrast()?.f_min()?.double_value(&[]) == 0.0 => {
                panic!("attempt to divide by zero")
            }
            How::Finite => scores.f_div(&contrast()?)?,
            How::Deterministic => scores.f_add_scalar(f64::from(self.before))?,
            How::Permutation => scores.f_add(&Tensor::f_arange(size[0], (x.kind(), x.device()))?.f_remainder(2)?)?,
            How::BatchSplit if scores.numel() > 0 => scores.f_sub(&scores.f_mean(x.kind())?)?,
            How::NanInHalf if images.kind() == Kind::Half => scores.f_mul_scalar(f64::NAN)?,
            _ if misread => scores.f_mul_scalar(2.0)?,
            _ => scores,
        })
    }

    /// Less the mean of each prompt's group, where groups are compared.
    fn compared(&self, scores: Tensor, prompts: &[&str]) -> Result<Tensor> {
        if self.how != How::Groupwise {
            return Ok(scores);
        }
        let mut parts = Vec::new();
        let mut start = 0;
        for group in prompts.chunk_by(|a, b| a == b) {
            if group.len() < 2 {
                return Err(Error::invalid(format!("expected the group of {:?}, found one sample", group[0])));
            }
            let part = scores.f_narrow(0, start, group.len() as i64)?;
            parts.push(part.f_sub(&part.f_mean(part.kind())?)?);
            start += group.len() as i64;
        }
        Ok(Tensor::f_cat(&parts, 0)?)
    }
}

impl Reward for Made {
    fn needs(&self) -> Needs {
        let features = FeatureNeeds { source: FeatureSource::Fake, taps: vec![1, 0] };
        Needs {
            images: true,
            differentiable: self.how != How::NanOnDevice,
            scores_on_device: self.how == How::NanOnDevice,
            groupwise: self.how == How::Groupwise,
            features: (self.how == How::Needs).then_some(features),
            ..Needs::default()
        }
    }

    fn score(&mut self, batch: &RewardBatch<'_>) -> Result<Vec<f32>> {
        let view = if self.how == How::Refuses { batch.images.as_ref().unwrap() } else { batch.images()? };
        let images = images(view, batch.len())?;
        match self.how {
            How::GradMode => std::mem::forget(tch::no_grad_guard()),
            How::RngState => drop(Tensor::f_rand([1], (Kind::Float, Device::Cpu))?),
            How::DefaultDtype => ffi::default_to_double(),
            How::Threads => tch::set_num_threads(3),
            How::Memory => std::mem::forget(images.shallow_clone()),
            _ => {}
        }
        let mut scores: Vec<f32> = Vec::try_from(tch::no_grad(|| self.compared(self.of(&images)?, &batch.prompts))?)?;
        if self.how == How::Length {
            scores.push(0.0);
        }
        Ok(scores)
    }

    fn score_differentiable(&mut self, batch: &RewardBatch<'_>) -> Result<Option<Tensor>> {
        let images = images(batch.images()?, batch.len())?;
        Ok(Some(match self.how {
            How::SameScores => self.of(&images)?.f_add_scalar(1.0)?,
            How::Gradient => self.of(&images.f_add(&images.f_detach()?)?.f_mul_scalar(0.5)?)?,
            How::NanOnDevice => self.of(&images)?.f_mul_scalar(f64::NAN)?,
            How::NanWithoutGradient if images.kind() == Kind::Double && !images.requires_grad() => {
                self.of(&images)?.f_mul_scalar(f64::NAN)?
            }
            _ => self.compared(self.of(&images)?, &batch.prompts)?,
        }))
    }
}

fn images(view: &TensorView<'_>, count: usize) -> Result<Tensor> {
    view.expect_shape("images", &[Some(count as i64), Some(3), None, None])?;
    view.torch()
}
