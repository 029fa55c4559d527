//! The checks on rewards that are linked into this test: with plain numbers where there is no libtorch.

use advdmd_conformance::{Outcome, Subject, check};
use advdmd_sdk::{Kind, Needs, Result, Reward, RewardBatch, RewardConfig, RewardInit};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

/// The mean pixel, over the contrast if it is asked for.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Brightness {
    /// Factor on the mean.
    scale: f32,
    /// Whether to divide by the contrast, which can be 0.
    #[serde(default)]
    by_contrast: bool,
}

impl RewardConfig for Brightness {
    fn build(self, _init: &RewardInit) -> Result<Box<dyn Reward>> {
        Ok(Box::new(self))
    }
}

impl Reward for Brightness {
    fn needs(&self) -> Needs {
        Needs { images: true, on_cpu: true, ..Needs::default() }
    }

    fn score(&mut self, batch: &RewardBatch<'_>) -> Result<Vec<f32>> {
        let images = batch.images()?;
        images.expect_shape("images", &[Some(batch.len() as i64), Some(3), None, None])?;
        let pixels = images.to_f32()?;
        let score = |image: &[f32]| {
            let mean = self.scale * image.iter().sum::<f32>() / image.len() as f32;
            let (least, most) = image.iter().fold((1.0_f32, 0.0_f32), |(a, b), &pixel| (a.min(pixel), b.max(pixel)));
            if self.by_contrast { mean / (most - least) } else { mean }
        };
        Ok(pixels.chunks(pixels.len() / batch.len()).map(score).collect())
    }
}

advdmd_sdk::register_reward!("brightness", Brightness);

#[test]
fn a_reward_of_plain_numbers_conforms() {
    let report = check(&Subject::linked(Kind::Reward, "brightness", &json!({ "scale": 2.0 })));
    report.assert();
    let outcome = |name: &str| report.checks.iter().find(|check| check.name == name).map(|check| check.outcome);
    for name in ["missing_key", "answers", "refuses", "permutation", "batch_split", "memory"] {
        assert_eq!(outcome(name), Some(Outcome::Ok), "{name}: {report}");
    }
    assert_eq!(outcome("dtypes"), Some(Outcome::Skipped));
    assert_eq!(outcome("rng_state") == Some(Outcome::Ok), cfg!(feature = "torch"));
}

#[test]
fn a_division_by_the_contrast_is_found() {
    let report = check(&Subject::linked(Kind::Reward, "brightness", &json!({ "scale": 2.0, "by_contrast": true })));
    let failed: Vec<_> = report.failed().map(|check| check.name.as_str()).collect();
    assert_eq!(failed, ["finite"], "{report}");
}
