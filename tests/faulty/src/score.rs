//! Rewards that are made well and score badly.

use advdmd_sdk::{Error, Needs, Result, Reward, RewardBatch, RewardConfig, RewardInit};
use schemars::JsonSchema;
use serde::Deserialize;

/// Fails in its first score.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FaultyScore {
    /// The way to fail.
    how: How,
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
}

impl RewardConfig for FaultyScore {
    fn build(self, _init: &RewardInit) -> Result<Box<dyn Reward>> {
        Ok(Box::new(self))
    }
}

impl Reward for FaultyScore {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn score(&mut self, batch: &RewardBatch<'_>) -> Result<Vec<f32>> {
        let mut scores = vec![0.5; batch.len()];
        match self.how {
            How::Panic => panic!("attempt to divide by zero"),
            How::Failed => return Err(Error::failed("the server answered 503 Service Unavailable")),
            How::Nan => scores[1] = f32::NAN,
            How::OneForAll => scores.truncate(1),
        }
        Ok(scores)
    }
}
