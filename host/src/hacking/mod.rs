//! Reward hacking: what each evaluation's images look like to the rewards, and whether that is still what was meant.
//!
//! A reward that is optimised stops being a measure. The watch scores the images of each evaluation, always of the same
//! prompts and noise, with the rewards that are trained on and with others that are not, and measures what gamed images
//! have in common: garish colours, a texture that repeats from patch to patch, samples of one prompt that are all alike.

mod alarm;
mod statistics;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use alarm::{Alarm, alarms};
pub use statistics::Statistics;

use crate::jsonl::Dated;

/// The log of the watch, in a run's folder.
pub const FILE: &str = "watch.jsonl";

/// A line of [`FILE`]: one evaluation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Look {
    /// Student updates done.
    pub update: u64,
    /// Scores of the student's images, one for each, by the rewards that are trained on and score images.
    pub trained: BTreeMap<String, Vec<f32>>,
    /// The same by those that are not trained on.
    pub held_out: BTreeMap<String, Vec<f32>>,
    /// The student's images.
    pub images: Statistics,
    /// The teacher's, in the first line alone: they do not change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<Statistics>,
    /// Standard deviation of the final latents within a prompt group, mean over the updates since the line before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diversity: Option<f64>,
}

impl Dated for Look {
    fn update(&self) -> u64 {
        self.update
    }
}
