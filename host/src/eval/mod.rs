//! Evaluation: fixed prompts through a generator, judged by a fixed protocol, in tables that name it.
//!
//! A [`DigitSuite`] turns images into [`Scores`]; an [`Entry`] says what made them and is a line of `RUN/eval.jsonl`
//! ([`crate::jsonl::Log`]); a [`Table`] shows entries side by side.

mod digit_suite;
mod entry;
mod scores;
mod table;

pub use digit_suite::DigitSuite;
pub use entry::{Entry, Subject};
#[cfg(test)]
pub(crate) use scores::tests;
pub use scores::{Difference, Protocol, Scores};
pub(crate) use table::LEGEND;
pub use table::Table;
