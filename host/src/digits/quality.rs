//! How well a checker reads: what stands beside its weights in `checker.json`.

use std::path::Path;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tch::{Kind as Dtype, Tensor};

use super::augment::{Example, Kind};
use super::checker::Checker;
use super::error::DigitsError;
use super::glyphs::{GLYPH_SIDE, Glyph, Glyphs, Split};
use super::prompts::evaluation_prompts;
use super::scene::sample_images;
use super::score::{ScoreRow, TaskScores};
use super::train::{Progress, TrainOptions, train_checker};

/// Shares from 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckerReport {
    /// What made the weights.
    pub command: String,
    /// The options in force.
    pub options: TrainOptions,
    /// Glyphs of the training split read as labelled.
    pub train_accuracy: f64,
    /// Glyphs of the held-out split read as labelled.
    pub held_out_accuracy: f64,
    /// Held-out glyphs, bent, blurred, dimmed, tinted and noisy, read as labelled.
    pub held_out_degraded: f64,
    /// Black and noisy cells read as empty.
    pub blank_rejected: f64,
    /// Faint, half-erased, overlaid held-out digits and blots read as empty.
    pub spoiled_rejected: f64,
    /// Verdicts "correct" on real scenes of training glyphs.
    pub train_scenes: TaskScores,
    /// Verdicts "correct" on real scenes of held-out glyphs.
    pub held_out_scenes: TaskScores,
}

impl CheckerReport {
    /// Measures a checker, with `scenes` real scenes of each task and split.
    ///
    /// # Errors
    /// libtorch.
    pub fn measure(
        checker: &Checker,
        command: &str,
        options: &TrainOptions,
        scenes: usize,
    ) -> Result<Self, DigitsError> {
        let spoiled = [Kind::Faint, Kind::Fragment, Kind::Overlay, Kind::Blot];
        let shares: Result<Vec<f64>, _> = spoiled.into_iter().map(|kind| agreement(checker, kind, 1000)).collect();
        Ok(Self {
            command: command.to_owned(),
            options: *options,
            train_accuracy: glyph_accuracy(checker, Split::Train)?,
            held_out_accuracy: glyph_accuracy(checker, Split::HeldOut)?,
            held_out_degraded: agreement(checker, Kind::Degraded, 2000)?,
            blank_rejected: agreement(checker, Kind::Blank, 1000)?,
            spoiled_rejected: shares?.iter().sum::<f64>() / spoiled.len() as f64,
            train_scenes: real_scenes(checker, Split::Train, scenes, 0)?,
            held_out_scenes: real_scenes(checker, Split::HeldOut, scenes, 0)?,
        })
    }

    /// Writes JSON; the file appears whole or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), DigitsError> {
        let failed = |source| DigitsError::File { path: path.to_owned(), source };
        let mut json = serde_json::to_vec_pretty(self).map_err(|error| failed(error.into()))?;
        json.push(b'\n');
        // Beside its place and renamed, so that a reader never sees half a file.
        let partial = path.with_extension("json.partial");
        std::fs::write(&partial, json).and_then(|()| std::fs::rename(&partial, path)).map_err(failed)
    }
}

/// Real scenes of each task and split that stand behind a written report.
const REPORT_SCENES: usize = 2000;

/// Trains a checker and writes its weights to `out` and, beside them with the ending `.json`, how well they read.
/// Equal options give equal weights on the same machine; `command` is what the report says was run.
///
/// # Errors
/// As [`train_checker`]; a file cannot be written.
pub fn train_to_file(
    out: &Path,
    command: &str,
    options: &TrainOptions,
    progress: impl FnMut(Progress),
) -> Result<CheckerReport, DigitsError> {
    let checker = train_checker(options, progress)?;
    checker.save(out)?;
    let report = CheckerReport::measure(&checker, command, options, REPORT_SCENES)?;
    report.save(&out.with_extension("json"))?;
    Ok(report)
}

/// The share of a split's glyphs, in white, that the checker reads as labelled.
///
/// # Errors
/// libtorch.
pub fn glyph_accuracy(checker: &Checker, split: Split) -> Result<f64, DigitsError> {
    let glyphs: Vec<&Glyph> = Glyphs::embedded()?.iter(split).map(|(_, glyph)| glyph).collect();
    let pixels: Vec<f32> = glyphs.iter().flat_map(|glyph| [glyph.alpha; 3].into_iter().flatten()).collect();
    let labels: Vec<i64> = glyphs.iter().map(|glyph| glyph.digit.index() as i64).collect();
    share(checker, &pixels, &labels)
}

/// The scores of real scenes, `per_task` of each task, which a perfect checker would all call correct.
///
/// # Errors
/// libtorch.
pub fn real_scenes(checker: &Checker, split: Split, per_task: usize, seed: u64) -> Result<TaskScores, DigitsError> {
    let captions = evaluation_prompts(per_task, seed);
    let images = sample_images(&captions, Glyphs::embedded()?, split, &mut ChaCha8Rng::seed_from_u64(seed))?;
    let rows = ScoreRow::judge_all(&captions, &checker.read(&images)?)?;
    Ok(TaskScores::new(&rows, seed))
}

/// The share of cells of one kind, of held-out glyphs, that are read as they are labelled.
fn agreement(checker: &Checker, kind: Kind, count: usize) -> Result<f64, DigitsError> {
    let glyphs: Vec<&Glyph> = Glyphs::embedded()?.iter(Split::HeldOut).map(|(_, glyph)| glyph).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(kind as u64);
    let examples: Vec<Example> = (0..count).filter_map(|_| Example::sample(kind, &glyphs, &mut rng)).collect();
    let pixels: Vec<f32> = examples.iter().flat_map(|example| example.pixels).collect();
    let labels: Vec<i64> = examples.iter().map(|example| example.label).collect();
    share(checker, &pixels, &labels)
}

fn share(checker: &Checker, pixels: &[f32], labels: &[i64]) -> Result<f64, DigitsError> {
    let side = GLYPH_SIDE as i64;
    let cells = Tensor::f_from_slice(pixels)?.f_view([-1, 3, side, side])?;
    let (logits, _) = checker.classify(&cells)?;
    let right = logits.f_argmax(-1, false)?.f_eq_tensor(&Tensor::f_from_slice(labels)?)?;
    Ok(right.f_mean(Dtype::Double)?.f_double_value(&[])?)
}
