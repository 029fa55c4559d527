//! A line of `RUN/eval.jsonl`: what was evaluated, how, and what came out.

use serde::{Deserialize, Serialize};

use super::scores::Scores;
use crate::jsonl::Dated;

/// What made the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// The model that is trained.
    Student,
    /// The model that it learns from.
    Teacher,
    /// Real images: the best that the protocol allows.
    Real,
}

/// One evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Student updates done.
    pub update: u64,
    /// What to call it: "student", "teacher, guided".
    pub label: String,
    /// What made the images.
    pub subject: Subject,
    /// Name of the sampler; empty for real images.
    pub sampler: String,
    /// Sampler steps; 0 for real images.
    pub steps: usize,
    /// Guidance; 1 is none.
    pub guidance_scale: f64,
    /// Network evaluations per image (NFE), a guided step counting two.
    pub evaluations: usize,
    /// What came out.
    pub scores: Scores,
}

impl Entry {
    /// An entry for real images.
    pub fn real(scores: Scores) -> Self {
        Self {
            update: 0,
            label: "real scenes".into(),
            subject: Subject::Real,
            sampler: String::new(),
            steps: 0,
            guidance_scale: 1.0,
            evaluations: 0,
            scores,
        }
    }
}

impl Dated for Entry {
    fn update(&self) -> u64 {
        self.update
    }
}
