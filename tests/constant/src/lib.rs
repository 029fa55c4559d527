//! A reward that computes nothing, so that a call of it takes as long as the way there and back.

use advdmd_sdk::{Needs, Result, Reward, RewardBatch, RewardConfig, RewardInit};
use schemars::JsonSchema;
use serde::Deserialize;

/// The same score for every sample.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Constant {
    /// The score.
    value: f32,
}

impl RewardConfig for Constant {
    fn build(self, _init: &RewardInit) -> Result<Box<dyn Reward>> {
        Ok(Box::new(self))
    }
}

impl Reward for Constant {
    fn needs(&self) -> Needs {
        Needs { images: true, ..Needs::default() }
    }

    fn score(&mut self, batch: &RewardBatch<'_>) -> Result<Vec<f32>> {
        Ok(vec![self.value; batch.len()])
    }
}

advdmd_sdk::register_reward!("constant", Constant);
advdmd_sdk::export_plugin!();
