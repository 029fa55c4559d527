//! Rewards that cannot be made.

use advdmd_sdk::{Error, Needs, Result, Reward, RewardBatch, RewardConfig, RewardInit};
use schemars::JsonSchema;
use serde::Deserialize;

/// Fails before its first score.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FaultyConstruction {
    /// The way to fail.
    how: How,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum How {
    /// Panics while it is made.
    Panic,
    /// Panics when asked what it needs.
    PanicInNeeds,
    /// Lacks something that it loads.
    Failed,
    /// Refuses its own configuration.
    Refused,
}

impl RewardConfig for FaultyConstruction {
    fn build(self, _init: &RewardInit) -> Result<Box<dyn Reward>> {
        match self.how {
            How::Panic => panic!("index out of bounds: the len is 3 but the index is 7"),
            How::PanicInNeeds => Ok(Box::new(PanicsInNeeds)),
            How::Failed => Err(Error::failed("cannot reach the server at scores.example:8000")),
            How::Refused => Err(Error::config("how: expected a way to succeed, found \"refused\"")),
        }
    }
}

struct PanicsInNeeds;

impl Reward for PanicsInNeeds {
    fn needs(&self) -> Needs {
        panic!("nobody knows what it needs")
    }

    fn score(&mut self, _batch: &RewardBatch<'_>) -> Result<Vec<f32>> {
        Err(Error::unsupported("its needs are asked for first"))
    }
}
