//! What an evaluation found, with the protocol that it was found by.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::digits::{Task, TaskScores};

/// Everything that decides what a score means; scores of different protocols are not comparable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protocol {
    /// Name of the suite.
    pub suite: String,
    /// Rises whenever the rules change.
    pub version: u32,
    /// Prompts of each task, one image each.
    pub prompts_per_task: usize,
    /// Seed of the prompt list and of the reference images.
    pub seed: u64,
    /// Real images behind the Fréchet distance.
    pub reference_images: usize,
    /// The first eight digits of the SHA-256 of what judges the images.
    pub checker: String,
}

impl fmt::Display for Protocol {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { suite, version, prompts_per_task, seed, reference_images, checker } = self;
        write!(
            out,
            "{suite} v{version}, {prompts_per_task} prompts per task, seed {seed}, {reference_images} reference images, \
             checker {checker}"
        )
    }
}

/// The result of one evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// How it was found.
    pub protocol: Protocol,
    /// Shares of correct images by task and overall, with bootstrap standard errors over prompts.
    #[serde(flatten)]
    pub tasks: TaskScores,
    /// Fréchet distance between the checker's features of the images and of real ones; from 0 up, lower is better. It
    /// falls as the number of images rises, so only equal protocols compare.
    pub frechet: f64,
    /// Images made.
    pub images: usize,
    /// Seconds spent on making them; judging is left out.
    pub seconds: f64,
    /// For each prompt in order, `1` if its image is correct, else `0`.
    pub verdicts: String,
}

/// How much better one result is than another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// Difference of the overall scores.
    pub mean: f64,
    /// Its standard error, from the differences prompt by prompt.
    pub standard_error: f64,
}

impl Difference {
    /// The difference in units of its standard error; infinite where that is 0 and the difference is not.
    pub fn z(&self) -> f64 {
        if self.mean == 0.0 { 0.0 } else { self.mean / self.standard_error }
    }

    /// Whether it is too large for chance: beyond two standard errors.
    pub fn is_clear(&self) -> bool {
        self.z().abs() > 2.0
    }
}

impl Scores {
    /// Images per second; `None` where no time was taken.
    pub fn images_per_second(&self) -> Option<f64> {
        (self.seconds > 0.0).then(|| self.images as f64 / self.seconds)
    }

    /// This overall score minus another one's. Both judged the same prompts, so the standard error comes from the pairs:
    /// `d_i` in -1, 0, 1; per task `var(d) / n`; summed over the six tasks and divided by 36.
    ///
    /// `None` for another protocol, or too few prompts for a standard error.
    pub fn difference(&self, other: &Self) -> Option<Difference> {
        let count = self.protocol.prompts_per_task;
        let whole = count * Task::ALL.len();
        if self.protocol != other.protocol || count < 2 || self.verdicts.len() != whole || other.verdicts.len() != whole
        {
            return None;
        }
        let (mut mean, mut variance) = (0.0, 0.0);
        for (ours, theirs) in self.verdicts.as_bytes().chunks(count).zip(other.verdicts.as_bytes().chunks(count)) {
            let pairs = || ours.iter().zip(theirs).map(|(a, b)| f64::from(*a) - f64::from(*b));
            let task_mean = pairs().sum::<f64>() / count as f64;
            let squares = pairs().map(|d| (d - task_mean).powi(2)).sum::<f64>();
            mean += task_mean;
            variance += squares / (count - 1) as f64 / count as f64;
        }
        let tasks = Task::ALL.len() as f64;
        Some(Difference { mean: mean / tasks, standard_error: variance.sqrt() / tasks })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::digits::TaskScore;

    /// Scores of made-up verdicts, the same share of each task.
    pub(crate) fn scores(share: f64, frechet: f64, seconds: f64) -> Scores {
        let count = 50;
        let correct = (share * f64::from(count)).round() as usize;
        let task = |(index, task): (usize, Task)| TaskScore {
            task,
            images: 50,
            mean: share - 0.02 * index as f64,
            standard_error: 0.05,
        };
        let verdicts: String = (0..6).flat_map(|_| (0..50).map(|i| if i < correct { '1' } else { '0' })).collect();
        Scores {
            protocol: Protocol {
                suite: "digits".into(),
                version: 1,
                prompts_per_task: 50,
                seed: 0,
                reference_images: 4200,
                checker: "0a1b2c3d".into(),
            },
            tasks: TaskScores {
                tasks: Task::ALL.into_iter().enumerate().map(task).collect(),
                overall: Some(share),
                overall_standard_error: Some(0.02),
            },
            frechet,
            images: 300,
            seconds,
            verdicts,
        }
    }

    #[test]
    fn the_difference_is_paired() {
        let (better, worse) = (scores(0.8, 1.0, 1.0), scores(0.6, 1.0, 1.0));
        let difference = better.difference(&worse).unwrap();
        assert!((difference.mean - 0.2).abs() < 1e-12);
        // In each task 10 of 50 pairs differ by 1: var = (10 - 50 * 0.04) / 49, error = sqrt(6 var / 50) / 6.
        let expected = (6.0 * (8.0 / 49.0) / 50.0_f64).sqrt() / 6.0;
        assert!((difference.standard_error - expected).abs() < 1e-12);
        assert!(difference.is_clear() && !better.difference(&better).unwrap().is_clear());
        assert_eq!(better.difference(&better).unwrap().z(), 0.0);
    }

    #[test]
    fn other_protocols_do_not_compare() {
        let ours = scores(0.8, 1.0, 1.0);
        let mut other = ours.clone();
        other.protocol.seed = 1;
        assert_eq!(ours.difference(&other), None);
    }

    #[test]
    fn scores_survive_json() {
        let scores = scores(0.8, 1.5, 2.0);
        let text = serde_json::to_string(&scores).unwrap();
        assert_eq!(serde_json::from_str::<Scores>(&text).unwrap(), scores);
    }
}
