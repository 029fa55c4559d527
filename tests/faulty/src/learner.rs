//! Rewards whose learner cannot be used.

use advdmd_sdk::{DiscriminatorLoss, Error, Learner, Needs, Result, Reward, RewardBatch, RewardConfig, RewardInit};
use schemars::JsonSchema;
use serde::Deserialize;
use tch::Tensor;

/// Scores well, and fails when its learner is asked for.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FaultyLearner {
    /// The way to fail.
    how: How,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum How {
    /// Panics when asked for the learner.
    Panic,
    /// Panics when asked for the parameters.
    PanicInParameters,
}

impl RewardConfig for FaultyLearner {
    fn build(self, _init: &RewardInit) -> Result<Box<dyn Reward>> {
        Ok(Box::new(self))
    }
}

impl Reward for FaultyLearner {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn score(&mut self, batch: &RewardBatch<'_>) -> Result<Vec<f32>> {
        Ok(vec![0.5; batch.len()])
    }

    fn learner(&mut self) -> Option<&mut dyn Learner> {
        match self.how {
            How::Panic => panic!("the heads were never made"),
            How::PanicInParameters => Some(self),
        }
    }
}

impl Learner for FaultyLearner {
    fn parameters(&self) -> Vec<(String, Tensor)> {
        panic!("the heads have no names")
    }

    fn discriminator_loss(&mut self, _: &RewardBatch<'_>, _: &RewardBatch<'_>) -> Result<DiscriminatorLoss> {
        Err(Error::unsupported("its parameters are asked for first"))
    }

    fn generator_loss(&mut self, _: &RewardBatch<'_>) -> Result<Tensor> {
        Err(Error::unsupported("its parameters are asked for first"))
    }
}
