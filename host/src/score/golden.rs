//! Scores against stored ones.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value as Json;

use super::{Image, Scored, Scores};
use crate::{Error, Result, files};

/// The largest difference that passes, where nobody says another.
const TOLERANCE: f64 = 1e-4;

/// Scores that were stored: `{"scores": {reward: [..]}, "prompts": [..], "tolerance": 1e-4}`, the last two optional, or what
/// `advdmd score --json` wrote, whose images are found again by their files.
#[derive(Debug, Clone, PartialEq)]
pub struct Golden {
    path: PathBuf,
    scores: BTreeMap<String, Vec<f64>>,
    prompts: Option<Vec<String>>,
    /// Whose the scores are; without files they are in the order of the images.
    files: Option<Vec<PathBuf>>,
    tolerance: Option<f64>,
}

/// What was compared, and what was not.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// Each stored reward.
    pub comparisons: Vec<Comparison>,
    /// Images that were compared.
    pub images: usize,
    /// Rewards that were scored and are not stored.
    pub unchecked: Vec<String>,
    /// Images that were scored and are not stored.
    pub unknown: Vec<PathBuf>,
    /// Images that are stored and were not scored.
    pub missing: Vec<PathBuf>,
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
        let fail = |error: serde_json::Error| Error::content(path, error);
        let golden = if json.get("images").is_some() {
            let scores: Scores = serde_json::from_value(json).map_err(fail)?;
            let score = |name: &str, image: &Image| {
                let lacking = || Error::content(path, format!("lacks the score `{name}` of {}", image.file.display()));
                image.scores.get(name).map(|score| f64::from(*score)).ok_or_else(lacking)
            };
            let column = |reward: &Scored| -> Result<(String, Vec<f64>)> {
                let column = scores.images.iter().map(|image| score(&reward.name, image));
                Ok((reward.name.clone(), column.collect::<Result<_>>()?))
            };
            Self {
                scores: scores.rewards.iter().map(column).collect::<Result<_>>()?,
                prompts: Some(scores.images.iter().map(|image| image.prompt.clone()).collect()),
                files: Some(scores.images.iter().map(|image| image.file.clone()).collect()),
                tolerance: None,
                path: path.to_owned(),
            }
        } else {
            let Plain { scores, prompts, tolerance } = serde_json::from_value(json).map_err(fail)?;
            Self { path: path.to_owned(), scores, prompts, files: None, tolerance }
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

    /// Compares each stored reward, image by image.
    ///
    /// # Errors
    /// A stored reward that was not scored, another number of scores, no image in common, or other prompts: names the file.
    pub fn compare(&self, scores: &Scores) -> Result<Checked> {
        let fail = |message: String| Error::content(&self.path, message);
        let pairs = self.pairs(scores)?;
        if let Some(prompts) = &self.prompts {
            let other = pairs.iter().find(|(stored, scored)| prompts[*stored] != scores.images[*scored].prompt);
            if let Some((stored, scored)) = other {
                let (prompt, image) = (&prompts[*stored], &scores.images[*scored]);
                let (file, found) = (image.file.display(), &image.prompt);
                return Err(fail(format!("prompt {} is {prompt:?}, that of {file} is {found:?}", stored + 1)));
            }
        }
        let compared = self.scores.iter().map(|(reward, expected)| {
            if !scores.rewards.iter().any(|scored| scored.name == *reward) {
                return Err(fail(format!("holds scores of `{reward}`, which is not among the rewards")));
            }
            let count = scores.images.len();
            if self.files.is_none() && expected.len() != count {
                return Err(fail(format!("holds {} scores of `{reward}`, {count} images were scored", expected.len())));
            }
            let both = pairs.iter().filter_map(|(stored, scored)| {
                let image = &scores.images[*scored];
                Some((expected[*stored], f64::from(*image.scores.get(reward)?), image))
            });
            let worst = both.max_by(|(a, b, _), (c, d, _)| (a - b).abs().total_cmp(&(c - d).abs()));
            let (expected, found, image) = worst.ok_or_else(|| fail("holds no score".to_owned()))?;
            let difference = (expected - found).abs();
            Ok(Comparison { reward: reward.clone(), difference, file: image.file.clone(), expected, found })
        });
        let comparisons = compared.collect::<Result<_>>()?;
        let unchecked = scores.rewards.iter().map(|reward| reward.name.clone());
        let unchecked = unchecked.filter(|name| !self.scores.contains_key(name)).collect();
        let mut is_stored = vec![false; scores.images.len()];
        let mut is_scored = vec![false; self.files.as_ref().map_or(0, Vec::len)];
        for (stored, scored) in &pairs {
            is_stored[*scored] = true;
            if let Some(mark) = is_scored.get_mut(*stored) {
                *mark = true;
            }
        }
        let unknown = scores.images.iter().zip(is_stored).filter(|(_, stored)| !stored);
        let missing = self.files.iter().flatten().zip(is_scored).filter(|(_, scored)| !scored);
        Ok(Checked {
            comparisons,
            images: pairs.len(),
            unchecked,
            unknown: unknown.map(|(image, _)| image.file.clone()).collect(),
            missing: missing.map(|(file, _)| file.clone()).collect(),
        })
    }

    /// Places of stored and of scored images that are the same: those of one file, in their order where it was scored several
    /// times; without files, those of one place.
    fn pairs(&self, scores: &Scores) -> Result<Vec<(usize, usize)>> {
        let fail = |message: String| Error::content(&self.path, message);
        let count = scores.images.len();
        let Some(files) = &self.files else {
            return match &self.prompts {
                Some(prompts) if prompts.len() != count => {
                    Err(fail(format!("holds {} prompts, {count} images were scored", prompts.len())))
                }
                _ => Ok((0..count).map(|place| (place, place)).collect()),
            };
        };
        let mut places: HashMap<&Path, VecDeque<usize>> = HashMap::new();
        for (place, image) in scores.images.iter().enumerate() {
            places.entry(image.file.as_path()).or_default().push_back(place);
        }
        let pair = |(stored, file): (usize, &PathBuf)| Some((stored, places.get_mut(file.as_path())?.pop_front()?));
        let pairs: Vec<_> = files.iter().enumerate().filter_map(pair).collect();
        match (files.first(), scores.images.first()) {
            (Some(file), Some(image)) if pairs.is_empty() => Err(fail(format!(
                "holds none of the images that were scored: its first is {}, theirs {}; files are compared as they were named",
                file.display(),
                image.file.display()
            ))),
            _ => Ok(pairs),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::score::Summary;

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
        let comparisons = vec![expected];
        let expected =
            Checked { comparisons, images: 2, unchecked: Vec::new(), unknown: Vec::new(), missing: Vec::new() };
        assert_eq!(found, expected);
        assert_eq!(golden.tolerance(None), 1e-4);

        let of = |json: Json| {
            files::write_json(&path, &json).unwrap();
            Golden::read(&path).and_then(|golden| {
                Ok((golden.tolerance(None), golden.compare(&scores([0.5, 0.25]))?.comparisons[0].difference))
            })
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
    #[test]
    fn images_are_found_again_by_their_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("golden.json");
        scores([0.5, 0.25]).write(&path).unwrap();
        let golden = Golden::read(&path).unwrap();
        let mut other = scores([0.5, 0.75]);
        other.images.reverse();
        let found = golden.compare(&other).unwrap();
        assert_eq!((found.images, found.comparisons[0].difference), (2, 0.5));
        assert_eq!(found.comparisons[0].file, Path::new("b.png"));

        other.images[0].file = "c.png".into();
        other.rewards.push(Scored { name: "q".to_owned(), ..other.rewards[0].clone() });
        let found = golden.compare(&other).unwrap();
        assert_eq!((found.images, found.comparisons[0].difference, found.unchecked), (1, 0.0, vec!["q".to_owned()]));
        assert_eq!((found.unknown, found.missing), (vec!["c.png".into()], vec!["b.png".into()]));

        other.images[1].prompt = "another".to_owned();
        let message = golden.compare(&other).unwrap_err().to_string();
        assert!(message.contains("prompt 1 is \"prompt of a.png\", that of a.png is \"another\""), "{message}");
        other.images[1].file = "d.png".into();
        let message = golden.compare(&other).unwrap_err().to_string();
        assert!(message.contains("holds none of the images that were scored: its first is a.png"), "{message}");
    }
}
