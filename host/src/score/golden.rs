//! Scores against stored ones.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value as Json;

use super::Scores;
use crate::{Error, Result, files};

/// The largest difference that passes, where nobody says another.
const TOLERANCE: f64 = 1e-4;

/// Scores that were stored: `{"scores": {reward: [..]}, "prompts": [..], "tolerance": 1e-4}`, the last two optional, or what
/// `advdmd score --json` wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct Golden {
    path: PathBuf,
    scores: BTreeMap<String, Vec<f64>>,
    prompts: Option<Vec<String>>,
    tolerance: Option<f64>,
}

/// How far a reward's scores are from the stored ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// The reward.
    pub reward: String,
    /// The largest absolute difference.
    pub difference: f64,
    /// The image that has it.
    pub file: PathBuf,
    /// What was stored for it.
    pub expected: f64,
    /// What it scores now.
    pub found: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plain {
    scores: BTreeMap<String, Vec<f64>>,
    #[serde(default)]
    prompts: Option<Vec<String>>,
    #[serde(default)]
    tolerance: Option<f64>,
}

impl Golden {
    /// Reads stored scores.
    ///
    /// # Errors
    /// A file of another form, or without scores: names it.
    pub fn read(path: &Path) -> Result<Self> {
        let json: Json = files::read_json(path)?;
        let path = path.to_owned();
        let fail = |error: serde_json::Error| Error::content(&path, error);
        let golden = if json.get("images").is_some() {
            let scores: Scores = serde_json::from_value(json).map_err(fail)?;
            let column = |name: &str| scores.of(name).into_iter().map(f64::from).collect();
            Self {
                scores: scores.rewards.iter().map(|reward| (reward.name.clone(), column(&reward.name))).collect(),
                prompts: Some(scores.images.iter().map(|image| image.prompt.clone()).collect()),
                tolerance: None,
                path,
            }
        } else {
            let Plain { scores, prompts, tolerance } = serde_json::from_value(json).map_err(fail)?;
            Self { path, scores, prompts, tolerance }
        };
        if golden.scores.is_empty() {
            return Err(Error::content(&golden.path, "holds no scores: expected {\"scores\": {\"REWARD\": [..]}}"));
        }
        Ok(golden)
    }

    /// The largest difference that passes: `given`, else the file's, else 1e-4.
    pub fn tolerance(&self, given: Option<f64>) -> f64 {
        given.or(self.tolerance).unwrap_or(TOLERANCE)
    }

    /// Compares each stored reward.
    ///
    /// # Errors
    /// A stored reward that was not scored, another number of scores, or other prompts: names the file.
    pub fn compare(&self, scores: &Scores) -> Result<Vec<Comparison>> {
        let fail = |message: String| Error::content(&self.path, message);
        let count = scores.images.len();
        if let Some(prompts) = &self.prompts {
            if prompts.len() != count {
                return Err(fail(format!("holds {} prompts, {count} images were scored", prompts.len())));
            }
            let pairs = prompts.iter().zip(&scores.images).enumerate();
            if let Some((at, (prompt, image))) = pairs.into_iter().find(|(_, (prompt, image))| **prompt != image.prompt)
            {
                let (file, found) = (image.file.display(), &image.prompt);
                return Err(fail(format!("prompt {} is {prompt:?}, that of {file} is {found:?}", at + 1)));
            }
        }
        let compared = self.scores.iter().map(|(reward, expected)| {
            if !scores.rewards.iter().any(|scored| scored.name == *reward) {
                return Err(fail(format!("holds scores of `{reward}`, which is not among the rewards")));
            }
            let found = scores.of(reward);
            if found.len() != expected.len() {
                return Err(fail(format!("holds {} scores of `{reward}`, {count} images were scored", expected.len())));
            }
            let pairs = expected.iter().zip(found).map(|(expected, found)| (*expected, f64::from(found)));
            let worst =
                pairs.zip(&scores.images).max_by(|((a, b), _), ((c, d), _)| (a - b).abs().total_cmp(&(c - d).abs()));
            let ((expected, found), image) = worst.ok_or_else(|| fail("holds no score".to_owned()))?;
            let difference = (expected - found).abs();
            Ok(Comparison { reward: reward.clone(), difference, file: image.file.clone(), expected, found })
        });
        compared.collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::score::{Image, Scored, Summary};

    fn scores(values: [f32; 2]) -> Scores {
        let image = |file: &str, score: f32| Image {
            file: file.into(),
            prompt: format!("prompt of {file}"),
            size: [1, 1],
            scores: [("r".to_owned(), score)].into(),
        };
        let summary = Summary::of(&values).unwrap();
        let config = json!({ "type": "r" });
        let reward = Scored { name: "r".to_owned(), config, provider: "p".to_owned(), sha256: None, summary };
        let images = vec![image("a.png", values[0]), image("b.png", values[1])];
        Scores { advdmd: "1".to_owned(), rewards: vec![reward], images, skipped: Vec::new() }
    }

    #[test]
    fn stored_scores_are_compared_by_reward() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("golden.json");
        scores([0.5, 0.25]).write(&path).unwrap();
        let golden = Golden::read(&path).unwrap();
        let found = golden.compare(&scores([0.5, 0.75])).unwrap();
        let expected =
            Comparison { reward: "r".into(), difference: 0.5, file: "b.png".into(), expected: 0.25, found: 0.75 };
        assert_eq!(found, [expected]);
        assert_eq!(golden.tolerance(None), 1e-4);

        let of = |json: Json| {
            files::write_json(&path, &json).unwrap();
            Golden::read(&path)
                .and_then(|golden| Ok((golden.tolerance(None), golden.compare(&scores([0.5, 0.25]))?[0].difference)))
        };
        assert_eq!(of(json!({ "scores": { "r": [0.5, 0.125] }, "tolerance": 0.5 })).unwrap(), (0.5, 0.125));
        for (json, part) in [
            (json!({ "scores": { "r": [0.5] } }), "holds 1 scores of `r`, 2 images were scored"),
            (json!({ "scores": { "q": [0.5, 0.25] } }), "`q`, which is not among the rewards"),
            (json!({ "scores": {} }), "holds no scores"),
            (json!({ "scores": { "r": [0.5, 0.25] }, "prompts": ["prompt of a.png", "x"] }), "prompt 2 is \"x\""),
            (json!({ "scores": { "r": [0.5, 0.25] }, "prompts": [] }), "holds 0 prompts"),
            (json!({ "score": [1] }), "unknown field"),
        ] {
            let message = of(json).unwrap_err().to_string();
            assert!(message.contains(part), "{part:?} in {message}");
        }
    }
}
