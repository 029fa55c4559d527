//! Digit scenes: a text-to-image world small enough to train on two CPU cores and rich enough for the six tasks of
//! `GenEval`.
//!
//! A [`Caption`] is drawn or parsed, and a [`Scene`] that fulfils it is rendered from real handwritten digits. A
//! [`Checker`] reads generated images back, [`judge`] holds them against their captions, and [`frechet_distance`]
//! compares them with real scenes as a set.

mod augment;
mod caption;
mod checker;
mod error;
mod frechet;
mod glyphs;
mod network;
mod parse;
mod prompts;
mod quality;
mod random;
mod scene;
mod score;
pub mod train;
mod vocabulary;

pub use caption::{Caption, Request, Task};
pub(crate) use checker::WEIGHTS as CHECKER_WEIGHTS;
pub use checker::{CellReading, Checker, Reading, SCENE_FEATURES};
pub use error::DigitsError;
pub use frechet::{FeatureStatistics, frechet_distance};
pub use glyphs::{GLYPH_PIXELS, GLYPH_SIDE, Glyph, Glyphs, Split};
pub use prompts::{TaskWeights, evaluation_prompts};
pub use quality::{CheckerReport, glyph_accuracy, real_scenes, train_to_file};
pub use scene::{CELLS, Object, SCENE_SIDE, SCENE_VALUES, Scene, render_batch, sample_batch, sample_images};
pub use score::{ScoreRow, TaskScore, TaskScores, Verdict, judge};
pub use vocabulary::{Colour, Count, Digit, Relation};
