//! The one error type of plugins and of the edge between them and the host.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What went wrong in a plugin, by concern. It crosses the plugin edge as a code and a text, so that the
/// host can tell a refused configuration from a failed computation and a panic from both.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Error {
    /// A configuration value that the component refuses; the message names the key.
    #[error("{0}")]
    Config(String),
    /// An argument that does not fit the contract (a shape, a dtype, a missing input).
    #[error("{0}")]
    Invalid(String),
    /// The component does not offer what was asked for.
    #[error("{0}")]
    Unsupported(String),
    /// The plugin panicked; caught inside the plugin, its state may be inconsistent.
    #[error("panicked: {0}")]
    Panic(String),
    /// The computation itself failed (libtorch, a file, a server).
    #[error("{0}")]
    Failed(String),
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A refused configuration value; name the key in `message`.
    pub fn config(message: impl fmt::Display) -> Self {
        Self::Config(message.to_string())
    }

    /// An argument that breaks the contract.
    pub fn invalid(message: impl fmt::Display) -> Self {
        Self::Invalid(message.to_string())
    }

    /// Something the component does not offer.
    pub fn unsupported(message: impl fmt::Display) -> Self {
        Self::Unsupported(message.to_string())
    }

    /// A computation that failed.
    pub fn failed(message: impl fmt::Display) -> Self {
        Self::Failed(message.to_string())
    }

    /// A tensor whose shape is not the expected one; `expected` may be words such as `[B, 3, H, W]`.
    pub fn shape(what: impl fmt::Display, expected: impl fmt::Display, found: &[i64]) -> Self {
        Self::Invalid(format!("{what}: expected shape {expected}, found {found:?}"))
    }

    /// The same error with `context` in front of its message, e.g. the file or the component's name.
    #[must_use]
    pub fn context(self, context: impl fmt::Display) -> Self {
        let wrap = |message: String| format!("{context}: {message}");
        match self {
            Self::Config(message) => Self::Config(wrap(message)),
            Self::Invalid(message) => Self::Invalid(wrap(message)),
            Self::Unsupported(message) => Self::Unsupported(wrap(message)),
            Self::Panic(message) => Self::Panic(wrap(message)),
            Self::Failed(message) => Self::Failed(wrap(message)),
        }
    }
}

#[cfg(feature = "torch")]
impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        // libtorch appends its C++ stack to the message; the first line says what happened.
        let text = error.to_string();
        let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("libtorch failed");
        Self::Failed(first.to_owned())
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::Config(error.to_string())
    }
}
