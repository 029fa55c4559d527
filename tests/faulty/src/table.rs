//! Rewards whose configuration does not do what its schema says.

use advdmd_sdk::{Needs, Result, Reward, RewardBatch, RewardConfig, RewardInit};
use schemars::JsonSchema;
use serde::Deserialize;

/// Its schema names a type that JSON does not have.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("type" = "table"))]
pub struct FaultySchema {
    /// Added to each score.
    #[serde(default)]
    offset: f32,
}

/// Takes any key, and so a misspelt one for none.
#[derive(Deserialize, JsonSchema)]
pub struct OpenTable {
    /// Added to each score.
    #[serde(default)]
    offset: f32,
}

/// Does without a key that its schema requires.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OptionalKey {
    /// Added to each score.
    #[schemars(required)]
    offset: Option<f32>,
}

/// Says nothing of its key.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Undocumented {
    offset: f32,
}

/// The same score for everything.
struct Constant(f32);

impl RewardConfig for FaultySchema {
    fn build(self, _init: &RewardInit) -> Result<Box<dyn Reward>> {
        Ok(Box::new(Constant(self.offset)))
    }
}

impl RewardConfig for OpenTable {
    fn build(self, _init: &RewardInit) -> Result<Box<dyn Reward>> {
        Ok(Box::new(Constant(self.offset)))
    }
}

impl RewardConfig for OptionalKey {
    fn build(self, _init: &RewardInit) -> Result<Box<dyn Reward>> {
        Ok(Box::new(Constant(self.offset.unwrap_or(0.0))))
    }
}

impl RewardConfig for Undocumented {
    fn build(self, _init: &RewardInit) -> Result<Box<dyn Reward>> {
        Ok(Box::new(Constant(self.offset)))
    }
}

impl Reward for Constant {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn score(&mut self, batch: &RewardBatch<'_>) -> Result<Vec<f32>> {
        Ok(vec![self.0; batch.len()])
    }
}
