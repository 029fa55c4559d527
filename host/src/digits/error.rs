//! The one error type of the digit scenes.

use std::path::PathBuf;

/// What can go wrong with digit scenes: a bad caption, bad data, a tensor of the wrong shape, a file.
#[derive(Debug, thiserror::Error)]
pub enum DigitsError {
    /// A caption leaves the grammar at one word. `position` counts words from 1.
    #[error("caption {caption:?}: word {position} is {found:?}, expected {expected}{}", hint(.nearest.as_deref()))]
    Word {
        /// The whole caption.
        caption: String,
        /// The place of the word, from 1.
        position: usize,
        /// The word found there.
        found: String,
        /// What may stand there.
        expected: String,
        /// The nearest word that may stand there, where one is near.
        nearest: Option<String>,
    },
    /// A caption stops too early.
    #[error("caption {caption:?} ends after {words} words, expected {expected} next")]
    CaptionEnds {
        /// The whole caption.
        caption: String,
        /// How many words it has.
        words: usize,
        /// What should follow.
        expected: String,
    },
    /// A caption asks for what no scene can show, such as two objects that must differ and do not.
    #[error("caption {caption:?}: {reason}")]
    Request {
        /// The caption as text.
        caption: String,
        /// Why it cannot be asked for.
        reason: String,
    },
    /// A name that is none of the known ones (a task, a colour).
    #[error("unknown {kind} {found:?}, expected one of {expected}{}", hint(.nearest.as_deref()))]
    Name {
        /// What was to be named.
        kind: &'static str,
        /// The name given.
        found: String,
        /// The names that exist.
        expected: String,
        /// The nearest of them, where one is near.
        nearest: Option<String>,
    },
    /// A number outside its range.
    #[error("{name} is {value}, expected {expected}")]
    Value {
        /// Which number.
        name: &'static str,
        /// The number given.
        value: String,
        /// Its range.
        expected: String,
    },
    /// The table of handwritten digits is damaged.
    #[error("digit table: {0}")]
    Glyphs(String),
    /// A tensor has the wrong shape or holds NaN or infinity.
    #[error("{name}: {problem}")]
    Tensor {
        /// Which tensor.
        name: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The checker's weights cannot be read or written, or do not fit the network.
    #[error("{0}")]
    Weights(String),
    /// Training did not reach a usable state.
    #[error("checker training: {0}")]
    Training(String),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

fn hint(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |word| format!("; did you mean {word:?}?"))
}

impl From<advdmd_sdk::Error> for DigitsError {
    /// Weights are the one thing here that the SDK reads and writes.
    fn from(error: advdmd_sdk::Error) -> Self {
        Self::Weights(error.to_string())
    }
}
