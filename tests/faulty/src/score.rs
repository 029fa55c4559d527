//! Rewards that are made well and score badly.

use advdmd_sdk::{Error, Needs, Result, Reward, RewardBatch, RewardConfig, RewardInit};
use schemars::JsonSchema;
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

/// Fails in its first score.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FaultyScore {
    /// The way to fail.
    how: How,
    /// Calls that go well before `nan-on-device`.
    #[serde(default)]
    after: usize,
    #[serde(skip)]
    calls: usize,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum How {
    /// Panics.
    Panic,
    /// Says that it failed.
    Failed,
    /// NaN for the second sample.
    Nan,
    /// One score for all samples.
    OneForAll,
    /// NaN on the device, from the call `after` on.
    NanOnDevice,
}

impl RewardConfig for FaultyScore {
    fn build(self, _init: &RewardInit) -> Result<Box<dyn Reward>> {
        Ok(Box::new(self))
    }
}

impl Reward for FaultyScore {
    fn needs(&self) -> Needs {
        Needs { scores_on_device: matches!(self.how, How::NanOnDevice), ..Needs::default() }
    }

    fn score(&mut self, batch: &RewardBatch<'_>) -> Result<Vec<f32>> {
        let mut scores = vec![0.5; batch.len()];
        match self.how {
            How::Panic => panic!("attempt to divide by zero"),
            How::Failed => return Err(Error::failed("the server answered 503 Service Unavailable")),
            How::Nan => scores[1] = f32::NAN,
            How::OneForAll | How::NanOnDevice => scores.truncate(1),
        }
        Ok(scores)
    }

    fn score_differentiable(&mut self, batch: &RewardBatch<'_>) -> Result<Option<Tensor>> {
        self.calls += 1;
        let score = if self.calls > self.after { f64::NAN } else { 0.5 };
        Ok(Some(Tensor::full([batch.len() as i64], score, (Kind::Float, Device::Cpu))))
    }
}
