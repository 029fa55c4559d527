//! Scores of images by the rules of `GenEval`: a verdict with its reason for each, and means by task.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::caption::{Caption, Request, Task};
use super::checker::Reading;
use super::error::DigitsError;
use super::random::below;
use super::vocabulary::{Colour, Digit, Relation};

/// Whether an image shows what its caption asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// All that is asked for is there.
    pub correct: bool,
    /// What is missing; empty when correct.
    pub reason: String,
}

/// Judges what was read of an image. Single, two, colours and attribute want every named object present and allow
/// others; counting wants exactly so many of its digit; position wants one pair in the relation (left of: a lower
/// column, in whichever rows; above: a lower row).
pub fn judge(caption: &Caption, reading: &Reading) -> Verdict {
    let problems: Vec<String> = match caption.request() {
        Request::Single(a) => missing(reading, a, None).into_iter().collect(),
        Request::Two(a, b) => [(a, None), (b, None)].iter().filter_map(|(d, c)| missing(reading, *d, *c)).collect(),
        Request::Counting(count, a) => {
            let found = reading.objects().filter(|(_, digit, _)| *digit == a).count();
            let expected = count.number();
            (found != expected).then(|| format!("expected {a} =={expected}, found {found}")).into_iter().collect()
        }
        Request::Colours(colour, a) => missing(reading, a, Some(colour)).into_iter().collect(),
        Request::Position(a, relation, b) => {
            let absent: Vec<String> = [a, b].iter().filter_map(|digit| missing(reading, *digit, None)).collect();
            let stands = cells_of(reading, a).any(|i| cells_of(reading, b).any(|j| holds(relation, i, j)));
            if absent.is_empty() && !stands {
                vec![format!("expected {a} {} {b}, found otherwise", relation.phrase())]
            } else {
                absent
            }
        }
        Request::Attribute(first, second) => {
            [first, second].iter().filter_map(|(colour, digit)| missing(reading, *digit, Some(*colour))).collect()
        }
    };
    Verdict { correct: problems.is_empty(), reason: problems.join("; ") }
}

fn cells_of(reading: &Reading, digit: Digit) -> impl Iterator<Item = usize> {
    reading.objects().filter(move |(_, found, _)| *found == digit).map(|(cell, _, _)| cell)
}

fn holds(relation: Relation, i: usize, j: usize) -> bool {
    match relation {
        Relation::LeftOf => i % 2 < j % 2,
        Relation::RightOf => i % 2 > j % 2,
        Relation::Above => i / 2 < j / 2,
        Relation::Below => i / 2 > j / 2,
    }
}

/// Why the digit (in the colour, if one is asked for) is not there; `None` when it is.
fn missing(reading: &Reading, digit: Digit, colour: Option<Colour>) -> Option<String> {
    let colours: Vec<Colour> = reading.objects().filter(|(_, found, _)| *found == digit).map(|(_, _, c)| c).collect();
    match colour {
        _ if colours.is_empty() => Some(format!("expected {digit} >=1, found 0")),
        Some(colour) if !colours.contains(&colour) => {
            let found: Vec<&str> = colours.iter().map(|colour| colour.word()).collect();
            Some(format!("expected {colour} {digit} >=1, found 0 {colour} and {}", found.join(", ")))
        }
        _ => None,
    }
}

/// One image's line in a result file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScoreRow {
    /// The place of its prompt in the list; images of one prompt share it.
    pub prompt: usize,
    /// What was asked for.
    pub caption: Caption,
    /// Whether it is there.
    #[serde(flatten)]
    pub verdict: Verdict,
}

impl ScoreRow {
    /// Judges images against the captions they were made for, one image for each caption.
    ///
    /// # Errors
    /// Different numbers of captions and readings.
    pub fn judge_all(captions: &[Caption], readings: &[Reading]) -> Result<Vec<Self>, DigitsError> {
        if captions.len() != readings.len() {
            return Err(DigitsError::Value {
                name: "number of images",
                value: readings.len().to_string(),
                expected: format!("one for each of {} captions", captions.len()),
            });
        }
        let pairs = captions.iter().zip(readings).enumerate();
        Ok(pairs
            .map(|(prompt, (caption, reading))| Self { prompt, caption: *caption, verdict: judge(caption, reading) })
            .collect())
    }
}

/// The result of one task.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskScore {
    /// The task.
    pub task: Task,
    /// How many images were judged.
    pub images: usize,
    /// The share that is correct, 0 to 1.
    pub mean: f64,
    /// The bootstrap standard error of the mean.
    pub standard_error: f64,
}

/// Means by task, and the overall score as `GenEval` defines it: the mean of the six task means, not of the images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskScores {
    /// The tasks that have images, in the order of [`Task::ALL`].
    pub tasks: Vec<TaskScore>,
    /// The mean of the six task means; `None` unless all six tasks have images.
    pub overall: Option<f64>,
    /// The bootstrap standard error of the overall score.
    pub overall_standard_error: Option<f64>,
}

/// Resamplings of the bootstrap.
const RESAMPLINGS: usize = 1000;

impl TaskScores {
    /// Gathers rows in any order. The bootstrap draws prompts, with all their images, within each task; its draws
    /// come from `seed`.
    pub fn new(rows: &[ScoreRow], seed: u64) -> Self {
        let mut tasks = Vec::new();
        let mut resampled_overall = vec![0.0; RESAMPLINGS];
        for task in Task::ALL {
            let groups = by_prompt(rows.iter().filter(|row| row.caption.task() == task));
            if groups.is_empty() {
                continue;
            }
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(task as u64);
            let resampled: Vec<f64> = (0..RESAMPLINGS)
                .map(|_| mean((0..groups.len()).map(|_| groups[below(&mut rng, groups.len())])))
                .collect();
            for (sum, mean) in resampled_overall.iter_mut().zip(&resampled) {
                *sum += mean / Task::ALL.len() as f64;
            }
            tasks.push(TaskScore {
                task,
                images: groups.iter().map(|(_, images)| images).sum(),
                mean: mean(groups.iter().copied()),
                standard_error: deviation(&resampled),
            });
        }
        let whole = tasks.len() == Task::ALL.len();
        let overall = tasks.iter().map(|task| task.mean).sum::<f64>() / Task::ALL.len() as f64;
        Self {
            tasks,
            overall: whole.then_some(overall),
            overall_standard_error: whole.then(|| deviation(&resampled_overall)),
        }
    }

    /// The mean of one task; `None` when it has no images.
    pub fn task(&self, task: Task) -> Option<f64> {
        self.tasks.iter().find(|score| score.task == task).map(|score| score.mean)
    }
}

/// (correct images, images) of each prompt.
fn by_prompt<'a>(rows: impl Iterator<Item = &'a ScoreRow>) -> Vec<(usize, usize)> {
    let mut groups = std::collections::BTreeMap::new();
    for row in rows {
        let (correct, images) = groups.entry(row.prompt).or_insert((0, 0));
        *correct += usize::from(row.verdict.correct);
        *images += 1;
    }
    groups.into_values().collect()
}

fn mean(groups: impl Iterator<Item = (usize, usize)>) -> f64 {
    let (correct, images) = groups.fold((0, 0), |sum, group| (sum.0 + group.0, sum.1 + group.1));
    correct as f64 / images as f64
}

fn deviation(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0)).sqrt()
}
